"""Cells that share queries and backbone in one pass: the same counts, shared work once, failures of their own."""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cluster.execution import inputs as opened
from cluster.execution import run_cell, worker
from cluster.execution.context import WorkContext
from cluster.execution.run_cell import Outcome, execute, execute_together
from cluster.execution.work_units import WorkUnit, pass_of
from cluster.storage.leases import acquire, held
from diffup.config import InputConfig, ModelConfig, TrainConfig
from diffup.evaluation import evaluate
from diffup.evaluation.priors import PriorSource
from diffup.grid.axes import PRIOR_MEAN, PROTOTYPE, Backbone, evaluation_cells, tasks, training_cell
from diffup.grid.cell import Cell
from diffup.grid.datasets import Data
from diffup.training.recipes import Recipe
from tests.helpers.toy import ToyBackbone, ToyDataset

pytestmark = pytest.mark.usefixtures("one_thread")
DATA = Data(name="toy", fingerprint=ToyDataset.fingerprint, folds=3)
INPUT = InputConfig(input_size=48, feature_grid=8)
TOY = Backbone(name="resnet18", weights="random:0")
COUNTS = ["episode", "query", "inter_fg", "union_fg", "inter_bg", "union_bg", "prob_sum", "std_wrong"]
RECIPE = Recipe(
    input=INPUT,
    model=ModelConfig(decoder_grid=16, width=16),
    train=TrainConfig(steps=2, batch_size=2, cue_weights=(1.0, 0.0, 0.0, 0.0)),
)
TRAINED = training_cell(DATA, 0, TOY, RECIPE)


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    made = ToyDataset()
    monkeypatch.setattr(opened, "_open", lambda path: made)
    monkeypatch.setattr(opened, "_backbone", lambda *where: ToyBackbone())
    opened._features.cache_clear()


def context(root: Path, **more: Any) -> WorkContext:
    return WorkContext(results=root, datasets={"toy": "nowhere"}, cache="none", batch_size=4, launch="test", **more)


def cells() -> list[Cell]:
    of = partial(evaluation_cells, DATA, 0, [TOY], config=INPUT, episodes=10)
    made = of(tasks((1, 3), ("mask", "box", "scribble")), trained=TRAINED)
    made += of(tasks((1, 3), ("mask", "box")), sample=PRIOR_MEAN)
    return made + of(tasks((1,), ("mask",)), sample=PROTOTYPE)


def table(outcome: Outcome | Exception) -> pd.DataFrame:
    assert isinstance(outcome, Outcome) and outcome.episodes is not None, outcome
    return outcome.episodes[COUNTS]


def test_a_pass_gives_the_counts_of_each_cell_alone_and_computes_what_is_shared_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(TRAINED, context(tmp_path))
    grid = cells()
    alone = {}
    for cell in grid:
        opened._features.cache_clear()
        alone[cell.key()] = execute(cell, context(tmp_path))
    opened._features.cache_clear()
    asked, honest = Counter[Any](), PriorSource.compute

    def compute(self: PriorSource, triples: Any) -> Any:
        for triple, maps in honest(self, triples):
            asked[triple] += 1
            yield triple, maps

    monkeypatch.setattr(PriorSource, "compute", compute)
    together = execute_together(grid, context(tmp_path))
    assert sorted(cell.key() for cell, _ in together) == sorted(alone)
    for cell, outcome in together:
        pd.testing.assert_frame_equal(table(outcome), table(alone[cell.key()]))
        assert isinstance(outcome, Outcome)
        for name in ("miou", "fb_iou"):
            assert outcome.metrics[name] == alone[cell.key()].metrics[name]
        assert outcome.metrics["seconds"] > 0 and outcome.metrics["peak_memory_mb"] > 1
    assert set(asked.values()) == {1}, "each triple once, those of the panels included"
    encoded = sum(o.provenance["images_encoded"] for _, o in together if isinstance(o, Outcome))
    assert encoded == max(o.provenance["images_encoded"] for o in alone.values())


