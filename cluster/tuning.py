"""Cells as trials of one Ray Tuner: one axis, a grid search over cells, in workers that live on from trial to trial.

Where several workers train a cell together, the training cells come first, one after the other and outside of the
Tuner: a trial that waits for the resources of workers beside its own could wait forever.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from cluster.order import TrainedFirst
from cluster.progress import Progress
from cluster.store import Store, cell_document
from cluster.tracking import Tracking
from cluster.training import train_cells
from cluster.trial import CellTrial
from experiments.cell import AnyCell, Cell

CRASHES = 1  # times that a cell is tried again after the death of its worker


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
        weights_dir, batch_size: as in `cluster.work.WorkContext`.
        gpus_per_trial: share of a GPU for an evaluation cell, where there are GPUs.
        max_concurrent: trials at a time; 0 = as many as the resources allow.
        train_workers: processes that share a training cell; 1 = training cells are trials like the others.
        git_commit: of this code.
    """

    name: str
    cells: Sequence[AnyCell]
    seconds: dict[str, float]
    store: Store
    tracking: Tracking | None
    work: str
    datasets: dict[str, str]
    weights_dir: Path | None
    batch_size: int
    gpus_per_trial: float
    max_concurrent: int
    train_workers: int
    git_commit: str


def run_trials(job: Job) -> tuple[Progress, list[str]]:
    """Run all cells of a job on the Ray cluster that this process is connected to.

    Returns:
        what ended how, and the keys of cells that were not run because their training failed.
    """
    total = ray.cluster_resources()
    gpus = total.get("GPU", 0.0)
    train, evaluate = {"CPU": 1.0}, {"CPU": 1.0}
    slots = total.get("CPU", 1.0)
    if gpus:
        train, evaluate = train | {"GPU": 1.0}, evaluate | {"GPU": job.gpus_per_trial}
        slots = min(slots, gpus / job.gpus_per_trial)
    workers = max(1, min(int(slots), job.max_concurrent or int(slots), len(job.cells)))
    # Tune takes trials beyond those that run only to start workers early; taking more would blur their order.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(workers)
    progress = Progress(job.cells, job.seconds, workers, job.store)
    task = {
        "results": str(job.store.root),
        "work": job.work,
        "options": {
            "datasets": job.datasets,
            "weights_dir": str(job.weights_dir.absolute()) if job.weights_dir else "",
            "device": "cuda" if gpus else "cpu",
            "threads": 1,
            "batch_size": job.batch_size,
            "progress": False,
        },
        "tracking": job.tracking.to_dict() if job.tracking else None,
        "git_commit": job.git_commit,
    }
    cells, untrained = list(job.cells), list[str]()
    if job.train_workers > 1:
        failed = train_cells(cells, task, job.train_workers, progress)
        waiting = [cell for cell in cells if isinstance(cell, Cell)]
        cells = [cell for cell in waiting if cell.checkpoint not in failed]
        untrained = [cell.key() for cell in waiting if cell.checkpoint in failed]
        if not cells:
            return progress, untrained
    order = TrainedFirst(max_concurrent=job.max_concurrent)
    tuner = tune.Tuner(
        CellTrial,
        param_space={
            **task,
            "cell": tune.grid_search([cell_document(cell) for cell in cells]),
            "resources": {"train": train, "evaluate": evaluate},
        },
        tune_config=tune.TuneConfig(
            search_alg=order, reuse_actors=True, trial_name_creator=_name, trial_dirname_creator=_name
        ),
        run_config=tune.RunConfig(
            name=job.name,
            storage_path=str(job.store.root / ".tune"),
            verbose=0,
            callbacks=[progress],
            failure_config=tune.FailureConfig(max_failures=CRASHES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    try:
        tuner.fit()
    except ValueError as error:  # a fault of ours, not the user's mistake that a ValueError stands for
        raise RuntimeError(f"Ray Tune refused the grid: {error}") from error
    return progress, untrained + order.dropped


def _name(trial: Any) -> str:
    return str(trial.config["cell"]["key"])
