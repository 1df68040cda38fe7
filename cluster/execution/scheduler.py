"""Which pieces are next, as a Ray Tune searcher: in order, after the training they need, and not what others are at.

A trial is given several small cells at once, as many as take about `BUNDLE` seconds by what cells have taken so far:
starting a trial costs more than such a cell. Each cell of a trial still fails alone; when a worker dies, those that
were not yet done are handed out again, one a trial.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.tune.search import Searcher

from cluster.execution.progress import Progress
from cluster.execution.work_units import Piece
from cluster.execution.worker import AGAIN, ATTEMPTS, ELSEWHERE, FINISHED, LOOK, PART, REFUSALS
from cluster.storage.backend import Backend
from cluster.storage.leases import held
from cluster.storage.results import Store
from diffup.grid.cell import Cell, TrainingCell

BUNDLE = 5.0  # seconds of work that a trial should have at least
MOST = 32  # pieces a trial
LOSSES = 20  # nodes that may be lost under a piece
SMOOTHING = 8  # cells that the running mean goes back


@dataclass
class _State:
    """What is known of the pieces."""

    waiting: dict[str, Piece]  # by name, in order
    again: dict[str, Piece] = field(default_factory=dict)  # of workers that died
    given: dict[str, list[Piece]] = field(default_factory=dict)  # trial id → pieces not yet done
    attempts: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)  # times that a piece could not begin
    nodes: dict[str, set[str]] = field(default_factory=dict)  # trial id → nodes that were alive when it was given out
    untrained: set[str] = field(default_factory=set)  # keys of training cells that are not finished
    elsewhere: set[str] = field(default_factory=set)  # names of pieces that other drivers hold
    looked: float = float("-inf")
    mean: float = 0.0  # seconds a piece
    stalled: bool = False  # nothing waiting can be handed out until something happens

    def left(self) -> bool:
        """Whether anything is waiting or at work."""
        return bool(self.waiting or self.again or any(self.given.values()))


class CellSearcher(Searcher):
    """Hands out pieces.

    Attributes:
        dropped: keys of cells that never ran because their training failed.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        *,
        progress: Progress,
        store: Store,
        leases: Backend,
        workers: int,
        max_concurrent: int = 0,
        stopping: Callable[[], bool] = lambda: False,
        nodes: Callable[[], set[str]] = set,
    ) -> None:
        """Take pieces.

        Args:
            pieces: in order.
            progress: is told what others finished, and what died too often.
            store: where results appear.
            leases: where other drivers say what they are at.
            workers: trials at a time.
            max_concurrent: the same as a limit; 0 = none.
            stopping: whether nothing more is to be handed out.
            nodes: those of the cluster that are alive; a worker that dies with its node is not held against a piece.
        """
        super().__init__()
        self._progress, self._store, self._leases = progress, store, leases
        self._workers, self._limit, self._stopping = max(1, workers), max_concurrent, stopping
        self._nodes = nodes
        self._state = _State(waiting={piece.name: piece for piece in pieces})
        self._state.untrained = {piece.cell.key() for piece in pieces if isinstance(piece.cell, TrainingCell)}
        self.dropped: list[str] = []

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next trial's pieces; None: nothing at the moment; FINISHED: nothing any more."""
        state = self._state
        if self._stopping() or not state.left():
            return str(Searcher.FINISHED)
        if self._limit and sum(bool(pieces) for pieces in state.given.values()) >= self._limit:
            return None
        self._look()
        bundle = [] if state.stalled else self._bundle()
        if not bundle:
            state.stalled = True
            return None if state.left() else str(Searcher.FINISHED)
        state.given[trial_id] = bundle
        state.nodes[trial_id] = self._nodes()
        kind = "train" if isinstance(bundle[0].cell, TrainingCell) else "evaluate"
        return {"pieces": json.dumps([piece.to_dict() for piece in bundle]), "kind": kind}

    def _bundle(self) -> list[Piece]:
        state = self._state
        for name, piece in state.again.items():
            if self._ready(piece):
                del state.again[name]
                return [piece]
        bundle: list[Piece] = []
        for piece in state.waiting.values():
            if not self._ready(piece):
                continue
            if bundle and not _alike(bundle[0], piece):
                break
            bundle.append(piece)
            if len(bundle) >= self._size():
                break
        for piece in bundle:
            del state.waiting[piece.name]
        return bundle

    def _size(self) -> int:
        """Pieces a trial: `BUNDLE` seconds of work, but no more than leaves every worker something to do."""
        state = self._state
        if not state.mean:
            return 1
        return max(1, min(MOST, int(BUNDLE / state.mean), len(state.waiting) // (2 * self._workers)))

    def _ready(self, piece: Piece) -> bool:
        waits = isinstance(piece.cell, Cell) and piece.cell.checkpoint in self._state.untrained
        return not waits and piece.name not in self._state.elsewhere

    def _look(self) -> None:
        """See what other drivers hold, and what they have finished of what waits here."""
        state = self._state
        if time.monotonic() - state.looked < LOOK:
            return
        state.looked = time.monotonic()
        with contextlib.suppress(OSError):  # what all share is away: then as it was when last looked at
            self._see()

    def _see(self) -> None:
        state = self._state
        ours = {piece.name for pieces in state.given.values() for piece in pieces}
        before, state.elsewhere = state.elsewhere, held(self._leases) - ours
        state.stalled &= before == state.elsewhere
        for name in before | state.elsewhere:
            piece = state.waiting.get(name) or state.again.get(name)
            if piece is None:
                continue
            self._store.update([piece.cell.key()])
            record = self._store.read(piece.cell.key(), verify=False)
            if record.status == "finished":
                self._progress.found(piece, record)
                state.waiting.pop(name, None)
                state.again.pop(name, None)
                self._training_ended(piece, finished=True)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A piece ended. (Tune tells of a trial's last result in `on_trial_complete`.)"""
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
        first, *others = left  # the others were not even begun
        lost = bool(before - self._nodes())
        attempts, most = (self._state.refused, LOSSES) if lost else (self._state.attempts, ATTEMPTS)
        attempts[first.name] = attempts.get(first.name, 0) + 1
        if attempts[first.name] >= most:
            self._progress.crash(first)
            self._training_ended(first, finished=False)
            left = others
        self._state.again |= {piece.name: piece for piece in left}

    def _ended(self, trial_id: str, result: dict[str, Any]) -> None:
        state = self._state
        pieces = state.given.get(trial_id, [])
        done = [piece for piece in pieces if piece.name == result.get("piece")]
        if not done:
            return  # told before
        pieces.remove(done[0])
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

    def _again(self, piece: Piece, why: str) -> None:
        """A piece could not begin: it waits for another turn, so many times."""
        state = self._state
        state.refused[piece.name] = state.refused.get(piece.name, 0) + 1
        if state.refused[piece.name] < REFUSALS:
            state.waiting[piece.name] = piece
        else:
            self._progress.fail(piece.cell.key(), why)
            self._training_ended(piece, finished=False)

    def _training_ended(self, piece: Piece, *, finished: bool) -> None:
        """Release the cells that waited for a checkpoint, or drop them if there is none."""
        state, key = self._state, piece.cell.key()
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


def _alike(one: Piece, other: Piece) -> bool:
    """Whether two pieces belong in one trial: same resources, same models and features."""
    if isinstance(one.cell, TrainingCell) or isinstance(other.cell, TrainingCell):
        return False
    return (one.cell.backbone, one.cell.dataset) == (other.cell.backbone, other.cell.dataset)
