"""The trainable: a trial runs some pieces of work, one a step, writes the store and logs MLflow runs. Workers live on.

A cell that raises fails alone and is not tried again: its error is recorded, and Tune sees a trial that goes on. Only
the death of a worker process is Tune's business. Before a worker begins a piece it takes the piece's lease, so that of
several drivers on one results directory one runs it.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import platform
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune

from cluster.code_version import code_hash
from cluster.execution.work_units import Piece, bring_parts, forget_parts, ranges, read_part, write_part
from cluster.storage.atomic import check_writable, now
from cluster.storage.backend import RemoteError
from cluster.storage.layout import LAUNCHES
from cluster.storage.leases import Lease, acquire
from cluster.storage.record import Record
from cluster.storage.results import Store
from cluster.storage.sync import Sync
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
        self.task = config
        self.left = json.loads(config["pieces"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next pieces in the same process."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Run the next piece."""
        piece, began = Piece.from_dict(self.left.pop(0)), time.monotonic()
        if complaint := unfit(self.task["results"], self.task["remote"], self.task["launch"]):
            done = _later(piece.cell.key(), complaint)
        else:
            done = run_piece(piece, self.task)
        return {**done, "piece": piece.name, "took": time.monotonic() - began, "done": not self.left}


_fit: set[tuple[str, str]] = set()  # results and launches that this process has looked at


def unfit(results: str, remote: str, launch: str, patience: float = 10.0) -> str:
    """Why this node, which may have come after the launch's start, can't run its cells; ``""`` if it can.

    Args:
        results, remote: folder of the results, and the object store that it is a copy of, ``""`` if none.
        launch: its name.
        patience: seconds until a file server shows what was written elsewhere.
    """
    root, node = Path(results), platform.node()
    note = f"{LAUNCHES}/{launch}.json"
    if (results, launch) in _fit:
        return ""
    if not Sync(root, remote).appears(note, patience):
        return f"node {node} does not see {root / note}: mount the results there, or take it out of the cluster"
    try:
        check_writable(root)
    except OSError as error:
        return f"node {node} can't write to {root}: {error}"
    _fit.add((results, launch))
    return ""


def _later(key: str, why: str) -> dict[str, Any]:
    """The outcome of a piece that could not begin here and now."""
    time.sleep(PAUSE)
    return {"key": key, "status": AGAIN, "error": why}


def run_piece(piece: Piece, task: dict[str, Any]) -> dict[str, Any]:
    """Run a piece under its lease and record what came of it.

    Args:
        piece: a cell or a part of one.
        task: ``results`` (absolute), ``work`` (module with ``execute`` and ``WorkContext``), ``options`` (arguments of
            WorkContext), ``tracking`` (`Tracking` as a dict, or None), ``git_commit``, ``launch``, ``shard_episodes``.

    Returns:
        ``key``, ``status``, and ``headline`` and ``episodes``, or ``error``. The status is ``"finished"``,
        ``"failed"``, ``"part"`` (of a cell of which others are to come), ``"elsewhere"`` (another driver is at it) or
        ``"again"`` (nothing was begun: what all share does not answer).
    """
    store = Store(Path(task["results"]), task.get("remote", ""))
    key = piece.cell.key()
    try:
        lease = acquire(store.leases, piece.name, task["launch"])
    except OSError as error:
        return _later(key, f"{type(error).__name__}: {error}")
    if lease is None:
        return {"key": key, "status": ELSEWHERE}
    watched = Tracking(**task["tracking"]) if task.get("system_metrics") and task["tracking"] else None
    try:
        with system_metrics(watched):
            return _run(piece, task, store, lease)
    finally:
        lease.release()


def run_in_turn(piece: Piece, task: dict[str, Any], stopping: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """`run_piece`, again while another driver is at it, and `REFUSALS` times while what all share does not answer."""
    refused = 0
    while True:
        outcome = run_piece(piece, task)
        refused += outcome["status"] == AGAIN
        if outcome["status"] not in (ELSEWHERE, AGAIN) or stopping():
            return outcome
        if refused >= REFUSALS:
            return {**outcome, "status": FAILED}
        if outcome["status"] == ELSEWHERE:
            time.sleep(LOOK)


def _run(piece: Piece, task: dict[str, Any], store: Store, lease: Lease) -> dict[str, Any]:
    started, cell, key = now(), piece.cell, piece.cell.key()
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
    tracking = Tracking(**task["tracking"]) if task["tracking"] else None
    if before.status == "finished":  # by another driver, by a launch that was killed, or by this one before it died
        return _finished(key, before, store, cell, tracking)
    try:
        store.write_cell(cell)
        if piece.whole:
            outcome, batch_size = _execute(cell, task)
        else:
            done = _evaluate_part(piece, task, store)
            if done is None:
                return {"key": key, "status": PART, "episodes": piece.end - piece.start}
            outcome, batch_size = done
        made_by = {
            **outcome.provenance,
            "code_hash": code_hash(),
            "git_commit": task["git_commit"],
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


def context_options(options: dict[str, Any], results: str) -> dict[str, Any]:
    """Arguments of a WorkContext from their plain types."""
    paths = {name: options[name] for name in ("weights_dir", "features") if name in options}
    return {**options, **{n: Path(p) if p else None for n, p in paths.items()}, "results": Path(results)}


def _execute(cell: AnyCell, task: dict[str, Any]) -> tuple[Any, int]:
    """Do the work; where a GPU runs out of memory, with half the batch (never identity for an evaluation cell)."""
    work = importlib.import_module(task["work"])
    options = context_options(task["options"], task["results"])
    return _in_memory(cell, options, lambda: work.execute(cell, work.WorkContext(**options)))


def _in_memory(cell: AnyCell, options: dict[str, Any], do: Any) -> tuple[Any, int]:
    while True:
        try:
            return do(), options["batch_size"]
        except Exception as error:
            full = type(error).__name__ == "OutOfMemoryError"
            if not full or isinstance(cell, TrainingCell) or options["batch_size"] < 2:
                raise
            options["batch_size"] //= 2


def _evaluate_part(piece: Piece, task: dict[str, Any], store: Store) -> tuple[Any, int] | None:
    """Evaluate a part, unless it is there; if it was the last, the outcome of the whole cell."""
    work = importlib.import_module(task["work"])
    cell = piece.cell
    assert isinstance(cell, Cell)
    options = context_options(task["options"], task["results"])
    asked = options["batch_size"]
    how = {"batch_size": asked, "device": options["device"], "threads": options["threads"]}
    bring_parts(store, cell.key())
    if read_part(store, piece, how) is None:
        part, _ = _in_memory(
            cell, options, lambda: work.evaluate_part(cell, work.WorkContext(**options), piece.start, piece.end)
        )
        write_part(store, piece, part, how)
        bring_parts(store, cell.key())
    parts = []
    for start, end in ranges(cell, task["shard_episodes"], asked):
        found = read_part(store, Piece(cell, start, end), how)
        if found is None:
            return None
        parts.append(work.Part(*found))
    return work.conclude(cell, work.WorkContext(**options), parts), options["batch_size"]
