"""Pieces as trials of one Ray Tuner, in workers that live on from trial to trial; before them the stage of shards.

Where several workers train a cell together, the training cells come first, one after the other and outside of the
Tuner: a trial that waits for the resources of workers beside its own could wait forever.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from cluster.execution.multi_gpu import train_cells
from cluster.execution.progress import Progress
from cluster.execution.scheduler import CellSearcher
from cluster.execution.work_units import pieces
from cluster.execution.worker import CellTrial
from cluster.storage.layout import TUNE
from cluster.storage.results import Store
from cluster.tracking.runs import Tracking
from diffup.grid.cell import AnyCell, Cell

RESTARTS = 2  # of the Tuner, after an error of its own
AHEAD = 4  # trials that wait for resources: more than one, so that a training cell holds no evaluation cell up
GIVE_UP = 10  # seconds after which a worker that is to stop is ended


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that trials need to know.

    Attributes:
        name: of the launch.
        cells: to run, in order.
        seconds: expected, by key, for the ETA.
        store, tracking: where results go.
        work: module that has ``execute`` and ``WorkContext``.
        datasets: absolute paths by data set name.
        weights_dir, features, batch_size: as in `cluster.execution.context.WorkContext`.
        shard_episodes: the most episodes a piece; 0: cells stay whole.
        gpus_per_trial: share of a GPU for an evaluation cell, where there are GPUs.
        max_concurrent: trials at a time; 0 = as many as the resources allow.
        train_workers: processes that share a training cell; 1 = training cells are trials like the others.
        git_commit: of this code.
        system_metrics: whether the launch's run has CPU, memory and GPU of each machine.
    """

    name: str
    cells: Sequence[AnyCell]
    seconds: dict[str, float]
    store: Store
    tracking: Tracking | None
    work: str
    datasets: dict[str, str]
    weights_dir: Path | None
    features: Path | None
    batch_size: int
    shard_episodes: int
    gpus_per_trial: float
    max_concurrent: int
    train_workers: int
    git_commit: str
    system_metrics: bool = False


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the cluster offers, and what each kind of cell takes of it."""

    device: str
    train: dict[str, float]
    evaluate: dict[str, float]
    workers: int


def resources(job: Job) -> Resources:
    """See `Resources`, of the cluster that this process is connected to."""
    total = ray.cluster_resources()
    gpus = total.get("GPU", 0.0)
    train, evaluate = {"CPU": 1.0}, {"CPU": 1.0}
    slots = total.get("CPU", 1.0)
    if gpus:
        train, evaluate = train | {"GPU": 1.0}, evaluate | {"GPU": job.gpus_per_trial}
        slots = min(slots, gpus / job.gpus_per_trial)
    workers = max(1, min(int(slots), job.max_concurrent or int(slots)))
    return Resources(device="cuda" if gpus else "cpu", train=train, evaluate=evaluate, workers=workers)


def options_of(job: Job, device: str) -> dict[str, Any]:
    """Arguments of a WorkContext as plain types."""
    return {
        "datasets": job.datasets,
        "remote": job.store.remote,
        "weights_dir": str(job.weights_dir.absolute()) if job.weights_dir else "",
        "features": str(job.features) if job.features else "",
        "device": device,
        "threads": 1,
        "batch_size": job.batch_size,
        "progress": False,
    }


class GaveUp(RuntimeError):
    """Ray Tune ended several times before the cells had."""


class _Stopper(tune.Stopper):
    """Stops all trials when the launch is to stop and its grace is over, or nothing is at work."""

    def __init__(self, over: Callable[[], bool]) -> None:
        self._over = over

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._over()


def run_trials(
    job: Job, given: Resources, *, stopping: Callable[[], bool], over: Callable[[], bool]
) -> tuple[Progress, list[str]]:
    """Run all cells of a job on the Ray cluster that this process is connected to.

    Args:
        given: what `resources` says.
        stopping: whether no new piece is to begin.
        over: whether those at work are to be ended too.

    Returns:
        what ended how, and the keys of cells that were not run because their training failed.
    """
    log = job.store.root / "launches" / f"{job.name}.log"
    progress = Progress(job.cells, job.seconds, given.workers, job.store, log)
    task: dict[str, Any] = {
        "results": str(job.store.root),
        "remote": job.store.remote,
        "work": job.work,
        "options": options_of(job, given.device),
        "tracking": job.tracking.to_dict() if job.tracking else None,
        "git_commit": job.git_commit,
        "launch": job.name,
        "system_metrics": job.system_metrics,
        "shard_episodes": job.shard_episodes,
    }
    cells, untrained = list(job.cells), list[str]()
    if job.train_workers > 1:
        failed = train_cells(cells, task, job.train_workers, progress, stopping=stopping, over=over)
        waiting = [cell for cell in cells if isinstance(cell, Cell)]
        cells = [cell for cell in waiting if cell.checkpoint not in failed]
        untrained = [cell.key() for cell in waiting if cell.checkpoint in failed]
    for attempt in range(1 + RESTARTS):
        ended = {*progress.finished, *progress.failed, *untrained}
        cells = [cell for cell in cells if cell.key() not in ended]
        if not cells or stopping():
            break
        searcher = CellSearcher(
            list(pieces(cells, job.shard_episodes, job.batch_size)),
            progress=progress,
            store=job.store,
            leases=job.store.leases,
            workers=given.workers,
            max_concurrent=job.max_concurrent,
            stopping=stopping,
            nodes=lambda: {str(node["NodeID"]) for node in ray.nodes() if node["Alive"]},
        )
        try:
            _tuner(job, task, given, searcher, progress, over, attempt).fit()
        except Exception as error:
            if attempt == RESTARTS or not ray.is_initialized():
                raise GaveUp(f"Ray Tune gave up: {type(error).__name__}: {error}") from error
            progress.say(f"Ray Tune ended with {type(error).__name__}; the rest is begun anew")
            time.sleep(5)
        untrained += searcher.dropped
    return progress, untrained


def _tuner(
    job: Job, task: dict[str, Any], given: Resources, searcher: CellSearcher, progress: Progress,
    over: Callable[[], bool], attempt: int,
) -> tune.Tuner:  # fmt: skip
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(AHEAD)
    os.environ["TUNE_FORCE_TRIAL_CLEANUP_S"] = str(GIVE_UP)
    return tune.Tuner(
        CellTrial,
        param_space={**task, "resources": {"train": given.train, "evaluate": given.evaluate}},
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=10 * len(job.cells) + 1000,  # more than pieces and their second attempts
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=f"{job.name}-{attempt}",
            storage_path=str(job.store.root / TUNE / job.name),
            verbose=0,
            stop=_Stopper(over),
            callbacks=[progress],
            failure_config=tune.FailureConfig(max_failures=0),  # the searcher hands out again what was lost
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


def _name(trial: Any) -> str:
    return str(trial.trial_id)
