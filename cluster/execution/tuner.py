"""Runs work units as trials of one Ray Tuner, in worker processes that later trials reuse.

Where several processes train a cell together, the training cells come first, one after the other and outside of the
Tuner: a trial that waits for the resources of more workers than its own could wait forever.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune

from cluster.execution.context import KEEPS_NO_FEATURES, WorkContext
from cluster.execution.progress import Progress
from cluster.execution.scheduler import CellSearcher
from cluster.execution.work_units import work_units
from cluster.execution.worker import CellTrial
from cluster.planning.plan import Plan
from cluster.storage.layout import LAUNCHES, TUNE
from diffup.grid.cell import Cell

RESTARTS = 2  # of the Tuner, after an error of its own
AHEAD = 4  # trials that wait for resources: more than one, so that a training cell does not block evaluation cells
GIVE_UP = 10  # seconds after which a worker that does not stop is killed


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the cluster has, and what each kind of cell takes of it."""

    device: str
    train: dict[str, float]
    evaluate: dict[str, float]
    workers: int
    cpus: int


def resources(context: WorkContext) -> Resources:
    """See `Resources`, of the cluster that this process is connected to."""
    total = ray.cluster_resources()
    gpus = total.get("GPU", 0.0)
    train, evaluate = {"CPU": 1.0}, {"CPU": 1.0}
    slots = total.get("CPU", 1.0)
    if gpus:
        train, evaluate = train | {"GPU": 1.0}, evaluate | {"GPU": context.gpus_per_trial}
        slots = min(slots, gpus / context.gpus_per_trial)
    workers = max(1, min(int(slots), context.max_concurrent or int(slots)))
    return Resources(
        device="cuda" if gpus else "cpu",
        train=train,
        evaluate=evaluate,
        workers=workers,
        cpus=max(1, int(total.get("CPU", 1.0))),
    )


class GaveUp(RuntimeError):
    """Ray Tune ended several times before all cells did."""


class _Stopper(tune.Stopper):
    """Stops all trials when a launch that was asked to stop has used up its grace period."""

    def __init__(self, over: Callable[[], bool]) -> None:
        self._over = over

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._over()


def run_trials(
    plan: Plan,
    context: WorkContext,
    given: Resources,
    *,
    stopping: Callable[[], bool],
    over: Callable[[], bool],
) -> tuple[Progress, list[str]]:
    """Run all cells of a plan on the Ray cluster that this process is connected to.

    Args:
        plan: its cells in order, and the expected seconds of each.
        context: what workers need to know.
        given: what `resources` says.
        stopping: whether no new unit is to start.
        over: whether running ones are to be ended too.

    Returns:
        how cells ended, and the keys of cells that were not run because their training failed.
    """
    store = context.store
    progress = Progress(plan.todo, plan.seconds, given.workers, store, store.root / LAUNCHES / f"{context.launch}.log")
    cells, untrained = list(plan.todo), list[str]()
    if context.train_workers > 1:
        from cluster.execution.multi_gpu import train_cells  # loads torch

        failed = train_cells(cells, context, progress, stopping=stopping, over=over)
        waiting = [cell for cell in cells if isinstance(cell, Cell)]
        cells = [cell for cell in waiting if cell.checkpoint not in failed]
        untrained = [cell.key() for cell in waiting if cell.checkpoint in failed]
    for attempt in range(1 + RESTARTS):
        ended = {*progress.finished, *progress.failed, *untrained}
        cells = [cell for cell in cells if cell.key() not in ended]
        if not cells or stopping():
            break
        searcher = CellSearcher(
            list(work_units(cells, context.shard_episodes, context.batch_size)),
            progress=progress,
            store=store,
            leases=store.leases,
            workers=given.workers,
            max_concurrent=context.max_concurrent,
            stopping=stopping,
            passes=context.cache in KEEPS_NO_FEATURES
            and (context.work is None or context.work.execute_together is not None),
            nodes=lambda: {str(node["NodeID"]) for node in ray.nodes() if node["Alive"]},
        )
        samples = 10 * len(plan.todo) + 1000  # more than all units and their retries
        try:
            _tuner(context, given, searcher, samples, progress, over, f"{context.launch}-{attempt}").fit()
        except Exception as error:
            if attempt == RESTARTS or not ray.is_initialized():
                raise GaveUp(f"Ray Tune gave up: {type(error).__name__}: {error}") from error
            progress.say(f"Ray Tune ended with {type(error).__name__}; the rest is started again")
            time.sleep(5)
        untrained += searcher.dropped
    return progress, untrained


def _tuner(
    context: WorkContext, given: Resources, searcher: CellSearcher, samples: int, progress: Progress,
    over: Callable[[], bool], name: str,
) -> tune.Tuner:  # fmt: skip
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(AHEAD)
    os.environ["TUNE_FORCE_TRIAL_CLEANUP_S"] = str(GIVE_UP)
    return tune.Tuner(
        CellTrial,
        param_space={"context": context, "resources": {"train": given.train, "evaluate": given.evaluate}},
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=samples,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(context.results / TUNE / context.launch),
            verbose=0,
            stop=_Stopper(over),
            callbacks=[progress],
            failure_config=tune.FailureConfig(max_failures=0),  # the searcher schedules lost units again
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


def _name(trial: Any) -> str:
    return str(trial.trial_id)
