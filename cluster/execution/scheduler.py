"""Schedules work units, as a Ray Tune searcher: in order, after the training they need, and not those that other
launches are running.

A trial gets several small cells at once, as many as take about `BUNDLE` seconds by the mean of the cells so far, since
starting a trial costs more than running such a cell. Each cell of a trial still fails alone; when a worker dies, those
that it had not finished are scheduled again, one per trial. Where cells are evaluated in passes, a trial gets those of
one pass (`cluster.execution.work_units.pass_of`), but no more than leaves every worker something to do.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ray.tune.search import Searcher

from cluster.execution.progress import Progress
from cluster.execution.work_units import WorkUnit, pass_of
from cluster.execution.worker import AGAIN, ATTEMPTS, ELSEWHERE, FINISHED, LOOK, PART, REFUSALS
from cluster.storage.backend import Backend
from cluster.storage.leases import held
from cluster.storage.results import Store
from diffup.grid.cell import Cell, TrainingCell

BUNDLE = 5.0  # seconds of work that a trial should have at least
MOST = 32  # units per trial
SEEN = 1000  # units that wait among which those of a pass are looked for
LOSSES = 20  # nodes that may be lost while they run a unit
SMOOTHING = 8  # number of units that the running mean of seconds is over


@dataclass
class _State:
    """State of the units."""

    waiting: dict[str, WorkUnit]  # by name, in order
    again: dict[str, WorkUnit] = field(default_factory=dict)  # of workers that died
    given: dict[str, list[WorkUnit]] = field(default_factory=dict)  # by trial id, units not yet done
    attempts: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)  # times that a unit could not begin
    nodes: dict[str, set[str]] = field(default_factory=dict)  # by trial id, nodes that were alive when it started
    untrained: set[str] = field(default_factory=set)  # keys of training cells that are not finished
    elsewhere: set[str] = field(default_factory=set)  # names of units that other launches hold
    looked: float = float("-inf")
    mean: float = 0.0  # seconds per unit
    stalled: bool = False  # nothing that waits can be scheduled until something changes

    def left(self) -> bool:
        """Whether anything is waiting or at work."""
        return bool(self.waiting or self.again or any(self.given.values()))


class CellSearcher(Searcher):
    """Schedules units.

    Attributes:
        dropped: keys of cells that never ran because their training failed.
    """

    def __init__(
        self,
        units: Sequence[WorkUnit],
        *,
        progress: Progress,
        store: Store,
        leases: Backend,
        workers: int,
        max_concurrent: int = 0,
        stopping: Callable[[], bool] = lambda: False,
        nodes: Callable[[], set[str]] = set,
        passes: bool = False,
    ) -> None:
        """Args:
        units: in order.
        progress: is notified of what other launches finished, and of units whose workers died too often.
        store: where results appear.
        leases: what other launches are running.
        workers: trials at a time.
        max_concurrent: the same as a limit; 0: none.
        stopping: whether nothing more is to start.
        nodes: the cluster's nodes that are alive; the death of a worker with its node doesn't count as the unit's.
        passes: whether workers evaluate the cells of a pass together.
        """
        super().__init__()
        self._progress, self._store, self._leases = progress, store, leases
        self._workers, self._limit, self._stopping = max(1, workers), max_concurrent, stopping
        self._nodes, self._passes = nodes, passes
        self._state = _State(waiting={unit.name: unit for unit in units})
        self._state.untrained = {unit.cell.key() for unit in units if isinstance(unit.cell, TrainingCell)}
        self.dropped: list[str] = []

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next trial's units; None: nothing at the moment; FINISHED: nothing any more."""
        state = self._state
        if self._stopping() or not state.left():
            return str(Searcher.FINISHED)
        if self._limit and sum(bool(units) for units in state.given.values()) >= self._limit:
            return None
        self._look()
        bundle = [] if state.stalled else self._bundle()
        if not bundle:
            state.stalled = True
            return None if state.left() else str(Searcher.FINISHED)
        state.given[trial_id] = bundle
        state.nodes[trial_id] = self._nodes()
        kind = "train" if isinstance(bundle[0].cell, TrainingCell) else "evaluate"
        return {"units": list(bundle), "kind": kind}

    def _bundle(self) -> list[WorkUnit]:
        state = self._state
        for name, unit in state.again.items():
            if self._ready(unit):
                del state.again[name]
                return [unit]
        ready = (unit for unit in state.waiting.values() if self._ready(unit))
        bundle = self._pass(list(islice(ready, SEEN))) if self._passes else []
        for unit in [] if bundle else filter(self._ready, state.waiting.values()):
            if bundle and not _alike(bundle[0], unit):
                break
            bundle.append(unit)
            if len(bundle) >= self._size():
                break
        for unit in bundle:
            del state.waiting[unit.name]
        return bundle

    def _pass(self, ready: Sequence[WorkUnit]) -> list[WorkUnit]:
        """Units of the first unit's pass, or the share of it that is one worker's."""
        passes: dict[object, list[WorkUnit]] = {}
        for unit in ready:
            passes.setdefault(pass_of(unit), []).append(unit)
        if not ready or pass_of(ready[0]) is None:  # such as a training, which others wait for
            return []
        passes.pop(None, None)
        mates, sharing = passes[pass_of(ready[0])], math.ceil(self._workers / len(passes))
        return mates[: min(MOST, math.ceil(len(mates) / sharing))]

    def _size(self) -> int:
        """Work units a trial: `BUNDLE` seconds of work, but no more than leaves every worker something to do."""
        state = self._state
        if not state.mean:
            return 1
        return max(1, min(MOST, int(BUNDLE / state.mean), len(state.waiting) // (2 * self._workers)))

    def _ready(self, unit: WorkUnit) -> bool:
        waits = isinstance(unit.cell, Cell) and unit.cell.checkpoint in self._state.untrained
        return not waits and unit.name not in self._state.elsewhere

    def _look(self) -> None:
        """See what other launches hold, and which of the units that wait here they have finished."""
        state = self._state
        if time.monotonic() - state.looked < LOOK:
            return
        state.looked = time.monotonic()
        with contextlib.suppress(OSError):  # storage unavailable: the last look stands
            self._see()

    def _see(self) -> None:
        state = self._state
        ours = {unit.name for units in state.given.values() for unit in units}
        before, state.elsewhere = state.elsewhere, held(self._leases) - ours
        state.stalled &= before == state.elsewhere
        for name in before | state.elsewhere:
            unit = state.waiting.get(name) or state.again.get(name)
            if unit is None:
                continue
            self._store.update([unit.cell.key()])
            record = self._store.read(unit.cell.key(), verify=False)
            if record.status == "finished":
                self._progress.found(unit, record)
                state.waiting.pop(name, None)
                state.again.pop(name, None)
                self._training_ended(unit, finished=True)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A unit ended. (Tune passes a trial's last result to `on_trial_complete`.)"""
        self._ended(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial ended, or its worker died."""
        if result and not error:
            self._ended(trial_id, result)
        left = self._state.given.pop(trial_id, [])
        before = self._state.nodes.pop(trial_id, set())
        self._state.stalled = False
        if not left or self._stopping():
            return
        first, *others = left  # the others were not even begun, or are of its pass
        lost = bool(before - self._nodes())
        attempts, most = (self._state.refused, LOSSES) if lost else (self._state.attempts, ATTEMPTS)
        attempts[first.name] = attempts.get(first.name, 0) + 1
        if attempts[first.name] >= most:
            self._progress.crash(first)
            self._training_ended(first, finished=False)
            left = others
        self._state.again |= {unit.name: unit for unit in left}

    def _ended(self, trial_id: str, result: dict[str, Any]) -> None:
        state = self._state
        units = state.given.get(trial_id, [])
        done = [unit for unit in units if unit.name == result.get("unit")]
        if not done:
            return  # known already
        units.remove(done[0])
        state.stalled = False
        if result["status"] == AGAIN:
            self._again(done[0], str(result["error"]))
            return
        if result["status"] == ELSEWHERE:
            state.elsewhere.add(done[0].name)
            state.waiting[done[0].name] = done[0]
            return
        took = float(result["took"])
        state.mean = took if not state.mean else state.mean + (took - state.mean) / SMOOTHING
        if result["status"] != PART:
            self._training_ended(done[0], finished=result["status"] == FINISHED)

    def _again(self, unit: WorkUnit, why: str) -> None:
        """A unit could not start: it waits for another turn, up to `REFUSALS` times."""
        state = self._state
        state.refused[unit.name] = state.refused.get(unit.name, 0) + 1
        if state.refused[unit.name] < REFUSALS:
            state.waiting[unit.name] = unit
        else:
            self._progress.fail(unit.cell.key(), why)
            self._training_ended(unit, finished=False)

    def _training_ended(self, unit: WorkUnit, *, finished: bool) -> None:
        """Release the cells that waited for a checkpoint, or drop them if there is none."""
        state, key = self._state, unit.cell.key()
        if key not in state.untrained:
            return
        state.untrained.discard(key)
        state.stalled = False
        if not finished:
            lost = [n for n, p in state.waiting.items() if isinstance(p.cell, Cell) and p.cell.checkpoint == key]
            self.dropped += dict.fromkeys(state.waiting.pop(name).cell.key() for name in lost)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: a launch is resumed from the result store, never from Tune's state."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""


def _alike(one: WorkUnit, other: WorkUnit) -> bool:
    """Whether two units belong in one trial: same resources, same models and features."""
    if isinstance(one.cell, TrainingCell) or isinstance(other.cell, TrainingCell):
        return False
    return (one.cell.backbone, one.cell.dataset) == (other.cell.backbone, other.cell.dataset)
