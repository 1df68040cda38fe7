"""Successive halving over training configurations: Ray Tune's ASHA gives more steps to those that score well.

A trial is one configuration of `cluster.hpo.trials`. At each milestone its training pauses, its weights so far are
scored on the base classes that it holds out, and the scheduler lets it go on or stops it. Training goes through the
result store as in any launch (`cluster.execution.worker.run_unit`): a configuration that is trained to the end is a
finished training cell, with the bytes it would have had without a search. One that was stopped keeps its state, so that
it could still go on.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from cluster.code_version import code_hash
from cluster.execution.context import WorkContext
from cluster.execution.tuner import resources
from cluster.execution.work_units import WorkUnit
from cluster.execution.worker import run_in_turn, work_of
from cluster.hpo.report import Report, key_of
from cluster.hpo.trials import (
    DIVERGED,
    FAILED,
    FINISHED,
    Candidate,
    Record,
    Search,
    check_seen,
    read_entry,
    record_path,
)
from cluster.precompute.stage import precompute
from cluster.storage.layout import TUNE
from cluster.tracking.launches import close_tracking, open_tracking
from cluster.tracking.runs import Tracking
from cluster.tracking.system_metrics import system_metrics
from diffup.errors import UserError
from diffup.training.trainer import Paused, paused_at

CRASHES = 1  # times that a configuration is tried again after the death of its worker
SCORE, TIME = "miou", "steps"
SO_FAR = ("model.safetensors", "config.json", "README.md")  # a paused training's checkpoint, without its state


class SearchTrial(tune.Trainable):
    """One configuration; a step trains to its next milestone, or reports a milestone that was scored before."""

    def setup(self, config: dict[str, Any]) -> None:
        """Read what the record has of the configuration: scores of a killed search, or from before a crash."""
        self.task = config["task"]
        entry = read_entry(record_path(self.task["context"].results, self.task["search"].name), self.task["key"])
        self.known: list[dict[str, Any]] = list(entry.get("scores", []))
        self.ended: str | None = entry.get("ended")
        self.scored = {score[TIME] for score in self.known}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next configuration in the same process."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train to the next milestone and score. Known scores come first: the scheduler compares others with them."""
        if self.known:
            score = self.known.pop(0)
            return {**score, "known": True, "ended": self.ended, "done": bool(self.ended) and not self.known}
        with system_metrics(self.task["tracking"]):
            result = train_and_score(self.task, self.scored)
        self.scored.add(result.get(TIME, 0))
        return {**result, "known": False, "done": result["ended"] is not None}


class Halving(ASHAScheduler):
    """ASHA that takes note of known scores without deciding on them again: what went on once goes on after a kill."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on."""
        action: str = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if result.get("known") else action


def train_and_score(task: dict[str, Any], scored: set[int]) -> dict[str, Any]:
    """Train a configuration to its next milestone, and score it there.

    Args:
        task: ``search``, its ``candidate`` to train, and ``context``.
        scored: milestones that have a score.

    Returns:
        a score as in `cluster.hpo.trials.Record`, with ``ended``: None, ``"finished"``, ``"diverged"`` or ``"failed"``;
        the last two with ``error`` in place of a score.
    """
    cell, context = task["candidate"].cell, task["context"]
    began, steps = time.perf_counter(), cell.train.steps
    ended: str | None = FINISHED
    try:
        with paused_at(*(steps for steps in task["search"].milestones if steps not in scored)):
            outcome = run_in_turn(WorkUnit(cell), context)
        if outcome["status"] != "finished":
            diverged = outcome["error"].startswith(FloatingPointError.__name__)
            return {"ended": DIVERGED if diverged else FAILED, "error": outcome["error"]}
    except Paused as pause:
        steps, ended = pause.step, None
    trained = time.perf_counter()
    try:
        tasks = validate(task["candidate"], task["search"].classes, context)
    except Exception as error:
        return {"ended": FAILED, "error": f"{type(error).__name__}: {error}"}
    finally:
        if ended is None:  # half a training must not be taken for a checkpoint
            for name in SO_FAR:
                (context.results / cell.key() / "checkpoint" / name).unlink(missing_ok=True)
    return {
        TIME: steps,
        SCORE: sum(tasks.values()) / len(tasks),
        "tasks": tasks,
        "train_seconds": trained - began,
        "validate_seconds": time.perf_counter() - trained,
        "ended": ended,
    }


