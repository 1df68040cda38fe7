"""What a search reports while it runs: a printed line for each score, its record, and MLflow's runs.

Parent run = search, child run = configuration, with its scores over steps. The driver alone writes all of them.
"""

from __future__ import annotations

import time
from typing import Any

from ray import tune

from cluster.hpo.trials import FAILED, FINISHED, STOPPED, Record, Search, steps_of
from cluster.planning.plan import clock
from cluster.tracking.export import log_configuration
from cluster.tracking.runs import Tracking

SIGN_OF_LIFE = 30.0  # seconds of silence before one line about what runs


class Report(tune.Callback):
    """Keeps the record of a search, and prints a line for each event.

    Args:
        search: what runs.
        record: of it; its only writer while the search runs.
        tracking: of its parent run; None: nothing is tracked.
    """

    def __init__(self, search: Search, record: Record, tracking: Tracking | None) -> None:
        self._search, self._record, self._tracking = search, record, tracking
        self._cells = {candidate.cell.key(): candidate.cell for candidate in search.candidates}
        self._labels = {key: f"configuration {number}" for number, key in enumerate(self._cells)}
        self._logged = set[str]()  # configurations with a run that has not ended
        self._running: dict[str, float] = {}
        self._began = self._spoke = time.monotonic()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A configuration begins, or repeats the scores that it has."""
        if self._record.entries[key_of(trial)]["ended"] is None:
            self._running[key_of(trial)] = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A configuration was scored, or failed."""
        key = key_of(trial)
        if "miou" not in result:
            self._end(key, result["ended"], result["error"])
            return
        score = {name: result[name] for name in ("steps", "miou", "tasks", "train_seconds", "validate_seconds")}
        if self._record.add(key, score):
            self._log(key)
            seconds = score["train_seconds"] + score["validate_seconds"]
            self._say(f"{self._labels[key]}: mIoU {score['miou']:.1f} after {score['steps']} steps in {seconds:.1f} s")
        if result["ended"] == FINISHED:
            self._end(key, FINISHED)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The scheduler is done with a configuration; unless it had ended by itself, it was stopped."""
        self._end(key_of(trial), STOPPED)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The worker process died, also on the second attempt."""
        self._end(key_of(trial), FAILED, "the worker process died twice (out of memory?)")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called about ten times a second."""
        if self._running and time.monotonic() - self._spoke > SIGN_OF_LIFE:
            key, since = next(iter(self._running.items()))
            self._say(f"running {self._labels[key]} for {clock(time.monotonic() - since)}")

    def close(self) -> None:
        """End the runs of configurations that have not ended."""
        for key in sorted(self._logged):
            self._log(key, "KILLED")

    def conclude(self) -> None:
        """Print one line on how it went."""
        record, full = self._record, self._search.milestones[-1] * len(self._cells)
        print(
            f"{self._search.name}: {record.count(FINISHED)} finished, {record.count(STOPPED)} stopped; "
            f"{record.spent()} of {full} steps ({100 * record.spent() / full:.0f} %), "
            f"{clock(time.monotonic() - self._began)}",
            flush=True,
        )

    def _end(self, key: str, how: str, error: str = "") -> None:
        self._running.pop(key, None)
        entry = self._record.entries[key]
        if entry["ended"] is not None:
            return
        self._record.end(key, how, error)
        self._log(key, "FAILED" if how == FAILED else "FINISHED")
        if how != FINISHED:
            self._say(f"{self._labels[key]}: {how} after {steps_of(entry)} steps{f': {error}' if error else ''}")

    def _log(self, key: str, status: str = "") -> None:
        if self._tracking is not None:
            log_configuration(self._tracking, self._cells[key], self._labels[key], self._record.entries[key], status)
            if status:
                self._logged.discard(key)
            else:
                self._logged.add(key)

    def _say(self, what: str) -> None:
        self._spoke = time.monotonic()
        total, ended = len(self._cells), len(self._cells) - len(self._record.todo())
        print(
            f"[{ended:{len(str(total))}d}/{total} {clock(self._spoke - self._began)}] {what}  "
            f"({len(self._running)} running, {self._record.count(STOPPED)} stopped)",
            flush=True,
        )


def key_of(trial: Any) -> str:
    """Key of a trial's configuration."""
    return str(trial.config["task"]["key"])
