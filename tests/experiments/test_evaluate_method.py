"""diffup eval: a method and a backbone of one's own, from the folder it is started in, beside all rivals."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from diffup import plugins
from diffup.config import SampleConfig
from diffup.errors import UserError
from diffup.grid import axes
from diffup.grid.axes import OWN, RIVALS
from diffup.grid.cell import Cell
from experiments.evaluate_method import STUDY, build, comparison
from tests.helpers.stores import cell, write_store

ROOT = Path(__file__).resolve().parents[2]
FUNCTION = "experiments.foreign_method:colour_histogram"
METHOD = """
import numpy as np
from tests.helpers.own_backbone import OwnBackbone


def middle(query, supports, cues):
    answer = np.zeros(query.shape[:2])
    answer[6:24, 11:39] = 1
    return answer


def build():
    return OwnBackbone()
"""


def cells_of(json_path: Path, *arguments: str) -> list[Cell]:
    cells, _ = build(STUDY.parse([FUNCTION, "--dataset", str(json_path), "--backbones", "tiny_resnet", *arguments]))
    return [cell for cell in cells if isinstance(cell, Cell)]


def test_the_method_and_all_rivals_meet_on_the_same_episodes(json_path: Path) -> None:
    cells = cells_of(json_path, "--shots", "1,2", "--annotations", "mask,box", "--episodes", "5")
    assert len(cells) == (1 + len(RIVALS)) * 4 * 2  # tasks and folds
    assert {cell.variant for cell in cells} == {"colour_histogram", *RIVALS}
    assert {cell.backbone for cell in cells if cell.sample.method == "adapter"} == {OWN.name}
    draws = {(cell.fold, cell.shots): (cell.episodes, cell.episode_seed, cell.manifest) for cell in cells}
    assert all(draws[cell.fold, cell.shots] == (cell.episodes, cell.episode_seed, cell.manifest) for cell in cells)
    without = cells_of(json_path, "--shots", "1", "--bank", "0", "--folds", "1")
    assert {cell.variant for cell in without} == {"colour_histogram"} | {
        r for r, (_, bank) in RIVALS.items() if not bank
    }


def test_an_entry_point_names_a_method(json_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(axes, "entry_points", lambda group: {"ours": FUNCTION} if group == plugins.METHODS else {})
    cells, _ = build(STUDY.parse(["ours", "--dataset", str(json_path), "--backbones", "tiny_resnet", "--shots", "1"]))
    (row,) = {(c.variant, c.sample.function) for c in cells if isinstance(c, Cell) and c.backbone == OWN.name}
    assert row == ("ours", FUNCTION)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--annotations", "mask,doodle"], "unknown cue 'doodle'"),
        (["--shots", "0"], "0 shots go with annotation 'text'"),
        (["--shots", "1", "--folds", "7"], "has folds 0 to 1, not 7"),
        (["--shots", "1", "--backbones", "resnet5000"], "neither timm nor this package"),
    ],
)
def test_what_can_not_be_evaluated_is_named(json_path: Path, arguments: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        cells_of(json_path, *arguments)


def test_diffup_is_a_rival_where_the_folder_has_it_on_the_same_episodes(tmp_path: Path) -> None:
    sample = SampleConfig(method="adapter", function="mine:segment", function_version="1")
    own = replace(cell(method="prior_mean", backbone=OWN.name, weights=OWN.weights, variant="segment"), sample=sample)
    mine = [own, cell(method="prior_mean")]
    root = write_store(tmp_path, [*mine, cell(), cell(annotation="box")])
    (table,) = comparison(root, [one.key() for one in mine])
    assert [row.labels[1] for row in table.rows] == ["segment", "DiffUp", "prior mean"]
    for other in root.glob("*/result.json"):
        if other.parent.name == cell().key():
            other.write_text(other.read_text().replace('"m0"', '"other episodes"'))
    (table,) = comparison(root, [one.key() for one in mine])
    assert [row.labels[1] for row in table.rows] == ["segment", "prior mean"]


@pytest.mark.ray
@pytest.mark.slow
def test_modules_of_the_working_directory_run_in_workers(json_path: Path, tmp_path: Path) -> None:
    (tmp_path / "mine_7.py").write_text(METHOD)
    command = [
        sys.executable, str(ROOT / "experiments" / "evaluate_method.py"), "mine_7:middle", "--dataset", str(json_path),
        "--results", str(tmp_path / "results"), "--backbones", "mine_7:build", "--folds", "0", "--shots", "1",
        "--bank", "0", "--episodes", "6", "--max-concurrent", "1",
    ]  # fmt: skip
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {line.split("|")[2].strip(): line for line in done.stdout.splitlines() if line.startswith("|")}
    assert {"middle", "prototype", "INSID3's rule", "prior mean", "evidence"} <= set(rows)
    assert "| mine_7:build |" in done.stdout and "[" in rows["prototype"].split("|")[4]
