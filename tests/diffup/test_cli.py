"""The ``diffup`` command in a checkout; tests/repo/test_wheel.py tests it where only the wheel is installed."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

import diffup
from diffup import cli
from diffup.backbones.embedded import EMBEDDED
from diffup.errors import INSTALL, UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that were to replace this process."""
    commands: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, command: commands.append(command))
    monkeypatch.setenv("PYTHONPATH", "mine")
    return commands


def test_help_lists_every_command_and_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"], ["--version"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(argv)
        assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in cli.COMMANDS) and printed.endswith(f"diffup {diffup.__version__}\n")


def test_arguments_reach_the_command(json_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "verify", str(json_path)]) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    assert cli.main(["protocols"]) == cli.main(["protocols", "list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[: len(listed) // 2] == listed[len(listed) // 2 :] and listed[0].startswith("paired")
    with pytest.raises(SystemExit):
        cli.main(["protocols", "--help"])
    assert capsys.readouterr().out.startswith("usage: diffup protocols")


def test_backbones_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["backbones"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in EMBEDDED)
    assert cli.main(["backbones", "RN50x"]) == 0
    assert {"open_clip:RN50x4", "open_clip:RN50x16"} <= set(capsys.readouterr().out.split())
    with pytest.raises(UserError, match="no backbone has 'no-such'"):
        cli.main(["backbones", "no-such"])


def test_a_study_runs_and_is_submitted_with_its_options(executed: list[list[str]]) -> None:
    cli.main(["run", "quickstart", "--dry-run", "--select", "shots=1"])
    script = os.path.relpath(ROOT / "experiments" / "quickstart.py")
    assert executed == [[sys.executable, script, "--dry-run", "--select", "shots=1"]]
    assert os.environ["PYTHONPATH"] == f"{ROOT}{os.pathsep}mine"
    cli.main(["submit", "quickstart", "--dry-run"])
    assert executed[1][-3:] == ["submit", "experiments/quickstart.py", "--dry-run"]


def test_studies_are_listed_with_what_they_ask(executed: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--help"]) == cli.main(["submit", "-h"]) == 0 and cli.main(["run"]) == 2
    printed = capsys.readouterr().out
    for path in (ROOT / "experiments").glob("[a-z]*.py"):
        assert printed.count(f"  {path.stem} ") == 3, path
    assert printed.count("all folds, shots, annotations and backbones, from one checkpoint a fold.\n") == 3
    assert not executed


def test_an_unknown_study_is_named_with_those_there_are(executed: list[list[str]]) -> None:
    for command in ("run", "submit"):
        with pytest.raises(UserError, match="there is no study 'quickstrat'; did you mean quickstart"):
            cli.main([command, "quickstrat"])
        with pytest.raises(UserError, match=r"the name of a study first, one of .*mini_grid, .*quickstart"):
            cli.main([command, "zzz"])
    assert not executed


def test_without_ray_a_study_says_what_to_install(executed: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=re.escape(INSTALL)):
        cli.main(["run", "quickstart"])
    assert not executed


@pytest.mark.parametrize("name", cli.PLATFORM)
def test_outside_a_clone_a_command_of_it_says_what_to_do(
    name: str, executed: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "IN_CHECKOUT", False)
    monkeypatch.setattr(cli, "COMMANDS", {name: cli.COMMANDS[name] for name in cli.LIBRARY})
    with pytest.raises(UserError, match=f"diffup {name} needs a clone of DiffUp; run in it: {re.escape(INSTALL)}"):
        cli.main([name, "--help"])
    assert not executed
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert f"in a clone of the repository also: {', '.join(cli.PLATFORM)}" in capsys.readouterr().out
