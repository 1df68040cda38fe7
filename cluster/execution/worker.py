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
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from ray import tune

from cluster.code_version import code_hash
from cluster.execution.context import KEEPS_NO_FEATURES, WorkContext
from cluster.execution.work_units import WorkUnit, forget_parts, parts_of, pass_of, work_units, write_part
from cluster.options import Work
from cluster.storage.atomic import check_writable, now
from cluster.storage.backend import RemoteError
from cluster.storage.layout import LAUNCHES
from cluster.storage.leases import Lease, acquire
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
        self.results = _results(config["units"], config["context"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next units in the same process."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Report the next unit that has ended."""
        result = next(self.results)
        if result["done"]:
            self.results.close()
        return result

    def cleanup(self) -> None:
        """Give back the leases of what has not ended."""
        self.results.close()


def _results(units: Sequence[WorkUnit], context: WorkContext) -> Generator[dict[str, Any]]:
    """What a trial reports of each of its units as it ends; those of one pass are run at once."""
    left = list(units)
    while left:
        count, began = len(left) if in_one_pass(left, context) else 1, time.monotonic()
        units, left = left[:count], left[count:]
        if complaint := unfit(context):
            time.sleep(PAUSE)
            ends = ((unit, _later(unit.cell.key(), complaint)) for unit in units)
        else:
            ends = run_units(units, context)
        with contextlib.closing(ends):
            for number, (unit, outcome) in enumerate(ends, 1):
                took = (time.monotonic() - began) / count
                yield {**outcome, "unit": unit.name, "took": took, "done": number == count and not left}


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
    """Whether units are evaluated together: those of one pass (`cluster.execution.work_units.pass_of`), where no cache
    on disk keeps what they share."""
    if len(units) < 2 or context.cache not in KEEPS_NO_FEATURES or work_of(context).execute_together is None:
        return False
    return len({pass_of(unit) for unit in units}) == 1 and pass_of(units[0]) is not None


def run_unit(unit: WorkUnit, context: WorkContext) -> dict[str, Any]:
    """The outcome of one unit, see `run_units`."""
    ((_, outcome),) = run_units([unit], context)
    return outcome


def run_units(units: Sequence[WorkUnit], context: WorkContext) -> Generator[tuple[WorkUnit, dict[str, Any]]]:
    """Run units under their leases, several of them in one pass, and record each one's outcome as it ends.

    Args:
        units: a cell, a part of one, or units that are `in_one_pass`.
        context: of the launch.

    Yields:
        each unit, when it is recorded and its lease released, with ``key``, ``status``, and ``headline`` and
        ``episodes``, or ``error``. The status is ``"finished"``, ``"failed"``, ``"part"`` (other parts of the cell are
        still missing), ``"elsewhere"`` (another launch runs it) or ``"again"`` (nothing was started: the storage is
        unavailable).
    """
    store, started, leases = context.store, now(), dict[str, Lease]()
    todo, ended, later = list[WorkUnit](), list[tuple[WorkUnit, Any]](), list[tuple[WorkUnit, Any]]()
    try:
        for unit in units:
            key = unit.cell.key()
            try:
                lease = acquire(store.leases, unit.name, context.launch)
                if lease is None:
                    ended.append((unit, {"key": key, "status": ELSEWHERE}))
                    continue
                leases[unit.name] = lease
                before = _before(unit.cell, context, store)
            except OSError as error:
                later.append((unit, _later(key, f"{type(error).__name__}: {error}")))
                continue
            if before is None:
                todo.append(unit)
            else:
                ended.append((unit, before))
        with system_metrics(context.tracking if context.system_metrics and todo else None):
            for unit, outcome in chain(ended, _run(todo, context, store, started)):
                if unit.name in leases:
                    leases.pop(unit.name).release()
                yield unit, outcome
    finally:
        for lease in leases.values():
            lease.release()
    if later:
        time.sleep(PAUSE)
    yield from later


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


def _run(
    units: Sequence[WorkUnit], context: WorkContext, store: Store, started: str
) -> Iterator[tuple[WorkUnit, dict[str, Any]]]:
    """Run what is missing of units, several of them in one pass, and record each as it ends; those that a GPU's memory
    was too small for are run once more, alone."""
    left = dict[str, WorkUnit]()
    for unit in units:
        try:
            store.write_cell(unit.cell)
            missing = unit.whole or parts_of([unit], context) is None
        except Exception as error:
            yield unit, _failed(unit.cell, error, context, store, started)
            continue
        if missing:
            left[unit.cell.key()] = unit
        else:
            yield unit, _recorded(unit, None, context.batch_size, context, store, started)
    together = work_of(context).execute_together
    if len(left) > 1:
        assert together is not None
        for cell, made in together([unit.cell for unit in left.values()], context, units[0].start, units[0].end):
            if not (isinstance(made, Exception) and _full(made)):
                unit = left.pop(cell.key())
                yield unit, _recorded(unit, made, context.batch_size, context, store, started)
    for unit in left.values():
        yield unit, _recorded(unit, *_alone(unit, context), context, store, started)


def _recorded(
    unit: WorkUnit, made: Any, batch_size: int, context: WorkContext, store: Store, started: str
) -> dict[str, Any]:
    """Write the result, part (None: it is there) or error that a unit has made, and after its last part the cell's."""
    cell, key = unit.cell, unit.cell.key()
    if isinstance(made, Exception):
        return _failed(cell, made, context, store, started)
    try:
        if not unit.whole:
            if made is not None:
                write_part(unit, made, context)
            parts = parts_of(work_units([cell], context.shard_episodes, context.batch_size), context)
            if parts is None:
                return {"key": key, "status": PART, "episodes": unit.end - unit.start}
            conclude = work_of(context).conclude
            assert conclude is not None
            made = conclude(cell, replace(context, batch_size=batch_size), parts)
        _keep(unit, made, batch_size, context, store, started)
    except Exception as error:
        return _failed(cell, error, context, store, started)
    return _finished(key, store.read(key), store, cell, context.tracking)


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
    key, message = cell.key(), "; ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
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
    metrics, made = record.metrics, record.result.get("provenance", {})
    name, digits = ("mIoU", 1) if isinstance(cell, Cell) else ("loss", 4)
    known = metrics.get(name.lower())
    headline = f"{name} {'undefined' if known is None else f'{known:.{digits}f}'}"
    if warnings := made.get("warnings"):
        headline += f"; warning: {'; '.join(warnings)}"
    did = {"images": made.get("images_encoded", 0), "triples": made.get("priors_computed", 0)}
    did |= {"episodes": cell.episodes if isinstance(cell, Cell) else 0, "busy": metrics.get("busy_share", 0.0)}
    return {"key": key, "status": FINISHED, "headline": headline, **did}


def _alone(unit: WorkUnit, context: WorkContext) -> tuple[Any, int]:
    """What a unit makes, or its error, and the batch size: half of it (never identity for an evaluation cell) where a
    GPU runs out of memory."""
    work, range = work_of(context), () if unit.whole else (unit.start, unit.end)
    do = work.execute if unit.whole else work.evaluate_part
    assert do is not None
    while True:
        try:
            return do(unit.cell, context, *range), context.batch_size
        except Exception as error:
            if not _full(error) or isinstance(unit.cell, TrainingCell) or context.batch_size < 2:
                return error, context.batch_size
            context = replace(context, batch_size=context.batch_size // 2)


def _full(error: Exception) -> bool:
    """Whether a GPU's memory was too small."""
    return type(error).__name__ == "OutOfMemoryError"
