"""Progress of a launch, on the terminal and in its log: a line per cell, and a sign of life in between."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune

from cluster.execution.live import line_of
from cluster.execution.work_units import WorkUnit
from cluster.execution.worker import AGAIN, ATTEMPTS, ELSEWHERE, FAILED, PART
from cluster.planning.plan import clock
from cluster.storage.record import Record
from cluster.storage.results import Store
from diffup.grid.axes import describe
from diffup.grid.cell import AnyCell, Cell, TrainingCell

RATES = ("episodes", "images", "triples")
SHOWN = 3  # trainings in a line
SIGN_OF_LIFE = 30.0  # seconds of silence before one line about what runs
DIED = "its worker process died {} times (out of memory, or the node was lost)"


class Progress(tune.Callback):
    """Counts what ended and prints it.

    Attributes:
        finished, failed: keys of cells that ended here or, finished, elsewhere.
        done: number of ``"episodes"``, ``"images"`` and ``"triples"`` evaluated, encoded and matched in cells so far.
    """

    def __init__(
        self,
        cells: Sequence[AnyCell],
        expected: dict[str, float],
        slots: int,
        store: Store,
        log: Path | None = None,
    ) -> None:
        """Args: cells to run; expected seconds by key; trials at a time; where results are looked up; a log file."""
        self._store, self._log = store, log
        self._cells = {cell.key(): cell for cell in cells}
        self._expected, self._slots = expected, max(1, slots)
        self._began = self._spoke = time.monotonic()
        self._running: dict[str, float] = {}  # by trial id, when its current unit started
        self._to_come = [sum(expected.get(key, 0.0) for key in self._cells), float(len(self._cells))]
        self._behind = [0.0, 0.0]  # expected and real seconds of what ended
        self._seconds: dict[str, float] = {}
        self._ended: set[str] = set()
        self.finished: list[str] = []
        self.failed: list[str] = []
        self.crashed: dict[str, str] = {}
        self._told: set[str] = set()
        self.done: Counter[str] = Counter()
        self._busy: list[float] = []
        self.stopped = False

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial begins."""
        self.begin(trial.trial_id)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial's unit ended, well or not."""
        self.end(trial.trial_id, result)
        if not result.get("done"):
            self.begin(trial.trial_id)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended."""
        self._running.pop(trial.trial_id, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A worker process died; its units are scheduled again."""
        self._running.pop(trial.trial_id, None)
        if not self.stopped:
            self.say(f"the worker of {trial.trial_id} died; what it had not finished is scheduled again")

    def begin(self, trial: str) -> None:
        """A trial starts its next unit."""
        self._running[trial] = time.monotonic()

    def end(self, trial: str, result: dict[str, Any]) -> None:
        """A unit ended, as `cluster.execution.worker.run_unit` says."""
        key, status = str(result["key"]), result.get("status")
        took = float(result.get("took", time.monotonic() - self._running.pop(trial, time.monotonic())))
        self._seconds[key] = self._seconds.get(key, 0.0) + took
        what = describe(self._cells[key])
        if status == PART:
            self.done["episodes"] += int(result["episodes"])
            self.say(f"{what}: {result['episodes']} of {self._episodes(key)} episodes in {took:.1f} s")
        elif status in (ELSEWHERE, AGAIN):
            self._seconds.pop(key, None)
            if status == AGAIN and result["error"] not in self._told:
                self._told.add(str(result["error"]))
                self.say(f"{what}: not started, will be retried: {result['error']}")
        elif status == FAILED:
            self.fail(key, str(result.get("error", "no reason given")))
        elif self._finish(key):
            self.done.update({name: int(result.get(name, 0)) for name in RATES})
            self._busy += [float(result["busy"])] if result.get("busy") else []
            self.say(f"{what}: {result['headline']} in {took:.1f} s")

    def _finish(self, key: str) -> bool:
        """Count a cell as finished, once."""
        if not self._end(key):
            return False
        self.finished.append(key)
        return True

    def _end(self, key: str) -> bool:
        if key in self._ended:
            return False
        self._ended.add(key)
        expected = self._expected.get(key, 0.0)
        self._to_come = [self._to_come[0] - expected, self._to_come[1] - 1]
        if expected and self._seconds.get(key):
            self._behind = [self._behind[0] + expected, self._behind[1] + self._seconds[key]]
        return True

    def _episodes(self, key: str) -> int:
        cell = self._cells[key]
        return cell.episodes if isinstance(cell, Cell) else 0

    def found(self, unit: WorkUnit, record: Record) -> None:
        """Another launch finished a cell that waited here."""
        key = unit.cell.key()
        if self._finish(key):
            self.say(f"{describe(unit.cell)}: finished by another launch")

    def crash(self, unit: WorkUnit) -> None:
        """A unit's worker died too often."""
        key = unit.cell.key()
        if key in self._ended or self._store.read(key).status == "finished":
            return  # it died after its work was done
        self.crashed[key] = DIED.format(ATTEMPTS)
        self.fail(key, self.crashed[key])

    def fail(self, key: str, why: str) -> None:
        """A cell failed for good."""
        if self._end(key):
            self.failed.append(key)
            self.say(f"FAILED {key} {describe(self._cells[key])}: {why}")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called about ten times a second."""
        if time.monotonic() - self._spoke > SIGN_OF_LIFE:
            longest = max((time.monotonic() - since for since in self._running.values()), default=0.0)
            at = f"running, the longest for {clock(longest)}" if self._running else "waiting"
            self.say("; ".join(self._trainings()[:SHOWN]) or at)

    def _trainings(self) -> list[str]:
        """How far the trainings are that run here."""
        left = [c for key, c in self._cells.items() if isinstance(c, TrainingCell) and key not in self._ended]
        lines = ((cell, line_of(self._store.folder(cell.key()))) for cell in left)
        return [f"{describe(cell)}: {line}" for cell, line in lines if line]

    @property
    def seconds(self) -> float:
        """Seconds since the launch began to run cells."""
        return time.monotonic() - self._began

    def rates(self) -> dict[str, float]:
        """Episodes, images and triples per second of the launch, those of finished cells."""
        return {name: self.done[name] / max(self.seconds, 1e-9) for name in RATES if self.done[name]}

    def speed(self) -> list[str]:
        """Rates and busy share in words."""
        words = [f"{rate:.0f} {name}/s" for name, rate in self.rates().items() if rate >= 0.5]
        return words + ([f"{100 * self.busy_share():.0f} % busy"] if self.busy_share() else [])

    def busy_share(self) -> float:
        """How much of the time the devices computed, on average over finished cells; 0: unknown."""
        return sum(self._busy) / len(self._busy) if self._busy else 0.0

    def eta(self) -> float | None:
        """Seconds to go, from past cells scaled to what this launch takes, or from its own mean."""
        seconds, cells = self._to_come
        if self._behind[0] and len(self._expected) >= len(self._cells):
            return self._behind[1] / self._behind[0] * max(0.0, seconds) / self._slots
        if self._seconds:
            return sum(self._seconds.values()) / len(self._seconds) * cells / self._slots
        return None

    def say(self, what: str) -> None:
        """Print one line: how many cells have ended, what happened, and the figures."""
        self._spoke = time.monotonic()
        ended, eta = len(self.finished) + len(self.failed), self.eta()
        width = len(str(len(self._cells)))
        facts = [f"{len(self._running)} running"]
        if self.failed:
            facts.append(f"{len(self.failed)} failed")
        facts += self.speed()
        if eta is not None and ended < len(self._cells):
            facts.append(f"ETA {clock(eta)}")
        line = f"[{ended:{width}d}/{len(self._cells)} {clock(self.seconds)}] {what}  ({', '.join(facts)})"
        print(line, flush=True)
        sys.stdout.flush()
        if self._log is not None:
            try:
                with self._log.open("a", encoding="utf-8") as log:
                    log.write(line + "\n")
            except OSError:
                self._log = None  # a full disk must not end a launch
