"""Workers: a Ray Tune trainable that runs work units, one per step, writes their results and logs their MLflow runs.

Worker processes are reused by later trials. A cell that raises fails alone and is not retried: its error is recorded,
and Tune sees a trial that goes on; only the death of a worker process reaches Tune. Before a worker starts a unit it
takes the unit's lease, so that of several launches on one results directory exactly one runs it.
"""

from __future__ import annotations

import contextlib
import errno
import platform
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune

from cluster.code_version import code_hash
from cluster.execution.context import KEEPS_NO_FEATURES, WorkContext
from cluster.execution.work_units import WorkUnit, bring_parts, forget_parts, pass_of, ranges, read_part, write_part
from cluster.options import Work
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
PAUSE = 5.0  # seconds before a unit that could not start is returned
REFUSALS = 60  # times that a unit may find the storage unavailable
LOOK = 3.0  # seconds between looks at what other launches are running
ATTEMPTS = 3  # of a unit whose worker dies
# Errors of a machine rather than of a cell: a full disk, a file server that does not answer.
PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS, errno.ENOTCONN, errno.ETIMEDOUT)


class CellTrial(tune.Trainable):
    """Runs the work units in ``config["units"]``, one per step."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Resources by the kind of cell, so that one Tuner serves several resource classes."""
        return tune.PlacementGroupFactory([dict(config["resources"][config["kind"]])])

    def setup(self, config: dict[str, Any]) -> None:
        """Nothing is loaded here: `cluster.execution.inputs` caches backbones and features per process."""
        self.context: WorkContext = config["context"]
        self.left: list[WorkUnit] = list(config["units"])
        self.ended: list[dict[str, Any]] = []

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next units in the same process."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Report the next unit that has ended; units of one pass are run at once."""
        if not self.ended:
            count = len(self.left) if in_one_pass(self.left, self.context) else 1
            units, self.left, began = self.left[:count], self.left[count:], time.monotonic()
            if complaint := unfit(self.context):
                time.sleep(PAUSE)
                done = [_later(unit.cell.key(), complaint) for unit in units]
            else:
                done = run_units(units, self.context)
            took = (time.monotonic() - began) / count
            self.ended = [{**each, "unit": unit.name, "took": took} for unit, each in zip(units, done, strict=True)]
        return {**self.ended.pop(0), "done": not self.left and not self.ended}


_fit: set[tuple[Path, str]] = set()  # results and launches that this process has checked


def unfit(context: WorkContext, patience: float = 10.0) -> str:
    """Why this node, which may have joined after the launch's start, can't run its cells; ``""`` if it can.

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
    """The outcome of a unit that could not start."""
    return {"key": key, "status": AGAIN, "error": why}


def in_one_pass(units: Sequence[WorkUnit], context: WorkContext) -> bool:
    """Whether units are evaluated together: whole cells of one pass (`cluster.execution.work_units.pass_of`), where no
    cache on disk keeps what they share."""
    if len(units) < 2 or context.cache not in KEEPS_NO_FEATURES or work_of(context).execute_together is None:
        return False
    return len({pass_of(unit) for unit in units}) == 1 and pass_of(units[0]) is not None


def run_unit(unit: WorkUnit, context: WorkContext) -> dict[str, Any]:
    """`run_units` of one."""
    return run_units([unit], context)[0]


def run_units(units: Sequence[WorkUnit], context: WorkContext) -> list[dict[str, Any]]:
    """Run units under their leases, several of them in one pass, and record each one's outcome.

    Args:
        units: a cell, a part of one, or cells that are `in_one_pass`.
        context: of the launch.

    Returns:
        for each unit ``key``, ``status``, and ``headline`` and ``episodes``, or ``error``. The status is
        ``"finished"``, ``"failed"``, ``"part"`` (other parts of the cell are still missing), ``"elsewhere"`` (another
        launch runs it) or ``"again"`` (nothing was started: the storage is unavailable).
    """
    store, started = context.store, now()
    ended: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as leases:
        for unit in units:
            key = unit.cell.key()
            try:
                lease = acquire(store.leases, unit.name, context.launch)
                if lease is None:
                    ended[unit.name] = {"key": key, "status": ELSEWHERE}
                    continue
                leases.callback(lease.release)
                if (before := _before(unit.cell, context, store)) is not None:
                    ended[unit.name] = before
            except OSError as error:
                ended[unit.name] = _later(key, f"{type(error).__name__}: {error}")
        todo = [unit for unit in units if unit.name not in ended]
        with system_metrics(context.tracking if context.system_metrics and todo else None):
            if len(todo) > 1:
                ended |= _run_together(todo, context, store, started)
            else:
                ended |= {unit.name: _run(unit, context, store, started) for unit in todo}
    if any(done["status"] == AGAIN for done in ended.values()):
        time.sleep(PAUSE)
    return [ended[unit.name] for unit in units]


def run_in_turn(unit: WorkUnit, context: WorkContext, stopping: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """`run_unit`, repeated while another launch runs it, and `REFUSALS` times while the storage is unavailable."""
    refused = 0
    while True:
        outcome = run_unit(unit, context)
        refused += outcome["status"] == AGAIN
        if outcome["status"] not in (ELSEWHERE, AGAIN) or stopping():
            return outcome
        if refused >= REFUSALS:
            return {**outcome, "status": FAILED}
        if outcome["status"] == ELSEWHERE:
            time.sleep(LOOK)


def _before(cell: AnyCell, context: WorkContext, store: Store) -> dict[str, Any] | None:
    """The outcome of a cell that is finished: by another launch, or by this one before a worker died.

    Raises:
        OSError: the storage is unavailable.
    """
    key = cell.key()
    store.update([key], checkpoint=cell.checkpoint if isinstance(cell, Cell) else "")
    before = store.read(key)
    if before.status == "damaged":
        store.forget_result(key)
        before = store.read(key)
    if before.status != "finished":
        return None
    store.publish(key)
    return _finished(key, before, store, cell, context.tracking)


def _run(unit: WorkUnit, context: WorkContext, store: Store, started: str) -> dict[str, Any]:
    cell, key = unit.cell, unit.cell.key()
    try:
        store.write_cell(cell)
        if unit.whole:
            outcome, batch_size = _in_memory(cell, context, work_of(context).execute)
        else:
            done = _evaluate_part(unit, context, store)
            if done is None:
                return {"key": key, "status": PART, "episodes": unit.end - unit.start}
            outcome, batch_size = done
        _keep(unit, outcome, batch_size, context, store, started)
    except Exception as error:
        return _failed(cell, error, context, store, started)
    return _finished(key, store.read(key), store, cell, context.tracking)


def _run_together(
    units: Sequence[WorkUnit], context: WorkContext, store: Store, started: str
) -> dict[str, dict[str, Any]]:
    """Run cells in one pass; those that a GPU's memory was too small for run once more, alone."""
    together = work_of(context).execute_together
    assert together is not None
    by_key, ended = {unit.cell.key(): unit for unit in units}, dict[str, dict[str, Any]]()
    for cell, outcome in together([unit.cell for unit in units], context):
        unit = by_key[cell.key()]
        if isinstance(outcome, Exception) and _full(outcome):
            ended[unit.name] = _run(unit, context, store, started)
        elif isinstance(outcome, Exception):
            ended[unit.name] = _failed(cell, outcome, context, store, started)
        else:
            try:
                store.write_cell(cell)
                _keep(unit, outcome, context.batch_size, context, store, started)
            except Exception as error:
                ended[unit.name] = _failed(cell, error, context, store, started)
            else:
                found = store.read(cell.key())
                ended[unit.name] = _finished(cell.key(), found, store, cell, context.tracking)
    return ended


