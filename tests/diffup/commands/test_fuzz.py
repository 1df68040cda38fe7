"""Command lines of every library command but predict (`test_predict_fuzz`): one line for bad input, no stray file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from diffup import cli
from diffup.errors import command_line
from tests.diffup.commands.test_predict_fuzz import STRANGE, files_below
from tests.helpers.annotated import write_labelme, write_masks
from tests.helpers.folders import write_voc
from tests.helpers.fuzzing import TIMES

VECTORS = 1000 * max(1, TIMES)
NUMBERS = ["0", "1", "2", "5", "-1", "1.5", "x", "nan", "9" * 30, "٣", "1e400", "inf"]
PATHS = ["toy", "toy/dataset.json", "toy/JPEGImages", "labelme", "masks", "gone", "text.json", "empty", "."]
OUTS = ["out", "out", "deep/er", "toy", "text.json/x", "."]
FORMATS = ["labelme", "cvat", "coco", "masks", "voc"]
# Each command: words that may come first, and options with their values; an empty list is a flag.
COMMANDS: dict[str, tuple[list[list[str]], dict[str, list[str]]]] = {
    "doctor": ([], {"--offline": [], "--timeout": NUMBERS, "--json": []}),
    "data": (
        [["verify"], ["prepare"], ["import"], PATHS, PATHS, FORMATS],
        {"--root": PATHS, "--lists": PATHS, "--out": OUTS, "--images": PATHS, "--name": ["x", "a/b"],
         "--folds": NUMBERS, "--skip-damaged": []},
    ),
    "episodes": (
        [],
        {"--dataset": ["toy", "toy/dataset.json", *PATHS], "--protocol": ["paired", "hsnet", "x"], "--fold": NUMBERS,
         "--shots": NUMBERS, "--episodes": ["1", "3", "0", "x"], "--seed": NUMBERS,
         "--format": ["json", "parquet", "x"], "--out": ["out/e.json", "out/e.parquet", "toy/dataset.json", "."]},
    ),
    "protocols": ([["list"], ["show"], ["hsnet", "paired", "x"]], {}),
    "backbones": ([["ls"], ["check"], ["resnet", "tiny_resnet", "tiny_x", "no.such:thing"]], {"--size": NUMBERS[:7]}),
}  # fmt: skip
SOUND = [
    ["doctor", "--offline"], ["data", "verify", "toy"], ["data", "import", "labelme", "labelme", "out"],
    ["data", "import", "masks", "masks", "out"], ["protocols", "show", "hsnet"], ["backbones", "ls", "resnet50"],
    ["episodes", "--dataset", "toy", "--fold", "0", "--shots", "1", "--episodes", "2"],
    ["episodes", "--dataset", "toy", "--fold", "1", "--shots", "1", "--episodes", "2", "--out", "out/e.json"],
]  # fmt: skip


def command(rng: random.Random) -> list[str]:
    """A command line: in a third of the cases a sound one, with a few changes."""
    argv = list(rng.choice(SOUND)) if rng.random() < 0.35 else [rng.choice(sorted(COMMANDS))]
    words, options = COMMANDS[argv[0]]
    for _ in range(rng.choice([0, 1, 2, 4])):
        if words and rng.random() < 0.5:
            part = [rng.choice(rng.choice(words))]
        elif options:
            name = rng.choice(sorted(options))
            part = [name, rng.choice(options[name])] if options[name] else [name]
        else:
            part = ["--nonsense"]
        if rng.random() < 0.15:
            part[-1] = rng.choice(STRANGE)
        place = rng.randint(1, len(argv)) if rng.random() < 0.3 else len(argv)
        argv[place:place] = part
    if len(argv) > 1 and rng.random() < 0.1:
        del argv[rng.randrange(1, len(argv))]
    return argv


@pytest.mark.slow
def test_no_command_line_brings_a_traceback_or_a_stray_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = tmp_path / "sandbox"
    write_voc(inner / "toy")
    write_labelme(inner / "labelme")
    write_masks(inner / "masks")
    (inner / "empty").mkdir()
    (inner / "text.json").write_text("no JSON")
    monkeypatch.chdir(inner)
    monkeypatch.setenv("DIFFUP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    rng, codes = random.Random(2027), dict[int, int]()
    inputs = files_below(inner)
    for number in range(VECTORS):
        argv = command(rng)
        try:
            code = command_line(lambda argv=argv: cli.main(argv))  # type: ignore[misc]
        except SystemExit as ended:
            code = int(ended.code or 0)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err and "bug in DiffUp" not in printed.err, (number, argv, printed.err)
        assert code in (0, 1, 2), (number, argv, code)
        if code == 2:
            assert "error: " in printed.err and len(printed.err) < 20_000, (number, argv, printed.err)
        codes[code] = codes.get(code, 0) + 1
        after = files_below(inner)
        assert {path: after.get(path) for path in inputs} == inputs, (number, argv)
        for path in after.keys() - inputs.keys():
            places = ("out", "deep") if code == 0 else ()
            assert any(path.is_relative_to(inner / place) for place in places), (number, argv, code, path)
            path.unlink()
        for folder in ("out", "deep"):
            for path in sorted((inner / folder).rglob("*"), reverse=True):
                path.rmdir()
            if (inner / folder).is_dir():
                (inner / folder).rmdir()
    assert codes[0] > VECTORS // 20 and codes[2] > VECTORS // 20, codes
