"""2,000 command lines of ``diffup predict``, sound and broken: one line for bad input, no traceback, no stray file."""

from __future__ import annotations

import contextlib
import random
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffup import DiffUp, cli
from diffup.backbones.load import load_backbone
from diffup.commands import predict_run
from diffup.config import InputConfig, ModelConfig
from diffup.errors import UserError
from diffup.evaluation.encode import Encoder
from diffup.models.diffup import DiffUpNet
from tests.helpers.fuzzing import TIMES

VECTORS = 2000 * max(1, TIMES)
STRANGE = [
    "",
    " ",
    "\x00",
    "a\x00b",
    "é",
    "\ud800",
    "x" * 300,
    "../up",
    "*",
    "[",
    "-",
    "--",
    "~nobody-of-this/x",
    "/dev/null",
    "%s",
]
QUERIES = ["a.jpg", "b.png", "q", "q/*.jpg", "./a.jpg", "damaged.jpg", "text.jpg", "gone.jpg", "empty", "."]
FILES = ["s.jpg", "s.png", "strokes.png", "small.png", "black.png", "damaged.jpg", "gone.png", "q", "text.jpg"]
NUMBERS = [
    "1,2,20,30", "1,2,20,30;3,4,9,9", "0,0,40,32", "5,6", "5,6;7,8", "1,2,3", "0.1,0.1,0.5,0.5", "nan,1,2,3", "9,9,1,1",
    "-5,-5,10,10", "1e400,1,2,3", "9" * 400 + ",1", ";", ",", "1;2;3;4", "٣,٤", "300,300", "0x1,2",
]  # fmt: skip
FOLDERS = ["out", "out", "out", "deep/er/out", "q/out", ".", "a.jpg", "a.jpg/out", "q"]
VALUES = {
    "--support": ["s.jpg", "s.jpg", "s.jpg", "a.jpg", *FILES], "--mask": ["s.png", "s.png", *FILES],
    "--scribble": ["strokes.png", *FILES], "--box": NUMBERS, "--points": NUMBERS, "--text": ["ring", "red ring", " "],
    "--steps": ["1", "2", "0", "-1", "x", "1.5", "٣"], "--bank": ["q", "empty", "gone"], "--backbone": ["tiny_resnet"],
    "--checkpoint": ["base"], "--device": ["cpu"], "--weights-dir": ["q"], "--companion": [""],
    "-o": FOLDERS, "--out": FOLDERS,
}  # fmt: skip
FLAGS = [
    "--snap",
    "--overwrite",
    "--json",
    "-q",
    "-v",
    "--help",
    "-h",
    "--verbose",
    "--nonsense",
    "-z",
    "--maks",
    "-qv",
]
SOUND = [["--support", "s.jpg", "--mask", "s.png"], ["--support", "s.jpg", "--box", "1,2,20,30"], ["--text", "ring"],
         ["--support", "s.jpg", "--points=5,6;9,9"], ["--support", "s.jpg", "--scribble", "strokes.png"]]  # fmt: skip


def command(rng: random.Random) -> list[str]:
    """A command line: in half of the cases a sound one with a few changes."""
    argv: list[str] = []
    if rng.random() < 0.5:
        argv = [rng.choice(QUERIES[:6]), *rng.choice(SOUND), "-o", rng.choice(FOLDERS)]
    for _ in range(rng.choice([0, 0, 1, 2, 5])):
        kind = rng.random()
        if kind < 0.25:
            part = [rng.choice(QUERIES)]
        elif kind < 0.4:
            part = [rng.choice(FLAGS)]
        else:
            option = rng.choice(sorted(VALUES))
            value = rng.choice(STRANGE) if rng.random() < 0.2 else rng.choice(VALUES[option])
            part = [f"{option}={value}"] if rng.random() < 0.3 else [option, value]
        place = rng.randint(0, len(argv)) if rng.random() < 0.3 else len(argv)
        argv[place:place] = part
    if argv and rng.random() < 0.1:
        del argv[rng.randrange(len(argv))]
    return argv


def folders_of(argv: list[str]) -> set[Path]:
    """Where a command line may write."""
    given = [value for flag, value in pairwise(argv) if flag in ("-o", "--out")]
    given += [word.partition("=")[2] for word in argv if word.startswith(("-o=", "--out="))]
    folders = set()
    for name in given:
        with contextlib.suppress(ValueError, OSError):  # what no path can name
            folders.add(Path(name).resolve())
    return folders


def files_below(root: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of every file."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}


def make_inputs(root: Path) -> None:
    rng = np.random.default_rng(0)
    (root / "q").mkdir(parents=True)
    (root / "empty").mkdir()
    for name in ("a.jpg", "b.png", "s.jpg", "q/c.jpg", "q/d.png"):
        Image.fromarray(rng.integers(0, 255, (32, 40, 3), dtype=np.uint8)).save(root / name)
    square = np.zeros((32, 40), np.uint8)
    square[5:20, 8:30] = 255
    for name, pixels in (
        ("s.png", square),
        ("strokes.png", square),
        ("small.png", square[:9, :9]),
        ("black.png", 0 * square),
    ):
        Image.fromarray(pixels).save(root / name)
    (root / "damaged.jpg").write_bytes((root / "a.jpg").read_bytes()[:300])
    (root / "text.jpg").write_text("no picture")


@pytest.fixture(scope="module")
def untrained() -> DiffUp:
    """A model that is quickly made; its masks don't matter."""
    torch.manual_seed(0)
    backbone, reader = load_backbone("tiny_resnet"), load_backbone("tiny_clip")
    config = InputConfig(input_size=96, feature_grid=8)
    return DiffUp(Encoder(backbone, config, reader), DiffUpNet(ModelConfig(decoder_grid=16, width=16)))


@pytest.mark.slow
def test_no_command_line_brings_a_traceback_or_a_stray_file(
    untrained: DiffUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = tmp_path / "sandbox"
    make_inputs(inner)
    monkeypatch.chdir(inner)
    monkeypatch.setattr(predict_run, "load", lambda asked: untrained)
    rng, codes = random.Random(2026), dict[int, int]()
    inputs = before = files_below(tmp_path)
    for number in range(VECTORS):
        argv = command(rng)
        said = ""
        try:
            code = cli.main(["predict", *argv])
        except SystemExit as ended:
            code = int(ended.code or 0)
        except UserError as error:
            code, said = 2, str(error)
        printed = capsys.readouterr()
        assert code in (0, 1, 2), (number, argv, code)
        assert "Traceback" not in printed.err and "\n" not in said, (number, argv, printed.err, said)
        if code == 2:
            assert said or printed.err.startswith("error: "), (number, argv, printed.err)
        codes[code] = codes.get(code, 0) + 1
        after = files_below(tmp_path)
        assert {path: after.get(path) for path in inputs} == inputs, (number, argv)
        changed, allowed = {path for path in {*before, *after} if before.get(path) != after.get(path)}, folders_of(argv)
        assert all(any(path.is_relative_to(folder) for folder in allowed) for path in changed), (number, argv, changed)
        assert not [path for path in after if path.name.endswith(".part")], (number, argv)
        if rng.random() < 0.8:  # else the next command meets them
            for path in after.keys() - inputs.keys():
                path.unlink()
            for name in ("out", "deep", "q/out"):
                shutil.rmtree(inner / name, ignore_errors=True)
        before = files_below(tmp_path)
    assert min(codes[0], codes[1], codes[2]) > VECTORS // 100, "sound and broken ones are both among them"
