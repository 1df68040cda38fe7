"""What a launch says while it runs: a line for each cell that ends, and a sign of life in between."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from ray import tune

from cluster.plan import clock
from cluster.store import Store
from experiments.cell import AnyCell
from experiments.grids import describe

SIGN_OF_LIFE = 30.0  # seconds of silence before one line about what runs


class Progress(tune.Callback):
    """Counts what ended and prints it.

    Attributes:
        finished, failed: keys of cells that ended.
        episodes: number of episodes evaluated so far.
    """

    def __init__(self, cells: Sequence[AnyCell], expected: dict[str, float], slots: int, store: Store) -> None:
        """Args: cells to run; expected seconds by key; trials at a time; where results are looked up."""
        self._store = store
        self._cells = {cell.key(): cell for cell in cells}
        self._expected, self._slots = expected, max(1, slots)
        self._began = self._spoke = time.monotonic()
        self._running: dict[str, float] = {}
        self._seconds: dict[str, float] = {}
        self.finished: list[str] = []
        self.failed: list[str] = []
        self.crashed: dict[str, str] = {}
        self.episodes = 0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's cell begins."""
        self.begin(trial.config["cell"]["key"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial's cell ended, well or not."""
        self.end(trial.config["cell"]["key"], result)

    def begin(self, key: str) -> None:
        """A cell begins."""
        self._running[key] = time.monotonic()

    def end(self, key: str, result: dict[str, Any]) -> None:
        """A cell ended, as `cluster.trial.run_cell` says."""
        what = describe(self._cells[key])
        self._seconds[key] = time.monotonic() - self._running.pop(key, time.monotonic())
        if result.get("status") == "finished":
            self.finished.append(key)
            self.episodes += int(result["episodes"])
            self._say(f"{what}: {result['headline']} in {self._seconds[key]:.1f} s")
        else:
            self.failed.append(key)
            self._say(f"FAILED {key} {what}: {result.get('error', 'no reason given')}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The worker process died, also on the second attempt."""
        key = trial.config["cell"]["key"]
        self._running.pop(key, None)
        if key in self.finished or self._store.read(key).status == "finished":
            return  # it died after its work was done
        self.failed.append(key)
        self.crashed[key] = "the worker process died twice (out of memory?)"
        self._say(f"FAILED {key} {describe(self._cells[key])}: {self.crashed[key]}")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called about ten times a second."""
        if self._running and time.monotonic() - self._spoke > SIGN_OF_LIFE:
            key, since = next(iter(self._running.items()))
            more = f" and {len(self._running) - 1} more" if len(self._running) > 1 else ""
            self._say(f"running {describe(self._cells[key])} for {clock(time.monotonic() - since)}{more}")

    @property
    def seconds(self) -> float:
        """Seconds since the launch began to run cells."""
        return time.monotonic() - self._began

    def eta(self) -> float | None:
        """Seconds to go, from past cells scaled to what this launch takes, or from its own mean."""
        left = [key for key in self._cells if key not in self._seconds and key not in self.failed]
        known = [key for key in self._seconds if key in self._expected]
        if known and all(key in self._expected for key in left):
            scale = sum(self._seconds[key] for key in known) / max(1e-9, sum(self._expected[key] for key in known))
            return scale * sum(self._expected[key] for key in left) / self._slots
        if self._seconds:
            return sum(self._seconds.values()) / len(self._seconds) * len(left) / self._slots
        return None

    def _say(self, what: str) -> None:
        self._spoke = time.monotonic()
        ended, eta = len(self.finished) + len(self.failed), self.eta()
        width = len(str(len(self._cells)))
        facts = [f"{len(self._running)} running"]
        if self.failed:
            facts.append(f"{len(self.failed)} failed")
        if self.episodes:
            facts.append(f"{self.episodes / self.seconds:.0f} episodes/s")
        if eta is not None and ended < len(self._cells):
            facts.append(f"ETA {clock(eta)}")
        print(f"[{ended:{width}d}/{len(self._cells)} {clock(self.seconds)}] {what}  ({', '.join(facts)})", flush=True)
        sys.stdout.flush()