def validate(candidate: Candidate, classes: Sequence[str], context: WorkContext) -> dict[str, float]:
    """mIoU in percent of a configuration's checkpoint so far, by validation task.

    Raises:
        UserError: a cell looked at a class that the search may not choose on.
    """
    scores = {}
    for cell in candidate.validation:
        outcome = work_of(context).execute(cell, context)
        check_seen(list(outcome.episodes["class_name"]), classes, candidate.cell.key())
        if why := getattr(outcome, "undefined", {}).get("miou"):
            raise UserError(f"validation cell {cell.key()}: mIoU is undefined, {why}")
        scores[f"{cell.input.input_size} px {cell.shots}-shot {cell.annotation}"] = float(outcome.metrics["miou"])
    return scores


def run_search(search: Search, record: Record, context: WorkContext, uri: str, experiment: str) -> None:
    """Bring a search to its end, with an MLflow run in `experiment`; Ray runs, what it reads has been checked."""
    store = context.store
    if record.tracking is not None:  # of a search that was killed; the lock says that it has ended
        close_tracking(Tracking(**record.tracking), "KILLED", {})
    name = f"{search.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    tags = {"git_commit": context.git_commit, "code_hash": code_hash(), "results": str(store.root)}
    tracking = open_tracking(uri, experiment, name, store, {**tags, "search": search.name})
    record.tracking = tracking.to_dict() if tracking else None
    record.save()
    for key in record.todo():
        if store.read(key).status == "damaged":
            store.forget_result(key)
    report = Report(search, record, tracking)
    folder = store.root / f"{TUNE}-{search.name}"  # of Tune's files; launches on the same results have others
    shutil.rmtree(folder, ignore_errors=True)  # what a killed search left
    status = "KILLED"
    try:
        _tuner(search, record, report, replace(context, launch=name), tracking, folder).fit()
        status = "FAILED" if record.count(FAILED) or record.todo() else "FINISHED"
        report.conclude()
    finally:
        report.close()
        if tracking is not None:
            close_tracking(tracking, status, {"steps_spent": float(record.spent())})
        record.tracking = None
        record.save()
        shutil.rmtree(folder, ignore_errors=True)


def _tuner(
    search: Search, record: Record, report: Report, context: WorkContext, tracking: Tracking | None, folder: Path
) -> tune.Tuner:
    """The tuner of a search, after what all configurations read has been computed."""
    given = resources(context)
    context = replace(context, device=given.device)  # without tracking: the driver writes the configurations' runs
    if context.features is not None:
        precompute(search.cells, context, given, lambda: False)
    # Configurations that have ended come first with their scores, so that the scheduler compares with all of them.
    scored = [key for key, entry in record.entries.items() if entry["ended"] and entry["scores"]]
    order = [*scored, *record.todo()]
    workers = min(given.workers, len(order))
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(workers)
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # one that diverges ends without a score
    by_key = {candidate.cell.key(): candidate for candidate in search.candidates}
    tasks = [
        {
            "key": key,  # names the trial: Tune replaces objects until it starts
            "context": context,
            "search": search,
            "candidate": by_key[key],
            "tracking": tracking if context.system_metrics else None,
        }
        for key in order
    ]
    return tune.Tuner(
        tune.with_resources(SearchTrial, given.train),
        param_space={"task": tune.grid_search(tasks)},
        tune_config=tune.TuneConfig(
            scheduler=scheduler(search),
            max_concurrent_trials=workers,
            reuse_actors=True,
            trial_name_creator=key_of,
            trial_dirname_creator=key_of,
        ),
        run_config=tune.RunConfig(
            name=context.launch,
            storage_path=str(folder),
            verbose=0,
            callbacks=[report],
            failure_config=tune.FailureConfig(max_failures=CRASHES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


def scheduler(search: Search) -> Halving:
    """The scheduler of a search, at its milestones."""
    return Halving(
        metric=SCORE,
        mode="max",
        time_attr=TIME,
        max_t=search.milestones[-1],
        grace_period=search.milestones[0],
        reduction_factor=search.reduction,
    )
