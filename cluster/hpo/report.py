"""What a search says while it runs, and where it puts it: a line for each score, the record, and MLflow.

Parent run = search, child run = configuration, with its scores over steps. As in a launch, tracking that is down warns
once and stops nothing: the record has everything.
"""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any

from ray import tune

from cluster.hpo.trials import FAILED, FINISHED, STOPPED, Candidate, Record, Search
from cluster.planning.plan import clock
from cluster.tracking.client import client_of
from cluster.tracking.export import OWNER, PARENT
from cluster.tracking.launch_runs import Tracking

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SIGN_OF_LIFE = 30.0  # seconds of silence before one line about what runs


class Runs:
    """MLflow's child runs of a search, written by the driver alone.

    Args:
        tracking: of the parent run; None: nothing is tracked.
    """

    def __init__(self, tracking: Tracking | None) -> None:
        self._tracking = tracking
        self._runs: dict[str, str] = {}
        self._made: MlflowClient | None = None

    def _client(self) -> MlflowClient:
        if self._made is None:
            assert self._tracking is not None
            self._made = client_of(self._tracking.uri)
        return self._made

    def log(self, candidate: Candidate, label: str, rung: dict[str, Any]) -> None:
        """Log a score, at its number of steps."""
        if self._tracking is None:
            return
        try:
            from mlflow.entities import Metric

            run, stamp, at = self._run(candidate, label), int(time.time() * 1000), int(rung["steps"])
            values = {"miou": rung["miou"], **{f"miou/{task}": value for task, value in rung["tasks"].items()}}
            values |= {name: rung[name] for name in ("train_seconds", "validate_seconds")}
            metrics = [Metric(name, float(value), stamp, at) for name, value in values.items()]
            self._client().log_batch(run, metrics=metrics)
        except Exception as error:
            self._give_up(error)

    def end(self, candidate: Candidate, label: str, how: str, error: str = "") -> None:
        """End a configuration's run; one that ended without a score gets its run now."""
        if self._tracking is None:
            return
        try:
            run = self._run(candidate, label)
            self._client().set_tag(run, "ended", how)
            if error:
                self._client().set_tag(run, "error", error[:500])
            self._client().set_terminated(run, "FAILED" if how == FAILED else "FINISHED")
            del self._runs[candidate.cell.key()]
        except Exception as problem:
            self._give_up(problem)

    def close(self) -> None:
        """End the runs of configurations that have not ended."""
        try:
            for run in self._runs.values():
                self._client().set_terminated(run, "KILLED")
        except Exception as error:
            self._give_up(error)
        self._runs.clear()

    def _run(self, candidate: Candidate, label: str) -> str:
        key, cell = candidate.cell.key(), candidate.cell
        if key not in self._runs:
            from mlflow.entities import Param

            assert self._tracking is not None
            tags = {"kind": "configuration", "key": key, "dataset": cell.dataset, "backbone": cell.backbone}
            tags |= {"fold": str(cell.fold), "train_seed": str(cell.train_seed), PARENT: self._tracking.parent_run}
            tags[OWNER] = self._tracking.store
            run = self._client().create_run(self._tracking.experiment_id, tags=tags, run_name=label)
            self._runs[key] = str(run.info.run_id)
            self._client().set_tag(run.info.run_id, "values", candidate.in_words()[:500])
            params = [Param(name, str(value)) for name, value in candidate.values.items()]
            self._client().log_batch(self._runs[key], params=params)
        return self._runs[key]

    def _give_up(self, error: Exception) -> None:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        warnings.warn(f"MLflow: {lines[0][:200]}. The search goes on; its record has all scores", stacklevel=3)
        self._tracking = None


class Board(tune.Callback):
    """Keeps the record of a search, and prints a line for each thing that happens.

    Args:
        search: what runs.
        record: of it; its only writer while the search runs.
        runs: of MLflow.
    """

    def __init__(self, search: Search, record: Record, runs: Runs) -> None:
        self._search, self._record, self._runs = search, record, runs
        self._candidates = {candidate.cell.key(): candidate for candidate in search.candidates}
        self._labels = {key: f"configuration {number}" for number, key in enumerate(self._candidates)}
        self._running: dict[str, float] = {}
        self._began = self._spoke = time.monotonic()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A configuration begins, or tells again what is known of it."""
        if self._record.entries[_key(trial)]["ended"] is None:
            self._running[_key(trial)] = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A configuration was scored, or failed."""
        key = _key(trial)
        if "miou" not in result:
            self._end(key, result["ended"], result["error"])
            return
        rung = {name: result[name] for name in ("steps", "miou", "tasks", "train_seconds", "validate_seconds")}
        if self._record.add(key, rung):
            self._runs.log(self._candidates[key], self._labels[key], rung)
            seconds = rung["train_seconds"] + rung["validate_seconds"]
            self._say(f"{self._labels[key]}: mIoU {rung['miou']:.1f} after {rung['steps']} steps in {seconds:.1f} s")
        if result["ended"] == FINISHED:
            self._end(key, FINISHED)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The scheduler is done with a configuration; unless it had ended by itself, it was stopped."""
        self._end(_key(trial), STOPPED)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The worker process died, also on the second attempt."""
        self._end(_key(trial), FAILED, "the worker process died twice (out of memory?)")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called about ten times a second."""
        if self._running and time.monotonic() - self._spoke > SIGN_OF_LIFE:
            key, since = next(iter(self._running.items()))
            self._say(f"running {self._labels[key]} for {clock(time.monotonic() - since)}")

    def conclude(self) -> None:
        """One line on how it went."""
        record, steps = self._record, self._search.rungs[-1]
        full = steps * len(self._candidates)
        print(
            f"{self._search.name}: {record.count(FINISHED)} finished, {record.count(STOPPED)} stopped; "
            f"{record.spent()} of {full} steps ({100 * record.spent() / full:.0f} %), {clock(self.seconds)}",
            flush=True,
        )

    @property
    def seconds(self) -> float:
        """Seconds since the search began to run."""
        return time.monotonic() - self._began

    def _end(self, key: str, how: str, error: str = "") -> None:
        self._running.pop(key, None)
        entry = self._record.entries[key]
        if entry["ended"] is not None:
            return
        self._record.end(key, how, error)
        self._runs.end(self._candidates[key], self._labels[key], how, error)
        if how != FINISHED:
            at = entry["rungs"][-1]["steps"] if entry["rungs"] else 0
            self._say(f"{self._labels[key]}: {how} after {at} steps{f': {error}' if error else ''}")

    def _say(self, what: str) -> None:
        self._spoke = time.monotonic()
        total, ended = len(self._candidates), len(self._candidates) - len(self._record.todo())
        print(
            f"[{ended:{len(str(total))}d}/{total} {clock(self.seconds)}] {what}  ({len(self._running)} running, "
            f"{self._record.count(STOPPED)} stopped)",
            flush=True,
        )


def _key(trial: Any) -> str:
    return str(trial.config["task"]["cell"]["key"])
