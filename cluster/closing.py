"""Ends launches: their last lines, MLflow runs that are still missing, and launches that were killed."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.planning.plan import Plan
from cluster.storage.atomic import now, to_json, write_atomically
from cluster.storage.layout import ERROR, LAUNCHES, TUNE
from cluster.storage.results import Store
from cluster.tracking.export import log_cell, log_failure
from cluster.tracking.launches import close_tracking
from cluster.tracking.runs import Tracking
from cluster.tracking.sync import sync
from cluster.tracking.view import diffup_command
from diffup.grid.axes import describe
from diffup.grid.cell import AnyCell, TrainingCell

if TYPE_CHECKING:  # Ray is imported only when there is something to run
    from cluster.execution.context import WorkContext
    from cluster.execution.progress import Progress

SHOWN = 10
MODELS = 4  # that are named at the end


def record_crash(cell: AnyCell, why: str, context: WorkContext) -> None:
    """Write the error of a cell whose worker died too often."""
    with contextlib.suppress(OSError):
        context.store.write_error(cell, why, "")
        context.store.publish(cell.key())
    if context.tracking is not None:
        log_failure(context.tracking, cell, why, "", now())


def conclude(name: str, plan: Plan, unfinished: list[str], dropped: list[str], progress: Progress) -> None:
    finished = len(plan.todo) - len(unfinished) + plan.count("finished")
    words = [f"{name}: {finished} of {len(plan.todo) + len(plan.left_out)} cells finished"]
    if progress.failed:
        words.append(f"{len(progress.failed)} failed")
    if dropped:
        words.append(f"{len(dropped)} not run because their training failed")
    print(f"{'; '.join(words)} ({', '.join([f'{progress.seconds:.0f} s', *progress.speed()])})", flush=True)


def trained_models(store: Store, cells: Sequence[AnyCell], weights_dir: Path | None = None) -> list[str]:
    """Where the first trained models that are DiffUp itself are, and what to do with one; nothing without any.

    Args:
        store, cells: of the launch.
        weights_dir: that its backbones' weights came from.
    """
    trained = [cell for cell in cells if isinstance(cell, TrainingCell) and cell.variant == "diffup"]
    there = [cell for cell in trained if store.read(cell.key(), verify=False).status == "finished"][:MODELS]
    if not there:
        return []
    lines = [f"model    {store.folder(cell.key())}  ({cell.backbone}, fold {cell.fold})" for cell in there]
    predict = shlex.join([*diffup_command(), "predict", "--checkpoint", str(store.folder(there[0].key()))])
    if weights_dir is not None:
        predict += f" --weights-dir {shlex.quote(str(weights_dir))}"
    return [*lines, f"         {predict} …"]


def failures(store: Store, cells: Sequence[AnyCell]) -> list[str]:
    """The last lines after a launch in which cells failed: how many, the first error, and where tracebacks are."""
    records = {cell.key(): store.read(cell.key(), verify=False) for cell in cells}
    failed = [(cell, records[cell.key()].result) for cell in cells if records[cell.key()].status == "failed"]
    if not failed:
        return []
    cell, first = min(failed, key=lambda each: str(each[1].get("time", "")))
    reason = " ".join(str(first["error"]).split())
    shown = [str(store.folder(cell.key()) / ERROR) for cell, _ in failed[:SHOWN]]
    more = f" (and {len(failed) - SHOWN} more)" if len(failed) > SHOWN else ""
    return [
        f"{len(failed)} of {len(records)} cells failed; --retry-failed runs them again",
        f"  first error: {cell.key()} {describe(cell)}: {reason if len(reason) <= 300 else reason[:300] + '…'}",
        f"  tracebacks: {'  '.join(shown)}{more}",
    ]


def log_finished(plan: Plan, store: Store, tracking: Tracking) -> None:
    """Log finished cells that tracking has missed so far."""
    for left in plan.left_out:
        missing = left.status == "finished" and not store.logged(left.cell.key(), tracking.uri)
        if missing and not log_cell(tracking, store, left.cell):
            return


def log_missing(plan: Plan, store: Store, uri: str) -> None:
    """With nothing to run: export what tracking has missed; mostly there is nothing."""
    if any(left.status == "finished" and not store.logged(left.cell.key(), uri) for left in plan.left_out):
        sync(store, uri)


def close_killed(store: Store, alive: set[str]) -> None:
    """End the parent runs of launches that were killed: those that hold no lease, `alive` are those that do."""
    for path in sorted((store.root / LAUNCHES).glob("*.json")):
        if path.stem in alive:
            continue
        try:
            note = json.loads(path.read_bytes())
            ended, tracking = note["ended"], Tracking(**note["tracking"]) if note["tracking"] else None
        except (OSError, ValueError, KeyError, TypeError):  # damaged
            continue
        if ended is None:
            with contextlib.suppress(OSError):
                write_atomically(path, to_json({**note, "ended": now(), "status": "KILLED"}))
            if tracking is not None:
                close_tracking(tracking, "KILLED", {}, path)
    for folder in (store.root / TUNE).glob("*"):
        if folder.name not in alive:
            shutil.rmtree(folder, ignore_errors=True)