def _keep(unit: WorkUnit, outcome: Any, batch_size: int, context: WorkContext, store: Store, started: str) -> None:
    """Write a result."""
    cell, key = unit.cell, unit.cell.key()
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
    if not unit.whole:
        forget_parts(store, key)


def _failed(cell: AnyCell, error: Exception, context: WorkContext, store: Store, started: str) -> dict[str, Any]:
    """Record an error."""
    key, message = cell.key(), f"{type(error).__name__}: {error}"
    trace = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):  # such as a full disk; then the cell is simply not finished
        store.write_error(cell, message, trace, passing=passes(error))
        store.publish(key)
    if context.tracking is not None:
        log_failure(context.tracking, cell, message, trace, started)
    return {"key": key, "status": FAILED, "error": message}


def work_of(context: WorkContext) -> Work:
    """What a cell takes: the context's own work, else `cluster.execution.run_cell`, which loads torch."""
    if context.work is not None:
        return context.work
    from cluster.execution.run_cell import CELLS

    return CELLS


def passes(error: Exception) -> bool:
    """Whether an error is of a machine or the storage rather than of the cell, so that a retry may succeed."""
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
            if not _full(error) or isinstance(cell, TrainingCell) or context.batch_size < 2:
                raise
            context = replace(context, batch_size=context.batch_size // 2)


def _full(error: Exception) -> bool:
    """Whether a GPU's memory was too small."""
    return type(error).__name__ == "OutOfMemoryError"


def _evaluate_part(unit: WorkUnit, context: WorkContext, store: Store) -> tuple[Any, int] | None:
    """Evaluate a part, unless it is there; if it was the last, the outcome of the whole cell and the batch size."""
    work, cell, batch_size = work_of(context), unit.cell, context.batch_size
    assert isinstance(cell, Cell) and work.evaluate_part and work.conclude
    how = {"batch_size": batch_size, "device": context.device, "threads": context.threads}
    bring_parts(store, cell.key())
    if read_part(store, unit, how) is None:
        part, batch_size = _in_memory(cell, context, work.evaluate_part, unit.start, unit.end)
        write_part(store, unit, part, how)
        bring_parts(store, cell.key())
    parts = []
    for start, end in ranges(cell, context.shard_episodes, context.batch_size):
        found = read_part(store, WorkUnit(cell, start, end), how)
        if found is None:
            return None
        parts.append(found)
    return work.conclude(cell, replace(context, batch_size=batch_size), parts), batch_size
