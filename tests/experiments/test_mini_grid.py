"""The grid for one's own images: as few shots as they allow, and one line where they don't."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.cli import run
from diffup.errors import UserError
from diffup.grid.cell import Cell
from experiments.mini_grid import STUDY, build

SMALL = ["--train-backbone", "tiny_resnet", "--backbones", "tiny_resnet"]


def test_shots_and_annotations_are_asked_for(json_path: Path) -> None:
    asked = STUDY.parse(["--dataset", str(json_path), *SMALL, "--shots", "1,2", "--annotations", "box"])
    cells = [cell for cell in build(asked)[0] if isinstance(cell, Cell)]
    assert {(cell.shots, cell.annotation) for cell in cells if cell.variant == "diffup"} == {(1, "box"), (2, "box")}
    assert {cell.shots for cell in cells} == {1, 2}
    with pytest.raises(UserError, match="0 shots go with"):
        build(STUDY.parse(["--dataset", str(json_path), *SMALL, "--shots", "0"]))


def test_too_few_images_for_5_shots_leave_1_shot(
    json_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--dataset", str(json_path), *SMALL, "--results", str(tmp_path / "results"), "--dry-run"]
    assert run(STUDY, argv) == 2
    said = capsys.readouterr().err
    assert "5 shots need 6 images" in said and "--shots" in said and "--select" in said
    for enough in (["--shots", "1"], ["--select", "shots=1"]):
        assert run(STUDY, [*argv, *enough]) == 0
        assert "5-shot" not in capsys.readouterr().out
