"""The command: wrong options are one line, and the private folder is gone however the process ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffup.cli import main
from diffup.commands.demo import open_session
from diffup.demo.serve import PORTS, free_port, private_folder
from diffup.errors import UserError
from tests.helpers.demos import running
from tests.helpers.trained import CELL


@pytest.fixture
def checkpoint(results: Path) -> str:
    return str(results / CELL.key())


def test_the_training_backbone_comes_first_then_the_folder_then_the_embedded(checkpoint: str, tmp_path: Path) -> None:
    for name in ("resnet50.safetensors", "not a backbone.safetensors", "resnet50.txt"):
        (tmp_path / name).touch()
    session = open_session(checkpoint, None, tmp_path)
    assert session.backbones.names == ("tiny_resnet", "resnet50", "tiny_regnet", "tiny_clip")
    assert session.trained_on == "tiny_resnet"


def test_the_first_named_backbone_is_loaded(checkpoint: str) -> None:
    session = open_session(checkpoint, ("tiny_regnet", "tiny_resnet", "tiny_regnet"))
    assert session.backbones.names == ("tiny_regnet", "tiny_resnet")
    assert session.backbones.get("tiny_regnet").encoder.backbone.name == "tiny_regnet"


def test_a_training_backbone_without_weights_is_left_out(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffup.api import DiffUp

    load = DiffUp.from_pretrained

    def offline(path: str, backbone: str | None = None, **options: object) -> DiffUp:
        if backbone is None:
            raise UserError("weights are not available")
        return load(path, backbone, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(DiffUp, "from_pretrained", offline)
    session = open_session(checkpoint, None)
    assert session.backbones.names[0] in ("tiny_resnet", "tiny_regnet", "tiny_clip")
    assert "left out: weights are not available" in capsys.readouterr().err
    with pytest.raises(UserError, match="not available"):
        monkeypatch.setattr(DiffUp, "from_pretrained", lambda *_, **__: offline("", None))
        open_session(checkpoint, ("tiny_resnet",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--checkpoint", "no/such/folder/here"], "neither a folder nor"),
        (["--backbones", "resnet51"], "did you mean"),
        (["--weights-dir", "no/such"], "does not exist"),
        (["--device", "abacus"], "device"),
        (["--backbones", " , "], "names no backbone"),
    ],
)
def test_a_wrong_option_is_a_message(options: list[str], message: str, checkpoint: str) -> None:
    named = [] if "--checkpoint" in options else ["--checkpoint", checkpoint]
    with pytest.raises(UserError, match=message):
        main(["demo", *named, *options])


@pytest.mark.parametrize("options", [["--port", "x"], ["--port", "65536"], ["--port", "-1"], ["--nonsense"], ["more"]])
def test_options_that_cannot_be_read_exit_with_2(options: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["demo", *options])
    assert ended.value.code == 2


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffup.demo.serve.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'diffup\[demo\]'"):
        main(["demo"])


def test_a_port_in_use_is_refused_and_the_next_free_one_found() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="--port"):
            free_port(taken.getsockname()[1])
    assert free_port(None) in PORTS


def test_the_folder_is_private_and_settings_come_back() -> None:
    before = dict(os.environ)
    with private_folder() as folder:
        assert folder.stat().st_mode & 0o77 == 0
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
        assert (os.environ["GRADIO_ANALYTICS_ENABLED"], os.environ["GRADIO_RUN_HISTORY"]) == ("False", "False")
        (folder / "left").mkdir()
    assert not folder.exists()
    assert dict(os.environ) == before


EARLY = """
import sys, time
from diffup.demo.serve import private_folder
with private_folder() as folder:
    (folder / "picture.png").touch()
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_an_end_while_it_starts_removes_the_folder(end: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", EARLY], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert folder.is_dir()
        process.send_signal(end)
        assert process.wait(60) == 0
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_served_page_ends_in_good_order(checkpoint: str, tmp_path: Path, end: signal.Signals) -> None:
    with running(checkpoint, tmp_path) as demo:
        (private,) = tmp_path.glob("tmp/diffup-demo-*")
        demo.process.send_signal(end)
        began = time.monotonic()
        assert demo.process.wait(60) == 0
        assert time.monotonic() - began < 30
    assert not private.exists()
    assert demo.errors() == ""
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["errors.txt"], left
