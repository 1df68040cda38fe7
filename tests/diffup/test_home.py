"""Where things are kept by default, also for a user without a home directory."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import run
from cluster.storage.sync import copy_folder
from diffup.errors import UserError
from diffup.home import cache, expanded, home
from experiments import full_grid, search

NAMES = ("HOME", "DIFFUP_HOME", "DIFFUP_CACHE")


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user that the system does not know, as in a container that is run with a user id of its own."""

    def unknown(user: int) -> object:
        raise KeyError(f"getpwuid(): uid not found: {user}")

    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_it_is_the_variable_else_below_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (home(), cache()) == (tmp_path / ".diffup", tmp_path / ".cache" / "diffup")
    monkeypatch.setenv("DIFFUP_HOME", "~/data")
    monkeypatch.setenv("DIFFUP_CACHE", "~/cache")
    assert (home(), cache()) == (tmp_path / "data", tmp_path / "cache")
    monkeypatch.setenv("DIFFUP_HOME", "relative")
    assert home() == Path.cwd() / "relative"


@pytest.mark.usefixtures("homeless")
def test_without_a_home_directory_the_variable_is_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for ask in (home, cache, lambda: copy_folder("s3://bucket/x"), lambda: expanded(Path("~/x"))):
        with pytest.raises(UserError, match="set DIFFUP_HOME"):
            ask()
    monkeypatch.setenv("DIFFUP_HOME", str(tmp_path))
    assert home() == tmp_path
    assert cache() == tmp_path / "cache" and copy_folder("s3://bucket/x").is_relative_to(tmp_path)


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("script", [full_grid, search])
def test_a_script_says_so_in_one_line_and_works_with_the_variable(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["--dry-run"] if script is full_grid else ["--dry-run", "--dataset", "pascal5i"]
    assert run(script.STUDY, arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "set DIFFUP_HOME" in said and said.count("\n") == 1
    if script is full_grid:
        monkeypatch.setenv("DIFFUP_HOME", str(tmp_path))
        assert run(full_grid.STUDY, arguments) == 0


@pytest.mark.slow
def test_a_process_without_home_and_user_entry_runs_a_command(tmp_path: Path) -> None:
    code = (
        "import pwd, sys\n"
        "def unknown(user): raise KeyError(user)\n"
        "pwd.getpwuid = unknown\n"
        "from cluster.cli import run\n"
        "from experiments import full_grid\n"
        "sys.exit(run(full_grid.STUDY, ['--dry-run']))"
    )
    env = {name: value for name, value in os.environ.items() if name not in (*NAMES, "USER", "LOGNAME")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    env["DIFFUP_HOME"] = str(tmp_path / "home")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
