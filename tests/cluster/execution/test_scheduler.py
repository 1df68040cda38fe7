"""Handing out units: order, training first, several small cells a trial, deaths, and what others are at."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.search import Searcher

from cluster.execution import scheduler as order
from cluster.execution.progress import Progress
from cluster.execution.scheduler import CellSearcher
from cluster.execution.work_units import WorkUnit, work_units
from cluster.planning.estimate import Past, gpu_share, wall_seconds
from cluster.storage.backend import Folder
from cluster.storage.leases import acquire
from cluster.storage.results import Store
from diffup.grid.axes import PRIOR_MEAN, Backbone, evaluation_cells, tasks, training_cell
from diffup.grid.cell import AnyCell, Cell, TrainingCell
from diffup.training.recipes import Recipe
from tests.cluster.planning.test_plan import DATA, INPUT, finish

BACKBONES = [Backbone(name=name, weights="random:0") for name in ("resnet18", "resnet34")]
TRAINED = training_cell(DATA, 0, BACKBONES[0], Recipe(input=INPUT))
KEEP: dict[str, Any] = {"config": INPUT, "episodes": 100}
NEEDY = evaluation_cells(DATA, 0, BACKBONES, tasks((1, 5), ("mask", "box")), trained=TRAINED, **KEEP)
FREE = evaluation_cells(DATA, 0, BACKBONES, tasks((1, 2, 3, 5), ("mask",)), sample=PRIOR_MEAN, **KEEP)


class Hands:
    """A searcher, and a Tune that runs what it is given as told."""

    def __init__(
        self, cells: list[AnyCell], root: Path, workers: int = 1, limit: int = 0, shard: int = 0, passes: bool = False
    ) -> None:
        self.store = Store(root)
        self.progress = Progress(cells, {}, workers, self.store)
        self.leases = Folder(root)
        self.searcher = CellSearcher(
            list(work_units(cells, shard, 8)), progress=self.progress, store=self.store, leases=self.leases,
            workers=workers, max_concurrent=limit, passes=passes,
        )  # fmt: skip
        self.count = 0

    def take(self) -> tuple[str, list[WorkUnit]] | str | None:
        self.count += 1
        given = self.searcher.suggest(str(self.count))
        if given is None or given == Searcher.FINISHED:
            return given
        assert isinstance(given, dict)
        return str(self.count), given["units"]

    def done(self, trial: str, unit: WorkUnit, status: str = "finished", took: float = 0.1, last: bool = True) -> None:
        result = {"unit": unit.name, "key": unit.cell.key(), "status": status, "took": took}
        if last:
            self.searcher.on_trial_complete(trial, result)
        else:
            self.searcher.on_trial_result(trial, result)


def run_all(hands: Hands) -> list[list[str]]:
    trials = []
    while (given := hands.take()) is not None and not isinstance(given, str):
        trial, bundle = given
        trials.append([unit.name for unit in bundle])
        for unit in bundle:
            hands.done(trial, unit, last=unit is bundle[-1])
    assert given == Searcher.FINISHED
    return trials


def test_each_piece_once_training_before_what_needs_it_and_small_ones_together(tmp_path: Path) -> None:
    cells: list[AnyCell] = [TRAINED, *FREE, *NEEDY]
    trials = run_all(Hands(cells, tmp_path))
    flat = [name for trial in trials for name in trial]
    assert sorted(flat) == sorted(cell.key() for cell in cells)
    assert len(trials) < len(cells) and trials[0] == [TRAINED.key()]
    by_key = {cell.key(): cell for cell in cells}
    assert all(len({by_key[name].backbone for name in trial}) == 1 for trial in trials)


def test_evaluation_waits_for_its_checkpoint_but_nothing_else_does(tmp_path: Path) -> None:
    hands = Hands([TRAINED, *NEEDY, *FREE], tmp_path, workers=2)
    first, second = hands.take(), hands.take()
    assert isinstance(first, tuple) and isinstance(second, tuple)
    assert first[1][0].cell == TRAINED and isinstance(second[1][0].cell, Cell) and not second[1][0].cell.checkpoint
    hands.done(first[0], first[1][0])
    third = hands.take()
    assert isinstance(third, tuple) and isinstance(third[1][0].cell, Cell) and third[1][0].cell.checkpoint


def test_cells_of_a_failed_training_are_dropped(tmp_path: Path) -> None:
    hands = Hands([TRAINED, *NEEDY], tmp_path)
    given = hands.take()
    assert isinstance(given, tuple)
    hands.done(given[0], given[1][0], status="failed")
    assert hands.take() == Searcher.FINISHED
    assert sorted(hands.searcher.dropped) == sorted(cell.key() for cell in NEEDY)


def test_a_dead_workers_pieces_come_again_one_by_one_and_at_last_fail_alone(tmp_path: Path) -> None:
    hands = Hands(list(FREE), tmp_path)
    given = hands.take()
    assert isinstance(given, tuple)
    hands.done(given[0], given[1][0])  # now the mean is known, and trials have several
    given = hands.take()
    assert isinstance(given, tuple) and len(given[1]) > 1
    bad, others = given[1][0], given[1][1:]
    hands.searcher.on_trial_complete(given[0], error=True)
    seen = []
    for _ in range(len(others) + 2):
        again = hands.take()
        assert isinstance(again, tuple) and len(again[1]) == 1
        seen.append(again[1][0].name)
        if again[1][0].name == bad.name:
            hands.searcher.on_trial_complete(again[0], error=True)
        else:
            hands.done(again[0], again[1][0])
    assert sorted(seen) == sorted([bad.name] * 2 + [unit.name for unit in others])
    assert hands.progress.failed == [bad.name]
    run_all(hands)


def test_a_trial_gets_a_pass_or_a_workers_share_of_it_but_never_ahead_of_a_training(tmp_path: Path) -> None:
    cells: list[AnyCell] = [TRAINED, *FREE, *NEEDY]
    one = run_all(Hands(cells, tmp_path, passes=True))
    assert one[0] == [TRAINED.key()] and sorted(len(trial) for trial in one[1:]) == [8, 8]
    by_key = {cell.key(): cell for cell in cells}
    assert all(len({by_key[name].backbone for name in trial}) == 1 for trial in one)
    shared = run_all(Hands(cells, tmp_path, workers=3, passes=True))
    assert {len(trial) for trial in shared[1:3]} == {4}  # two passes, three workers: half a pass for each
    assert sorted(name for trial in shared for name in trial) == sorted(by_key)


def test_parts_of_one_range_go_to_one_trial(tmp_path: Path) -> None:
    trials = run_all(Hands(list(FREE), tmp_path, shard=48, passes=True))
    assert len(trials) == 2 * 3 and {len(trial) for trial in trials} == {4}
    assert all(len({name.partition("@")[2] for name in trial}) == 1 for trial in trials)


def test_what_another_driver_is_at_waits_and_what_it_finished_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "LOOK", 0.0)
    theirs, mine = FREE[0], FREE[1]
    lease = acquire(Folder(tmp_path), theirs.key(), "another")
    assert lease is not None
    hands = Hands([theirs, mine], tmp_path)
    given = hands.take()
    assert isinstance(given, tuple) and given[1][0].cell == mine
    hands.done(given[0], given[1][0])
    assert hands.take() is None
    finish(hands.store, theirs)
    lease.release()
    assert hands.take() == Searcher.FINISHED
    assert hands.progress.finished == [theirs.key()]


def test_a_worker_that_finds_a_cell_taken_gives_it_back(tmp_path: Path) -> None:
    hands = Hands([FREE[0]], tmp_path)
    given = hands.take()
    assert isinstance(given, tuple)
    hands.done(given[0], given[1][0], status="elsewhere")
    assert hands.take() is None  # until the next look
    hands.searcher._state.looked = 0.0
    assert isinstance(hands.take(), tuple)


def test_no_more_at_a_time_than_allowed(tmp_path: Path) -> None:
    hands = Hands(list(FREE), tmp_path, workers=4, limit=2)
    first, second = hands.take(), hands.take()
    assert isinstance(first, tuple) and isinstance(second, tuple) and hands.take() is None
    hands.done(first[0], first[1][0])
    assert isinstance(hands.take(), tuple)


@given(st.integers(1, 400), st.integers(0, 150), st.integers(1, 16))
def test_parts_cover_a_cell_in_whole_batches(episodes: int, shard: int, batch: int) -> None:
    cell = evaluation_cells(DATA, 0, BACKBONES[:1], [(1, "mask")], config=INPUT, episodes=episodes, sample=PRIOR_MEAN)[
        0
    ]
    made = list(work_units([cell], shard, batch))
    if len(made) == 1:
        assert made[0].whole
        return
    assert [unit.start for unit in made[1:]] == [unit.end for unit in made[:-1]]
    assert (made[0].start, made[-1].end) == (0, episodes)
    assert all(unit.start % batch == 0 for unit in made)
    assert all(unit.end - unit.start < shard + batch for unit in made)
    assert abs(sum(unit.share for unit in made) - 1) < 1e-9
    assert pickle.loads(pickle.dumps(made)) == made


def test_wall_time_of_a_plan(tmp_path: Path) -> None:
    cells: list[AnyCell] = [TRAINED, *FREE, *NEEDY]
    seconds = {cell.key(): 100.0 if isinstance(cell, TrainingCell) else 10.0 for cell in cells}
    assert wall_seconds(cells, seconds, 1) == 100 + 160
    assert wall_seconds(cells, seconds, 2) == 140  # 8 beside the training, 8 shared after it
    assert wall_seconds(cells, seconds, 100) == 110
    assert wall_seconds([], {}, 3) == 0


def test_share_of_a_gpu_by_what_cells_took() -> None:
    def past(mb: float) -> list[Past]:
        return [Past(seconds=1, memory_mb=1, gpu_memory_mb=mb, amount=1)]

    assert [gpu_share(past(mb), 80_000) for mb in (0, 70_000, 30_000, 9_000, 10)] == [1.0, 1.0, 0.5, 1 / 7, 1 / 8]
    assert gpu_share([], 80_000) == gpu_share(past(100), 0) == 1.0


def test_a_piece_that_could_not_begin_waits_for_another_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(order, "REFUSALS", 3)
    hands = Hands([FREE[0]], tmp_path)
    for turn in range(3):
        given = hands.take()
        assert isinstance(given, tuple), turn
        trial, (unit,) = given
        result = {"unit": unit.name, "key": unit.cell.key(), "status": "again", "took": 5.0, "error": "no mount"}
        hands.progress.begin(trial)
        hands.progress.end(trial, result)
        hands.searcher.on_trial_complete(trial, result)
    assert hands.take() == Searcher.FINISHED
    assert hands.progress.failed == [FREE[0].key()] and not hands.progress.crashed
    said = capsys.readouterr().out
    assert said.count("not started, will be retried: no mount") == 1 and "FAILED" in said


def test_a_worker_that_goes_with_its_node_is_not_held_against_its_piece(tmp_path: Path) -> None:
    hands = Hands([FREE[0]], tmp_path)
    alive = {"head", "spot 0"}
    hands.searcher._nodes = lambda: set(alive)
    for number in range(10):
        given = hands.take()
        assert isinstance(given, tuple), number
        alive.discard(f"spot {number}")
        alive.add(f"spot {number + 1}")
        hands.searcher.on_trial_complete(given[0], error=True)
    for _ in range(3):  # on a node that stays, it is the unit's own doing
        given = hands.take()
        assert isinstance(given, tuple)
        hands.searcher.on_trial_complete(given[0], error=True)
    assert hands.take() == Searcher.FINISHED and list(hands.progress.crashed) == [FREE[0].key()]


def test_what_others_hold_stays_as_last_seen_while_the_place_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(place: object) -> set[str]:
        raise OSError("away")

    monkeypatch.setattr(order, "held", away)
    assert isinstance(Hands([FREE[0]], tmp_path).take(), tuple)
