"""Model selection sees no novel class, no other backbone, no input size of the training; its table pairs episodes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from analysis.results import load_results
from analysis.tables.table import Number
from diffup.config import InputConfig
from diffup.grid.axes import Backbone, evaluation_cells, training_cell
from diffup.grid.cell import AnyCell, Cell, TrainingCell
from diffup.grid.datasets import Data
from diffup.training.recipes import Recipe
from experiments import selection
from tests.helpers.stores import cell, write_store

DATA = Data(name="shapes4i", path=Path("/nowhere/dataset.json"), fingerprint="0" * 12)
SOURCE = Backbone(name="resnet50", weights="hub")


def grid(**changes: object) -> list[AnyCell]:
    return selection.grid(DATA, SOURCE, **{"folds": (0, 1), "episodes": 40, **changes})  # type: ignore[arg-type]


def evaluations(cells: list[AnyCell]) -> list[Cell]:
    return [cell for cell in cells if isinstance(cell, Cell)]


def test_the_grid_is_as_its_docstring_says() -> None:
    cells = grid(folds=range(4))
    training = [cell for cell in cells if isinstance(cell, TrainingCell)]
    assert Counter(cell.fold for cell in training) == dict.fromkeys(range(4), 4)
    assert Counter(cell.fold for cell in evaluations(cells)) == dict.fromkeys(range(4), 40)
    assert len({cell.key() for cell in cells}) == len(cells)
    assert {cell.checkpoint for cell in evaluations(cells)} - {""} == {cell.key() for cell in training}
    assert {cell.train.hold_out for cell in training} == {selection.HOLD_OUT}


def test_nothing_is_chosen_on_what_is_reported() -> None:
    cells = grid(seeds=(0, 1))
    sizes = {cell.input.input_size for cell in cells if isinstance(cell, TrainingCell)}
    for found in evaluations(cells):
        assert (found.classes, found.hold_out) == ("held_out", selection.HOLD_OUT)
        assert found.backbone == SOURCE.name
        assert found.input.input_size not in sizes
    seeds = Counter((found.variant, found.train_seed) for found in evaluations(cells))
    assert seeds["prior_mean", 0] == seeds["prior_mean", 1] == seeds["diffup", 0]


def test_a_checkpoint_that_holds_out_other_classes_is_refused() -> None:
    trained = training_cell(DATA, 0, SOURCE, Recipe(input=InputConfig()))
    with pytest.raises(ValueError, match="holds out 0 classes"):
        evaluation_cells(
            DATA, 0, [SOURCE], [(1, "mask")], config=InputConfig(), episodes=1, trained=trained, held_out=3
        )


def test_the_table_has_a_paired_difference_and_a_dash_for_what_is_missing(tmp_path: Path) -> None:
    cells = grid()
    asked = evaluations(cells)
    gap = next(found.key() for found in asked if found.variant == "longer" and found.annotation == "box")
    write_store(tmp_path, asked, missing=lambda found: found.key() == gap)
    table = selection.table(tmp_path, [found.key() for found in cells])
    rows = {row.labels[0]: row.entries for row in table.rows}
    assert list(rows) == ["DiffUp", "one-step decoder", "undistorted", "longer", "prior mean"]
    assert len(table.columns) == len(selection.TASKS) + 2
    box = [task for task in selection.TASKS].index((1, "box"))
    assert rows["longer"][box] is None and rows["longer"][-1] is None
    assert isinstance(rows["longer"][0], Number)
    assert rows["DiffUp"][-1] is None
    worse, mean, best = rows["prior mean"][-1], rows["prior mean"][-2], rows["DiffUp"][-2]
    assert isinstance(worse, Number) and isinstance(mean, Number) and isinstance(best, Number)
    assert worse.difference and worse.excludes_zero and worse.value < -5  # made 10 points worse
    assert worse.value == pytest.approx(mean.value - best.value)


def test_tables_of_results_leave_held_out_classes_out(tmp_path: Path) -> None:
    usual = cell()
    write_store(tmp_path, [usual, *evaluations(grid())])
    assert list(load_results(tmp_path).cells["key"]) == [usual.key()]
    assert usual.key() not in set(load_results(tmp_path, classes="held_out").cells["key"])


def test_without_a_finished_cell_there_is_no_table(tmp_path: Path) -> None:
    write_store(tmp_path, evaluations(grid()), missing=lambda found: True)
    with pytest.raises(ValueError, match="no cell on held-out classes is finished"):
        selection.table(tmp_path, [found.key() for found in grid()])
