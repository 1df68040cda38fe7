"""``diffup doctor``: it says what there is, changes nothing, and does not wait for a hub that doesn't answer."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import huggingface_hub.constants as hub
import pytest
import torch

import diffup
from diffup import cli


def test_it_shows_versions_devices_and_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DIFFUP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DIFFUP_CACHE", str(tmp_path / "cache"))
    assert cli.main(["doctor", "--offline"]) == 0
    printed = capsys.readouterr().out
    assert (
        f"diffup {diffup.__version__}, Python 3." in printed and f"torch {torch.__version__.split('+')[0]}" in printed
    )
    for part in ("cpu, ", "not there yet", str(tmp_path / "home"), "GiB free", "hub         not asked", "no problem"):
        assert part in printed, part
    assert not list(tmp_path.iterdir()), "nothing is made"


def test_a_folder_that_can_not_be_written_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DIFFUP_HOME", str(tmp_path / "file" / "home"))
    assert cli.main(["doctor", "--offline", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["problems"] == [f"{tmp_path / 'file' / 'home'} can't be written to; set DIFFUP_HOME"]
    assert told["folders"]["home (data and results)"]["free_bytes"] > 0


def test_a_hub_that_does_not_answer_is_waited_for_no_longer_than_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    with socket.socket() as silent:  # takes connections and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(hub, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        assert cli.main(["doctor", "--timeout", "0.5"]) == 0
        assert time.monotonic() - began < 30
    assert "does not answer" in capsys.readouterr().out
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(hub, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert cli.main(["doctor"]) == 0
    assert "does not answer" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "1000"])
def test_a_timeout_that_is_none_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", f"--timeout={value}"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: --timeout: must be above 0")