def test_a_cell_that_raises_in_the_middle_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = [cell for cell in cells() if not cell.checkpoint]
    expected = {cell.key(): table(execute(cell, context(tmp_path))) for cell in grid}
    honest, bad = evaluate.batches, grid[1]

    def batches(what: Any, *args: Any, **more: Any) -> Any:
        for number, batch in enumerate(honest(what, *args, **more)):
            if number == 1 and (what.shots, what.annotation) == (bad.shots, bad.annotation):
                raise RuntimeError("in the middle")
            yield batch

    monkeypatch.setattr(run_cell, "batches", batches)
    units = [WorkUnit(cell) for cell in grid]
    assert worker.in_one_pass(units, context(tmp_path))
    done = worker.run_units(units, context(tmp_path))
    status = {outcome["key"]: outcome["status"] for outcome in done}
    assert status == {cell.key(): "failed" if cell == bad else "finished" for cell in grid}
    assert [outcome["key"] for outcome in done] == [cell.key() for cell in grid]
    store = context(tmp_path).store
    for cell in grid:
        if cell != bad:
            found = pd.read_parquet(store.folder(cell.key()) / "episodes.parquet")
            assert found["inter_fg"].tolist() == expected[cell.key()]["inter_fg"].tolist()
    assert "in the middle" in (store.folder(bad.key()) / "error.json").read_text()
    assert not held(store.leases)


def test_what_is_finished_or_run_elsewhere_is_left_out_of_a_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = [cell for cell in cells() if not cell.checkpoint]
    of = context(tmp_path)
    worker.run_unit(WorkUnit(grid[0]), of)
    lease = acquire(of.store.leases, grid[1].key(), "another launch")
    assert lease is not None
    ran: list[str] = []

    def together(found: list[Cell], context: WorkContext) -> Any:
        ran.extend(cell.key() for cell in found)
        return execute_together(found, context)

    done = worker.run_units(
        [WorkUnit(cell) for cell in grid],
        dataclasses.replace(of, work=dataclasses.replace(run_cell.CELLS, execute_together=together)),
    )
    assert [outcome["status"] for outcome in done] == ["finished", "elsewhere", *["finished"] * (len(grid) - 2)]
    assert ran == [cell.key() for cell in grid[2:]]
    lease.release()


def test_memory_that_is_too_small_for_a_pass_is_tried_cell_by_cell(tmp_path: Path) -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    grid = [cell for cell in cells() if not cell.checkpoint]

    def together(found: list[Cell], context: WorkContext) -> Any:
        return [(cell, OutOfMemoryError("full")) for cell in found]

    work = dataclasses.replace(run_cell.CELLS, execute_together=together)
    done = worker.run_units([WorkUnit(cell) for cell in grid], context(tmp_path, work=work))
    assert [outcome["status"] for outcome in done] == ["finished"] * len(grid)


def test_what_makes_a_pass() -> None:
    grid = [WorkUnit(cell) for cell in cells()]
    assert len({pass_of(unit) for unit in grid}) == 1
    first = grid[0].cell
    assert isinstance(first, Cell)
    others = [
        dataclasses.replace(first, fold=1),
        dataclasses.replace(first, backbone="resnet34"),
        dataclasses.replace(first, episode_seed=1),
        dataclasses.replace(first, input=dataclasses.replace(INPUT, input_size=64)),
    ]
    assert len({pass_of(WorkUnit(cell)) for cell in [first, *others]}) == 5
    assert pass_of(WorkUnit(TRAINED)) is None and pass_of(WorkUnit(first, 0, 5)) is None
    features = dataclasses.replace(context(Path("x")), cache="features")
    assert worker.in_one_pass(grid, context(Path("x"))) and not worker.in_one_pass(grid, features)
    assert not worker.in_one_pass(grid[:1], context(Path("x")))
