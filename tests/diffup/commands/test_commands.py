"""The commands around data and backbones: what they print, and one line with exit code 2 for what can't be used."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from diffup import cli
from diffup.errors import UserError, command_line
from tests.helpers.annotated import write_labelme, write_masks


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = command_line(lambda: cli.main(list(argv)))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_import_prints_the_classes_and_what_it_made_is_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, birds = write_labelme(tmp_path / "in"), str(tmp_path / "birds")
    code, out, _ = run(capsys, "data", "import", "labelme", str(source), birds)
    assert code == 0 and "birds is ready at" in out and "heron" in out and "contact_sheet.jpg" in out
    assert run(capsys, "data", "verify", birds)[0] == 0
    code, out, _ = run(capsys, "episodes", "--dataset", birds, "--fold", "0", "--shots", "1",
                       "--episodes", "2")  # fmt: skip
    assert code == 0 and out.count("[[") == 1


def test_a_bad_import_is_one_line_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_masks(tmp_path / "in")
    bad = [
        ("masks", str(tmp_path / "none"), "out"), ("coco", str(source), str(tmp_path / "out")),
        ("masks", str(source), str(source / "out")), ("masks", str(source), str(tmp_path / "o"), "--folds", "9"),
    ]  # fmt: skip
    for argv in bad:
        code, out, err = run(capsys, "data", "import", *argv)
        assert code == 2 and not out and err.startswith("error: ") and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_backbone_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "backbones", "check", "tests.helpers.own_backbone:build", "--size", "64")
    assert code == 0
    for part in ("stage 0        8 channels on 16 x 16", "stage 2        16 channels on 4 x 4", "source:", "mean 0.5"):
        assert part in out
    code, out, _ = run(capsys, "backbones", "check", "tiny_clip", "--size", "64")
    assert code == 0 and "reads text" in out and "tiny_clip.safetensors" in out


def test_backbones_are_listed_by_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "backbones")[1] == run(capsys, "backbones", "ls")[1]
    assert "resnet50" in run(capsys, "backbones", "ls", "resnet50")[1].split()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("ls", "two", "words"), "one word at a time"),
        (("check", "resnet5000"), "neither timm nor this package"),
        (("check", "tiny_resnet", "--size", "3"), "--size 3"),
        (("check", "tests.helpers.own_backbone:nothing"), "is a NoneType"),
    ],
)
def test_a_backbone_that_is_not_there_is_named(argv: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        cli.main(["backbones", *argv])


def test_an_import_ends_with_a_command_that_can_be_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, place = write_labelme(tmp_path / "in"), tmp_path / "my birds"
    code, out, _ = run(capsys, "data", "import", "labelme", str(source), str(place))
    words = shlex.split(out.strip().splitlines()[-1])
    assert code == 0 and words[:4] == ["next", "diffup", "run", "mini_grid"]
    assert words[words.index("--dataset") + 1] == str(place)
