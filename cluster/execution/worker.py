"""The trainable: a trial runs some pieces of work, one a step, writes the store and logs MLflow runs. Workers live on.

A cell that raises fails alone and is not tried again: its error is recorded, and Tune sees a trial that goes on. Only
the death of a worker process is Tune's business. Before a worker begins a piece it takes the piece's lease, so that of
several drivers on one results directory one runs it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import platform
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune

from cluster.code_version import code_hash
from cluster.execution.context import WorkContext
from cluster.execution.run_cell import CELLS, Part
from cluster.execution.work_units import Piece, bring_parts, forget_parts, ranges, read_part, write_part
from cluster.storage.atomic import check_writable, now
from cluster.storage.backend import RemoteError
from cluster.storage.layout import LAUNCHES
from cluster.storage.leases import acquire
from cluster.storage.record import Record
from cluster.storage.results import Store
from cluster.tracking.export import log_cell, log_failure
from cluster.tracking.runs import Tracking
from cluster.tracking.system_metrics import system_metrics
from diffup.grid.cell import AnyCell, Cell, TrainingCell
from diffup.models.card import versions

PACKAGES = ("diffup", "torch", "torchvision", "timm", "open_clip_torch", "numpy", "pandas", "pillow", "ray", "mlflow")
FINISHED, FAILED, ELSEWHERE, PART, AGAIN = "finished", "failed", "elsewhere", "part", "again"
PAUSE = 5.0  # seconds before a piece that could not begin is given back
REFUSALS = 60  # times that a piece may find what all share away
LOOK = 3.0  # seconds between looks at what others are doing
ATTEMPTS = 3  # of a piece whose worker dies
# What is wrong with a machine and not with a cell: a full disk, a file server that is away.
PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS, errno.ENOTCONN, errno.ETIMEDOUT)


class CellTrial(tune.Trainable):
    """Runs the pieces in ``config["pieces"]`` (JSON); one step is one piece."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Resources by the kind of cell, so that one Tuner serves several resource classes."""
        return tune.PlacementGroupFactory([dict(config["resources"][config["kind"]])])

    def setup(self, config: dict[str, Any]) -> None:
        """Nothing is loaded here: the work keeps backbones and features in module globals."""
        self.context: WorkContext = config["context"]
        self.left = json.loads(config["pieces"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next pieces in the same process."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Run the next piece."""
        piece, began = Piece.from_dict(self.left.pop(0)), time.monotonic()
        if complaint := unfit(self.context):
            done = _later(piece.cell.key(), complaint)
        else:
            done = run_piece(piece, self.context)
        return {**done, "piece": piece.name, "took": time.monotonic() - began, "done": not self.left}


_fit: set[tuple[Path, str]] = set()  # results and launches that this process has looked at


def unfit(context: WorkContext, patience: float = 10.0) -> str:
    """Why this node, which may have come after the launch's start, can't run its cells; ``""`` if it can.

    Args:
        context: of the launch.
        patience: seconds until a file server shows what was written elsewhere.
    """
    root, node = context.results, platform.node()
    note = f"{LAUNCHES}/{context.launch}.json"
    if (root, context.launch) in _fit:
        return ""
    if not context.store.sync.appears(note, patience):
        return f"node {node} does not see {root / note}: mount the results there, or take it out of the cluster"
    try:
        check_writable(root)
    except OSError as error:
        return f"node {node} can't write to {root}: {error}"
    _fit.add((root, context.launch))
    return ""


def _later(key: str, why: str) -> dict[str, Any]:
    """The outcome of a piece that could not begin here and now."""
    time.sleep(PAUSE)
    return {"key": key, "status": AGAIN, "error": why}


def run_piece(piece: Piece, context: WorkContext) -> dict[str, Any]:
    """Run a piece under its lease and record what came of it.

    Args:
        piece: a cell or a part of one.
        context: of the launch.

    Returns:
        ``key``, ``status``, and ``headline`` and ``episodes``, or ``error``. The status is ``"finished"``,
        ``"failed"``, ``"part"`` (of a cell of which others are to come), ``"elsewhere"`` (another driver is at it) or
        ``"again"`` (nothing was begun: what all share does not answer).
    """
    store, key = context.store, piece.cell.key()
    try:
        lease = acquire(store.leases, piece.name, context.launch)
    except OSError as error:
        return _later(key, f"{type(error).__name__}: {error}")
    if lease is None:
        return {"key": key, "status": ELSEWHERE}
    try:
        with system_metrics(context.tracking if context.system_metrics else None):
            return _run(piece, context, store)
    finally:
        lease.release()


def run_in_turn(piece: Piece, context: WorkContext, stopping: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """`run_piece`, again while another driver is at it, and `REFUSALS` times while what all share does not answer."""
    refused = 0
    while True:
        outcome = run_piece(piece, context)
        refused += outcome["status"] == AGAIN
        if outcome["status"] not in (ELSEWHERE, AGAIN) or stopping():
            return outcome
        if refused >= REFUSALS:
            return {**outcome, "status": FAILED}
        if outcome["status"] == ELSEWHERE:
            time.sleep(LOOK)


def _run(piece: Piece, context: WorkContext, store: Store) -> dict[str, Any]:
    tracking, started, cell, key = context.tracking, now(), piece.cell, piece.cell.key()
    try:
        store.update([key], checkpoint=cell.checkpoint if isinstance(cell, Cell) else "")
        before = store.read(key)
        if before.status == "damaged":
            store.forget_result(key)
            before = store.read(key)
        if before.status == "finished":
            store.publish(key)
    except OSError as error:
        return _later(key, f"{type(error).__name__}: {error}")
    if before.status == "finished":  # by another driver, by a launch that was killed, or by this one before it died
        return _finished(key, before, store, cell, tracking)
    try:
        store.write_cell(cell)
        if piece.whole:
            outcome, batch_size = _in_memory(cell, context, (context.work or CELLS).execute)
        else:
            done = _evaluate_part(piece, context, store)
            if done is None:
                return {"key": key, "status": PART, "episodes": piece.end - piece.start}
            outcome, batch_size = done
        made_by = {
            **outcome.provenance,
            "code_hash": code_hash(),
            "git_commit": context.git_commit,
            "versions": versions(PACKAGES),
            "host": platform.node(),
            "batch_size": batch_size,
        }
        if loaded := made_by.get("weights_hash"):
            store.pin_weights(cell.backbone, cell.weights, loaded)
        store.write_result(
            cell,
            metrics={name: float(value) for name, value in outcome.metrics.items()},
            provenance=made_by,
            started=started,
            undefined=getattr(outcome, "undefined", None),
            episodes=outcome.episodes,
            panels=outcome.panels,
        )
        store.publish(key)
        if not piece.whole:
            forget_parts(store, key)
    except Exception as error:
        message, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
        with contextlib.suppress(OSError):  # of a full disk, say; then the cell is simply not finished
            store.write_error(cell, message, trace, passing=passes(error))
            store.publish(key)
        if tracking is not None:
            log_failure(tracking, cell, message, trace, started)
        return {"key": key, "status": FAILED, "error": message}
    return _finished(key, store.read(key), store, cell, tracking)


def passes(error: Exception) -> bool:
    """Whether an error is of a machine, or of what all share, and not of the cell: then it may be gone next time."""
    return isinstance(error, RemoteError) or (isinstance(error, OSError) and error.errno in PASSING)


def _finished(key: str, record: Record, store: Store, cell: AnyCell, tracking: Tracking | None) -> dict[str, Any]:
    if tracking is not None:
        log_cell(tracking, store, cell, record)
    metrics, evaluated = record.metrics, isinstance(cell, Cell)
    known = metrics.get("miou" if evaluated else "loss")
    figure = "undefined" if known is None else f"{known:.1f}" if evaluated else f"{known:.4f}"
    headline = f"{'mIoU' if evaluated else 'loss'} {figure}"
    if warnings := record.result.get("provenance", {}).get("warnings"):
        headline += f"; warning: {'; '.join(warnings)}"
    episodes = cell.episodes if isinstance(cell, Cell) else 0
    return {"key": key, "status": FINISHED, "headline": headline, "episodes": episodes}


def _in_memory(cell: AnyCell, context: WorkContext, do: Callable[..., Any], *range: int) -> tuple[Any, int]:
    """Do the work; where a GPU runs out of memory, with half the batch (never identity for an evaluation cell)."""
    while True:
        try:
            return do(cell, context, *range), context.batch_size
        except Exception as error:
            full = type(error).__name__ == "OutOfMemoryError"
            if not full or isinstance(cell, TrainingCell) or context.batch_size < 2:
                raise
            context = replace(context, batch_size=context.batch_size // 2)


def _evaluate_part(piece: Piece, context: WorkContext, store: Store) -> tuple[Any, int] | None:
    """Evaluate a part, unless it is there; if it was the last, the outcome of the whole cell and the batch size."""
    work, cell, batch_size = context.work or CELLS, piece.cell, context.batch_size
    assert isinstance(cell, Cell) and work.evaluate_part and work.conclude
    how = {"batch_size": batch_size, "device": context.device, "threads": context.threads}
    bring_parts(store, cell.key())
    if read_part(store, piece, how) is None:
        part, batch_size = _in_memory(cell, context, work.evaluate_part, piece.start, piece.end)
        write_part(store, piece, part, how)
        bring_parts(store, cell.key())
    parts = []
    for start, end in ranges(cell, context.shard_episodes, context.batch_size):
        found = read_part(store, Piece(cell, start, end), how)
        if found is None:
            return None
        parts.append(Part(*found))
    return work.conclude(cell, replace(context, batch_size=batch_size), parts), batch_size
