"""The driver: plan, check, run what is missing in one Ray Tuner, and say how it went.

A launch can be killed at any moment: the next one runs exactly the cells whose result is not in the store.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.checks import check_workers, git_commit, only_one, preflight
from cluster.files import now, to_json, write_atomically
from cluster.plan import Plan, make_plan, render
from cluster.store import LAUNCHES, Store, cell_document, code_hash
from cluster.tracking import Tracking, close_tracking, log_cell, log_failure, open_tracking, resolve_uri
from experiments.cell import AnyCell, TrainingCell
from experiments.grids import select

if TYPE_CHECKING:  # Ray is imported only when there is something to run
    from cluster.progress import Progress
    from cluster.tuning import Job

DONE, SOME_FAILED, BAD_INPUT = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Options:
    """Runtime options of a launch; none of them is identity.

    Attributes:
        results: result store.
        tracking_uri: MLflow; ``""`` = a sqlite file in `results`.
        select: see `experiments.grids.select`.
        dry_run: print the plan and stop.
        max_concurrent: trials at a time; 0 = one for each CPU (or GPU share).
        retry_failed, force: see `cluster.plan.make_plan`.
        weights_dir: folder of local backbone weights.
        batch_size: episodes at a time in evaluation.
        gpus_per_trial: share of a GPU that an evaluation cell gets, where there are GPUs; training gets a whole one.
        train_workers: processes that share a training cell's steps (`cluster.training`).
    """

    results: Path
    tracking_uri: str = ""
    select: str = ""
    dry_run: bool = False
    max_concurrent: int = 0
    retry_failed: bool = False
    force: str = ""
    weights_dir: Path | None = None
    batch_size: int = 8
    gpus_per_trial: float = 1.0
    train_workers: int = 1


def launch(
    name: str, cells: Sequence[AnyCell], options: Options, *, datasets: dict[str, Path], work: str = "cluster.work"
) -> int:
    """Bring a grid to completion.

    Args:
        name: of the grid; the MLflow experiment.
        cells: the grid.
        options: how.
        datasets: ``dataset.json`` by data set name; others are looked up by name when they are needed.
        work: module that has ``execute`` and ``WorkContext``.

    Returns:
        0 if all valid cells are finished, 1 if some failed.

    Raises:
        ValueError: a user's mistake, found before anything is run or written.
    """
    store = Store(options.results.absolute())
    uri = resolve_uri(options.tracking_uri, store.root)
    cells = select(cells, options.select)
    plan = make_plan(
        cells,
        store,
        retry_failed=options.retry_failed,
        force=options.force,
        forced=_forced(cells, options.select),
    )
    print(render(plan, name, details=options.dry_run), flush=True)
    for damaged in plan.damaged:
        print(f"warning: {damaged.why}; cell {damaged.key} is made again", file=sys.stderr)
    if options.dry_run:
        return DONE
    if not plan.todo:
        _log_missing(plan, store, uri, name)
        return SOME_FAILED if plan.count("failed") + plan.count("blocked") else DONE
    check_workers(plan.todo, options.train_workers)
    paths = preflight(plan.todo, datasets, options.weights_dir)
    store.make_writable()
    from cluster.session import ray_session

    with only_one(store.root), ray_session():
        from cluster.tuning import Job

        _close_killed(store)
        launch_name, commit = f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}", git_commit()
        tags = {"git_commit": commit, "code_hash": code_hash(), "results": str(store.root), "host": platform.node()}
        job = Job(
            name=launch_name,
            cells=plan.todo,
            seconds=plan.seconds,
            store=store,
            tracking=open_tracking(uri, name, launch_name, store.root, tags),
            work=work,
            datasets=paths,
            weights_dir=options.weights_dir,
            batch_size=options.batch_size,
            gpus_per_trial=options.gpus_per_trial,
            max_concurrent=options.max_concurrent,
            train_workers=options.train_workers,
            git_commit=commit,
        )
        return _run(name, cells, plan, job)


def _forced(cells: Sequence[AnyCell], selection: str) -> frozenset[str]:
    """Cells that --force applies to: all, or the selected ones without the training cells they happen to need."""
    spared = TrainingCell if selection and "kind=train" not in selection else ()
    return frozenset(cell.key() for cell in cells if not isinstance(cell, spared))


def _run(name: str, cells: Sequence[AnyCell], plan: Plan, job: Job) -> int:
    from cluster.tuning import run_trials

    store = job.store
    shutil.rmtree(store.root / ".tune", ignore_errors=True)
    for cell in plan.todo:
        status = store.read(cell.key()).status
        if status == "finished":
            store.forget(cell.key())
        elif status == "damaged":
            store.forget_result(cell.key())
    note: dict[str, Any] = {
        "schema": 1,
        "name": name,
        "keys": [cell.key() for cell in cells],
        "cells": [cell_document(cell) for cell in cells],
        "started": now(),
        "ended": None,
        "tracking": job.tracking.to_dict() if job.tracking else None,
    }
    path = store.root / LAUNCHES / f"{job.name}.json"
    write_atomically(path, to_json(note))
    if job.tracking is not None:
        _log_finished(plan, store, job.tracking)
    status, counts = "KILLED", dict[str, float]()
    try:
        progress, dropped = run_trials(job)
        for cell in plan.todo:
            if cell.key() in progress.crashed:
                _record_crash(cell, progress.crashed[cell.key()], job)
        unfinished = [cell.key() for cell in plan.todo if store.read(cell.key()).status != "finished"]
        bad = len(unfinished) + plan.count("failed") + plan.count("blocked")
        status = "FAILED" if bad else "FINISHED"
        counts = {
            "cells_finished": len(plan.todo) - len(unfinished) + plan.count("finished"),
            "cells_failed": len(progress.failed) + plan.count("failed"),
            "episodes_per_s": progress.episodes / max(progress.seconds, 1e-9),
            "seconds": progress.seconds,
        }
        _conclude(name, plan, unfinished, dropped, progress, store)
        return SOME_FAILED if bad else DONE
    except KeyboardInterrupt:
        print("interrupted; finished cells are kept, and the same command does the rest", file=sys.stderr)
        return SOME_FAILED
    finally:
        if job.tracking is not None:
            close_tracking(job.tracking, status, counts)
        write_atomically(path, to_json({**note, "ended": now(), "status": status}))
        shutil.rmtree(store.root / ".tune", ignore_errors=True)


def _record_crash(cell: AnyCell, why: str, job: Job) -> None:
    job.store.write_error(cell, why, "")
    if job.tracking is not None:
        log_failure(job.tracking, cell, why, "", now())


def _conclude(
    name: str, plan: Plan, unfinished: list[str], dropped: list[str], progress: Progress, store: Store
) -> None:
    finished = len(plan.todo) - len(unfinished) + plan.count("finished")
    words = [f"{name}: {finished} of {len(plan.todo) + len(plan.left_out)} cells finished"]
    if progress.failed:
        words.append(f"{len(progress.failed)} failed")
    if dropped:
        words.append(f"{len(dropped)} not run because their training failed")
    rate = f", {progress.episodes / progress.seconds:.0f} episodes/s" if progress.episodes else ""
    print(f"{'; '.join(words)} ({progress.seconds:.0f} s{rate})", flush=True)
    for key in progress.failed:
        print(f"  failed: {key}: see {store.folder(key) / 'error.json'}", flush=True)
    if progress.failed:
        print("  --retry-failed runs failed cells again", flush=True)


def _log_finished(plan: Plan, store: Store, tracking: Tracking) -> None:
    """Log finished cells that tracking has missed so far."""
    for left in plan.left_out:
        missing = left.status == "finished" and not store.logged(left.cell.key(), tracking.uri)
        if missing and not log_cell(tracking, store, left.cell):
            return


def _log_missing(plan: Plan, store: Store, uri: str, name: str) -> None:
    """With nothing to run: log what tracking has missed, under a parent run of its own; mostly there is nothing."""
    finished = [left.cell for left in plan.left_out if left.status == "finished"]
    if all(store.logged(cell.key(), uri) for cell in finished):
        return
    tracking = open_tracking(uri, name, f"{name}-sync-{datetime.now(UTC):%Y%m%d-%H%M%S}", store.root, {"sync": "true"})
    if tracking is not None:
        _log_finished(plan, store, tracking)
        close_tracking(tracking, "FINISHED", {})


def _close_killed(store: Store) -> None:
    """End the parent runs of launches that were killed; the lock says that none of them is alive."""
    for path in sorted((store.root / LAUNCHES).glob("*.json")):
        try:
            note = json.loads(path.read_bytes())
            if note["ended"] is None:
                write_atomically(path, to_json({**note, "ended": now(), "status": "KILLED"}))
                if note["tracking"]:
                    close_tracking(Tracking(**note["tracking"]), "KILLED", {})
        except (OSError, ValueError, KeyError, TypeError):
            continue
