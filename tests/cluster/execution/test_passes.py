"""Cells that share queries and backbone in one pass: the same counts, shared work once, failures of their own."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cluster.execution import inputs as opened
from cluster.execution import run_cell, worker
from cluster.execution.context import WorkContext
from cluster.execution.run_cell import Outcome, Part, execute, execute_together
from cluster.execution.work_units import WorkUnit, parts_of, pass_of, work_units, write_part
from cluster.options import Work
from cluster.storage.leases import acquire, held
from diffup.config import InputConfig, ModelConfig, TrainConfig
from diffup.evaluation import evaluate
from diffup.evaluation.priors import PriorSource
from diffup.grid.axes import PRIOR_MEAN, PROTOTYPE, Backbone, evaluation_cells, tasks, training_cell
from diffup.grid.cell import Cell
from diffup.grid.datasets import Data
from diffup.training.recipes import Recipe
from tests.helpers.toy import ToyDataset

pytestmark = pytest.mark.usefixtures("one_thread", "toy")
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


def context(root: Path, **more: Any) -> WorkContext:
    return WorkContext(results=root, datasets={"toy": "nowhere"}, cache="none", batch_size=4, launch="test", **more)


def cells() -> list[Cell]:
    of = partial(evaluation_cells, DATA, 0, [TOY], config=INPUT, episodes=10)
    made = of(tasks((1, 3), ("mask", "box", "scribble")), trained=TRAINED)
    made += of(tasks((1, 3), ("mask", "box")), sample=PRIOR_MEAN)
    return made + of(tasks((1,), ("mask",)), sample=PROTOTYPE)


def run(units: Sequence[WorkUnit], of: WorkContext) -> dict[str, str]:
    """The status of each unit by its name."""
    return {unit.name: outcome["status"] for unit, outcome in worker.run_units(units, of)}


def work(together: Callable[..., Any]) -> Work:
    return dataclasses.replace(run_cell.CELLS, execute_together=together)


def table(outcome: Outcome | Part | Exception) -> pd.DataFrame:
    assert not isinstance(outcome, Exception) and outcome.episodes is not None, outcome
    return outcome.episodes[COUNTS]


def read_table(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "episodes.parquet")[COUNTS]


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
    together = list(execute_together(grid, context(tmp_path)))
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
    assert run(units, context(tmp_path)) == {cell.key(): "failed" if cell == bad else "finished" for cell in grid}
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

    def together(found: list[Cell], *how: Any) -> Any:
        ran.extend(cell.key() for cell in found)
        return execute_together(found, *how)

    done = run([WorkUnit(cell) for cell in grid], dataclasses.replace(of, work=work(together)))
    assert [done[cell.key()] for cell in grid] == ["finished", "elsewhere", *["finished"] * (len(grid) - 2)]
    assert ran == [cell.key() for cell in grid[2:]]
    lease.release()


def test_memory_that_is_too_small_for_a_pass_is_tried_cell_by_cell(tmp_path: Path) -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    grid = [cell for cell in cells() if not cell.checkpoint]

    def together(found: list[Cell], *how: Any) -> Any:
        return iter([(cell, OutOfMemoryError("full")) for cell in found])

    done = run([WorkUnit(cell) for cell in grid], context(tmp_path, work=work(together)))
    assert done == {cell.key(): "finished" for cell in grid}


def test_parts_of_one_range_in_one_pass_merge_to_what_one_unit_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = context(tmp_path, shard_episodes=4)
    execute(TRAINED, of)
    grid = cells()
    expected = {cell.key(): table(made) for cell, made in execute_together(grid, of)}
    asked, honest = Counter[Any](), PriorSource.compute

    def compute(self: PriorSource, triples: Any) -> Any:
        for triple, maps in honest(self, triples):
            asked[triple] += 1
            yield triple, maps

    for start, end in ((0, 4), (4, 8), (8, 10)):
        opened._features.cache_clear()
        asked.clear()
        units = [WorkUnit(cell, start, end) for cell in grid]
        assert worker.in_one_pass(units, of)
        with monkeypatch.context() as patch:
            patch.setattr(PriorSource, "compute", compute)
            patch.setattr(run_cell, "_panels", lambda *what: {})  # of all episodes, when a cell is concluded
            done = run(units, of)
        assert set(done.values()) == {"finished" if end == 10 else "part"}
        assert set(asked.values()) == {1}
    for cell in grid:
        found = of.store.folder(cell.key())
        pd.testing.assert_frame_equal(read_table(found), expected[cell.key()])
        assert not (found / "parts").exists()
        memory = of.store.read(cell.key()).metrics["peak_memory_mb"]
        assert memory is not None and memory > 1


def test_a_part_that_is_there_is_not_evaluated_again_and_one_that_raises_fails_its_cell_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = [cell for cell in cells() if not cell.checkpoint]
    there, bad = grid[0], grid[1]
    ran: list[tuple[str, int, int]] = []

    def together(found: list[Cell], context: WorkContext, start: int, end: int) -> Iterator[Any]:
        ran.extend((cell.key(), start, end) for cell in found)
        for cell, made in execute_together(found, context, start, end):
            yield cell, ValueError("on purpose") if (cell, start) == (bad, 4) else made

    of = context(tmp_path, shard_episodes=4, work=work(together))
    expected = {cell.key(): table(execute(cell, of)) for cell in grid}
    first = WorkUnit(there, 0, 4)
    write_part(first, run_cell.evaluate_part(there, of, 0, 4), of)
    assert run([WorkUnit(cell, 0, 4) for cell in grid], of) == {f"{cell.key()}@0": "part" for cell in grid}
    assert ran == [(cell.key(), 0, 4) for cell in grid[1:]]
    other = dataclasses.replace(of, batch_size=2)
    assert parts_of([first], of) is not None and parts_of([first], other) is None
    run([WorkUnit(cell, 8, 10) for cell in grid], of)
    done = run([WorkUnit(cell, 4, 8) for cell in grid], of)
    assert done == {f"{cell.key()}@4": "failed" if cell == bad else "finished" for cell in grid}
    for cell in grid:
        if cell != bad:
            pd.testing.assert_frame_equal(read_table(of.store.folder(cell.key())), expected[cell.key()])
    assert of.store.read(bad.key()).status == "failed"
    del ran[:]
    assert set(run(list(work_units([bad], 4, 4)), dataclasses.replace(of, work=None)).values()) == {"part", "finished"}
    pd.testing.assert_frame_equal(read_table(of.store.folder(bad.key())), expected[bad.key()])


def test_a_part_too_large_for_memory_is_tried_alone_with_half_the_batch(tmp_path: Path) -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    grid, batches_tried = [cell for cell in cells() if not cell.checkpoint][:3], []

    def together(found: list[Cell], *how: Any) -> Iterator[Any]:
        for cell, made in execute_together(found, *how):
            yield cell, OutOfMemoryError("full") if cell == grid[0] else made

    def alone(cell: Cell, context: WorkContext, *range: int) -> Any:
        batches_tried.append((cell, context.batch_size))
        if context.batch_size > 2:
            raise OutOfMemoryError("full")
        return run_cell.evaluate_part(cell, context, *range)

    of = context(tmp_path, shard_episodes=8, work=dataclasses.replace(work(together), evaluate_part=alone))
    for start, end in ((0, 8), (8, 10)):
        run([WorkUnit(cell, start, end) for cell in grid], of)
    assert batches_tried == [(grid[0], 4), (grid[0], 2)] * 2
    assert {of.store.read(cell.key()).status for cell in grid} == {"finished"}
    assert of.store.read(grid[0].key()).result["provenance"]["batch_size"] == 2


def test_a_result_of_a_pass_is_written_as_its_cell_ends_and_found_after_its_worker_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = [cell for cell in cells() if not cell.checkpoint]
    short = [dataclasses.replace(cell, episodes=4) for cell in long[:2]]
    evaluated, honest = Counter[int](), evaluate.batches

    def batches(what: Any, episodes: Sequence[Any], *args: Any, **more: Any) -> Any:
        for batch in honest(what, episodes, *args, **more):
            evaluated[len(episodes)] += len(batch)
            yield batch

    monkeypatch.setattr(run_cell, "batches", batches)
    of, units = context(tmp_path), [WorkUnit(cell) for cell in [*long, *short]]
    ended, going_on = {cell.key() for cell in short}, {cell.key() for cell in long}
    running = worker.run_units(units, of)
    assert {next(running)[0].name, next(running)[0].name} == ended
    assert evaluated == {4: 2 * 4, 10: len(long) * 8}, "the long cells have a batch to go"
    assert {key for key in of.store.cell_keys() if of.store.read(key).status == "finished"} == ended
    assert held(of.store.leases) == going_on
    running.close()  # what a worker that is stopped does; a killed one keeps its leases, which its launch may take
    assert not held(of.store.leases)
    evaluated.clear()
    assert set(run(units, of).values()) == {"finished"}
    assert evaluated == {10: len(long) * 10}


def test_a_worker_reports_each_unit_of_a_pass_once_as_it_ends(tmp_path: Path) -> None:
    grid = [cell for cell in cells() if not cell.checkpoint]
    of, units = context(tmp_path), [WorkUnit(cell) for cell in grid]
    note = tmp_path / "launches" / "test.json"
    note.parent.mkdir()
    note.write_text("{}")
    trial = worker.CellTrial.__new__(worker.CellTrial)
    trial.setup({"units": units, "context": of})
    first = trial.step()
    assert not first["done"] and held(of.store.leases) == {unit.name for unit in units} - {first["unit"]}
    trial.cleanup()
    assert not held(of.store.leases)
    trial.reset_config({"units": units, "context": of})
    results = [trial.step()]
    while not results[-1]["done"]:
        results.append(trial.step())
    assert results[0]["unit"] == first["unit"], "it is finished"
    assert sorted(result["unit"] for result in results) == sorted(unit.name for unit in units)
    assert {result["status"] for result in results} == {"finished"} and not held(of.store.leases)


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
    assert pass_of(WorkUnit(TRAINED)) is None
    ranges = [(0, 0), (0, 4), (4, 8), (0, 8)]
    assert len({pass_of(WorkUnit(cell, *part)) for part in ranges for cell in cells()}) == len(ranges)
    features = dataclasses.replace(context(Path("x")), cache="features")
    assert worker.in_one_pass(grid, context(Path("x"))) and not worker.in_one_pass(grid, features)
    assert not worker.in_one_pass(grid[:1], context(Path("x")))
