"""Trains a cell on several workers: Ray Train starts them, and each computes its share of every step.

The number of workers is a runtime option and not part of a cell's identity: a step's episodes are scattered to the
workers and their gradients summed (`diffup.training.distributed`), so that the checkpoint is that of one worker up to
rounding. The state that a training resumes from is the same file too, written by rank 0, so that the number of workers
may change in between. This pays where there are fewer training cells than GPUs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from cluster.execution.context import WorkContext
from cluster.execution.progress import Progress
from cluster.execution.work_units import WorkUnit
from cluster.execution.worker import FAILED, run_in_turn, work_of
from cluster.options import Work
from cluster.storage.layout import TUNE
from diffup.errors import UserError
from diffup.grid.cell import AnyCell, TrainingCell

RESTARTS = 1  # of all workers, after the death of one; they go on from the state file


def train_cells(
    cells: Sequence[AnyCell],
    context: WorkContext,
    progress: Progress,
    *,
    stopping: Callable[[], bool] = lambda: False,
    over: Callable[[], bool] = lambda: False,
) -> set[str]:
    """Run the training cells among `cells`, one after the other, each on all of ``context.train_workers`` processes.

    Args:
        cells: to run, in order.
        context: of the launch; each process takes a CPU, and a GPU where there are some.
        progress: is notified of what starts and ends.
        stopping: whether nothing new is to start.
        over: whether a running training is to be ended; its state is kept.

    Returns:
        keys of the training cells that failed.

    Raises:
        UserError: the cluster has not enough CPUs or GPUs.
        KeyboardInterrupt: a training was ended.
    """
    training = [cell for cell in cells if isinstance(cell, TrainingCell)]
    kind, workers = "GPU" if context.device == "cuda" else "CPU", context.train_workers
    total = ray.cluster_resources().get(kind, 0)
    if training and total < workers:
        raise UserError(f"--train-workers {workers}: the cluster has {total:.0f} {kind}s")
    shared = replace(context, work=Work(partial(execute, work=work_of(context).execute, over=over)))
    failed = set()
    for cell in training:
        if stopping():
            break
        progress.begin(cell.key())  # another driver's checkpoint is as good
        outcome = run_in_turn(WorkUnit(cell), shared, stopping)
        progress.end(cell.key(), outcome)
        if outcome["status"] == FAILED:
            failed.add(cell.key())
    return failed


def execute(cell: AnyCell, context: WorkContext, *, work: Callable[..., Any], over: Callable[[], bool]) -> Any:
    """Train a cell on several workers, each of which does `work`; returns rank 0's outcome.

    Raises:
        RuntimeError: a worker failed; the message has each one's error.
    """
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # the launch reports what failed
    gpu = context.device == "cuda"
    trainer = TorchTrainer(
        _work,
        train_loop_config={"cell": cell, "context": replace(context, work=None), "work": work},
        # Steps are scattered from the CPU's memory, and gradients summed where they are.
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=context.train_workers, use_gpu=gpu),
        run_config=ray.train.RunConfig(
            name=cell.key(),
            storage_path=str(context.results / TUNE / context.launch),
            failure_config=ray.train.FailureConfig(max_failures=RESTARTS),
        ),
    )
    # In a thread: in the main one Ray Train would take the signal handlers, and not give them back.
    with ThreadPoolExecutor(1, "train") as pool:
        fitted = pool.submit(trainer.fit)
        try:
            while not fitted.done() and not over():
                wait([fitted], timeout=1.0)
            if not fitted.done():
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            ray.shutdown()  # the only way to end it
            raise
    try:
        result: Any = fitted.result()  # typed as that of the older Ray Train
        return result.return_value
    except ray.train.TrainingFailedError as error:
        failures = getattr(error, "worker_failures", {}) or {0: error}
        words = dict.fromkeys(f"{type(e).__name__}: {e}" for _, e in sorted(failures.items()))
        raise RuntimeError(f"training on {context.train_workers} workers failed: {'; '.join(words)}") from error


def _work(config: dict[str, Any]) -> Any:
    """What each worker does."""
    context: WorkContext = config["context"]
    if context.device == "cuda":
        context = replace(context, device=str(get_device()))
    outcome = config["work"](config["cell"], context)
    return outcome if ray.train.get_context().get_world_rank() == 0 else None
