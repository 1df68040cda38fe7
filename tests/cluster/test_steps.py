"""``--steps`` and ``--time-budget`` of any grid: in the identity of its trainings, and of what is evaluated of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.cli import GridOptions, run
from cluster.planning.rates import PACKAGED
from diffup.errors import UserError
from diffup.grid.axes import with_steps
from diffup.grid.cell import AnyCell, Cell, TrainingCell
from experiments import full_grid, mini_grid

SMALL = ["--train-backbone", "tiny_resnet", "--backbones", "tiny_resnet", "--shots", "1", "--folds", "0"]


def steps_of(cells: list[AnyCell]) -> set[int]:
    return {cell.train.steps for cell in cells if isinstance(cell, TrainingCell)}


def grid(json_path: Path, *more: str) -> list[AnyCell]:
    return mini_grid.STUDY.grid(mini_grid.STUDY.parse(["--dataset", str(json_path), *SMALL, *more]))[0]


def test_steps_change_trainings_and_name_their_checkpoints_anew(json_path: Path) -> None:
    plain, short = grid(json_path), grid(json_path, "--steps", "7")
    assert steps_of(plain) == {mini_grid.RECIPE.train.steps} and steps_of(short) == {7}
    trained = {cell.key() for cell in short if isinstance(cell, TrainingCell)}
    tested = [cell for cell in short if isinstance(cell, Cell)]
    assert {cell.checkpoint for cell in tested} == {*trained, ""}
    free = [cell.key() for cell in plain if isinstance(cell, Cell) and not cell.checkpoint]
    assert free and set(free) <= {cell.key() for cell in short}, "what isn't trained stays the same"
    assert with_steps(plain, lambda cell: cell.train.steps) == plain


def test_a_time_budget_is_a_number_of_steps_by_rates(json_path: Path, tmp_path: Path) -> None:
    (all_of_it,) = steps_of(grid(json_path, "--time-budget", "1e6"))
    (some,) = steps_of(grid(json_path, "--time-budget", "20"))
    (fewer,) = steps_of(grid(json_path, "--time-budget", "10"))
    assert all_of_it == mini_grid.RECIPE.train.steps > some > fewer > 1
    document = json.loads(PACKAGED.read_bytes())
    document["training"]["episodes_per_s"] *= 4
    (tmp_path / "rates.json").write_text(json.dumps(document))
    (faster,) = steps_of(grid(json_path, "--time-budget", "20", "--rates", str(tmp_path / "rates.json")))
    assert faster > some
    assert steps_of(grid(json_path, "--time-budget", "1e6", "--steps", "5")) == {5}


def test_what_cannot_be_is_one_line(json_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--dataset", str(json_path), "--dry-run"]
    assert run(mini_grid.STUDY, [*where, *SMALL, "--time-budget", "0.001"]) == 2
    assert "a step takes" in capsys.readouterr().err
    with pytest.raises(UserError, match="nothing is trained"):
        GridOptions(steps=5).paced([])


def test_the_grid_of_the_benchmarks_has_them_too() -> None:
    assert steps_of(full_grid.STUDY.grid(full_grid.STUDY.parse(["--steps", "3"]))[0]) == {3}
