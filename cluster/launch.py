"""Launches a grid: plans it, checks it, runs what is missing in one Ray Tuner, and reports how it went.

A launch can be killed at any moment: the next one runs exactly the cells whose result is not in the store.
"""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import shutil
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.closing import close_killed, conclude, log_finished, log_missing, record_crash
from cluster.code_version import code_hash
from cluster.execution.session import ray_session, running_cluster
from cluster.execution.signals import Stop, stoppable
from cluster.options import Options, Work
from cluster.planning.cache import Choice, choose_cache, disk
from cluster.planning.counts import IMAGES, TESTED
from cluster.planning.estimate import evaluation_share
from cluster.planning.forecast import Forecast, completed, forecast, in_words
from cluster.planning.plan import Plan, make_plan, render
from cluster.planning.preflight import check_feasible, check_workers, git_commit, preflight
from cluster.planning.rates import read_rates
from cluster.storage.atomic import now, to_json, write_atomically
from cluster.storage.layout import LAUNCHES, TUNE
from cluster.storage.leases import acquire, held
from cluster.storage.results import Store, cell_document
from cluster.storage.sizes import format_size
from cluster.tracking.client import resolve_uri
from cluster.tracking.launches import close_tracking, open_tracking
from diffup.grid.axes import select
from diffup.grid.cell import AnyCell, TrainingCell
from diffup.home import home

if TYPE_CHECKING:  # Ray is imported only when there is something to run
    from cluster.execution.context import WorkContext

DONE, SOME_FAILED = 0, 1


def open_results(options: Options, name: str) -> Store:
    """The result store that is asked for; by default the folder ``results/NAME`` in DiffUp's home.

    Raises:
        UserError: no home directory is known.
    """
    return Store.at(options.results or home() / "results" / name)


def launch(
    name: str,
    cells: Sequence[AnyCell],
    options: Options,
    *,
    store: Store,
    datasets: dict[str, Path],
    work: Work | None = None,
) -> int:
    """Bring a grid to completion.

    Args:
        name: of the grid; the MLflow experiment.
        cells: the grid.
        options: how.
        store: of the results, see `open_results`.
        datasets: ``dataset.json`` by data set name; others are looked up by name when they are needed.
        work: what workers do in place of `cluster.execution.run_cell`.

    Returns:
        0 if all valid cells are finished, 1 if some failed.

    Raises:
        UserError: a user's mistake, found before anything is run or written.
    """
    uri = resolve_uri(options.tracking_uri, store.root)
    cells = select(cells, options.select)
    if options.dry_run:
        with store.read_only() as seen:
            plan, images = _planned(name, cells, seen, options, datasets, check=work is None)
        if plan.todo and work is None:
            _print_time(plan, options, store.root, images)
            print(_disk_line(plan.todo, _chosen_by(options, plan.todo, store.root, images), images), flush=True)
        return DONE
    store.sync.check_access()
    store.update()
    plan, images = _planned(name, cells, store, options, datasets, check=work is None)
    if not plan.todo:
        close_killed(store, held(store.leases))
        log_missing(plan, store, uri)
        return SOME_FAILED if plan.count("failed") + plan.count("blocked") else DONE
    check_workers(plan.todo, options.train_workers)
    if options.cache == "pixels":
        choose_cache(options.cache, plan.todo, gpu=False)
    read_rates(options.rates)
    if work is None and not running_cluster():
        _print_time(plan, options, store.root, images)
    paths = preflight(plan.todo, datasets, options.weights_dir)
    store.make_writable()
    features = None if options.cache == "none" else (options.features or store.root / "features").absolute()
    with ray_session(), stoppable() as stop:
        from cluster.execution.context import WorkContext
        from cluster.planning.nodes import check_nodes, gpu_memory_mb, shared_by_nodes, wait_for_nodes

        wait_for_nodes(stopping=stop.begun)
        used = {cell.dataset: paths[cell.dataset] for cell in plan.todo}
        for warning in check_nodes(*shared_by_nodes(store, features, options.weights_dir, used)):
            print(f"warning: {warning}", file=sys.stderr)
        launch_name = f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        leases = store.leases
        lease = acquire(leases, launch_name, platform.node())
        assert lease is not None, launch_name
        try:
            close_killed(store, held(leases))
            commit = git_commit()
            tags = {"git_commit": commit, "code_hash": code_hash(), "results": str(store.root), "host": platform.node()}
            opened = open_tracking(uri, name, launch_name, store, tags)
            context = WorkContext(
                **vars(options)
                | {
                    "results": store.root,
                    "weights_dir": options.weights_dir and options.weights_dir.absolute(),
                    "features": features,
                    "gpus_per_trial": options.gpus_per_trial or evaluation_share(plan.past, gpu_memory_mb()),
                },
                remote=store.remote,
                datasets=paths,
                launch=launch_name,
                # Workers of other machines can't reach a sqlite file in this one's copy.
                tracking=None if store.sync.is_copy and uri.startswith("sqlite:") else opened,
                git_commit=commit,
                work=work,
            )
            code = _run(name, cells, plan, context, stop, images)
            if opened is not None and context.tracking is None:
                log_finished(make_plan(cells, store), store, opened)
                note = store.root / LAUNCHES / f"{launch_name}.json"
                close_tracking(opened, "FAILED" if code else "FINISHED", {}, note)
            return code
        finally:
            lease.release()


def _planned(
    name: str, cells: Sequence[AnyCell], store: Store, options: Options, datasets: dict[str, Path], *, check: bool
) -> tuple[Plan, dict[str, int]]:
    """The plan, printed, and the number of images by data set, of those that are here.

    Raises:
        UserError: `check` is set, and the plan has cells that can't run.
    """
    plan = make_plan(
        cells,
        store,
        retry_failed=options.retry_failed,
        force=options.force,
        forced=_forced(cells, options.select),
        verify=options.verify,
        past=[Store(path.absolute()) for path in options.past],
    )
    workers = options.workers or options.max_concurrent or os.cpu_count() or 1
    rated = check and (options.dry_run or not running_cluster())  # a cluster's machines may be others
    found = check_feasible(plan.todo, datasets, options.weights_dir, elsewhere=running_cluster()) if check else None
    if found and any(cell.key() not in plan.seconds for cell in plan.todo) and plan.seconds:
        seconds = completed(plan.seconds, _forecast(plan.todo, options, store.root, found.images))
        plan = replace(plan, seconds=seconds, by_rates=len(seconds) - len(plan.seconds))
    print(render(plan, name, workers=workers, rated=rated, listed=options.dry_run), flush=True)
    for damaged in plan.damaged:
        print(f"warning: {damaged.why}; cell {damaged.key} is made again", file=sys.stderr)
    if found:
        if options.dry_run:
            for what, unchecked in found.unchecked.items():
                print(f"  not checked: {len(unchecked)} cells: {what}", flush=True)
        if found.wrong:
            raise found.error()
        return plan, found.images
    return plan, {}


def _print_time(plan: Plan, options: Options, root: Path, images: dict[str, int]) -> None:
    """What a plan takes by rates, where no past cell tells it.

    Raises:
        UserError: of the file of rates.
    """
    rates, gpus = read_rates(options.rates), _gpus()
    if plan.seconds:
        return
    cores = os.cpu_count() or 1
    workers = options.workers or options.max_concurrent or (max(1, gpus) if rates.device == "cuda" else cores)
    made = _forecast(plan.todo, options, root, images)
    print(in_words(made, plan.todo, rates, workers=workers, cores=cores, gpu=gpus > 0), flush=True)


def _forecast(cells: Sequence[AnyCell], options: Options, root: Path, images: dict[str, int]) -> Forecast:
    """What cells take by rates."""
    chosen = _chosen_by(options, cells, root, images)
    known, tested = {**IMAGES, **images}, {**images, **TESTED}
    return forecast(cells, read_rates(options.rates), chosen.cache, images=known, tested=tested)


def _chosen_by(options: Options, cells: Sequence[AnyCell], root: Path, images: dict[str, int]) -> Choice:
    """What is kept on disk, by this machine's GPUs or the rates that were asked for."""
    gpu = _gpus() > 0 or read_rates(options.rates).device == "cuda"
    return _chosen(cells, options, gpu=gpu, root=root, images=images)


def _gpus() -> int:
    """NVIDIA GPUs of this machine; asking torch would load it."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _chosen(cells: Sequence[AnyCell], options: Options, *, gpu: bool, root: Path, images: dict[str, int]) -> Choice:
    """What is kept on disk, by the rates of the device that cells run on."""
    rates, place = read_rates(options.rates), (options.features or root).absolute()
    free = shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free
    known = rates if (rates.device == "cuda") == gpu else None if gpu else read_rates()
    return choose_cache(options.cache, cells, gpu=gpu, room=free, rates=known, images={**IMAGES, **images})


def _disk_line(cells: Sequence[AnyCell], chosen: Choice, images: dict[str, int]) -> str:
    """What the cache will take, and why it is that one."""
    most = disk(cells, {**IMAGES, **images}, {**images, **TESTED})
    rest = "" if most.complete else ", without the training images of data sets that are not available locally"
    features = f"at most {format_size(most.features)} of features and {format_size(most.priors)} of prior maps{rest}"
    if chosen.cache == "none":
        return f"  cache: none ({chosen.why}); features would be {features}"
    if chosen.cache == "pixels":
        pixels = f"about {format_size(most.pixels)} of photographs"
        return f"  cache: pixels, {pixels} ({chosen.why}); features would be {features}"
    return f"  cache: features, {features} ({chosen.why})"


def _forced(cells: Sequence[AnyCell], selection: str) -> frozenset[str]:
    """Cells that --force applies to: all, or the selected ones without the training cells they happen to need."""
    spared = TrainingCell if selection and "kind=train" not in selection else ()
    return frozenset(cell.key() for cell in cells if not isinstance(cell, spared))


def _run(
    name: str, cells: Sequence[AnyCell], plan: Plan, context: WorkContext, stop: Stop, images: dict[str, int]
) -> int:
    from cluster.execution.tuner import GaveUp, resources, run_trials

    store, tracking = context.store, context.tracking
    _forget(plan, store, context.launch)
    note: dict[str, Any] = {
        "schema": 1,
        "name": name,
        "keys": [cell.key() for cell in cells],
        "cells": [cell_document(cell) for cell in cells],
        "started": now(),
        "ended": None,
        "tracking": tracking.to_dict() if tracking else None,
    }
    path = store.root / LAUNCHES / f"{context.launch}.json"
    write_atomically(path, to_json(note))
    store.publish_file(f"{LAUNCHES}/{path.name}")
    if tracking is not None:
        log_finished(plan, store, tracking)
    status, counts = "KILLED", dict[str, float]()
    stage: dict[str, Any] = {}
    try:
        given = resources(context)
        context = replace(context, device=given.device)
        if context.features is not None and context.work is None:
            chosen = _chosen(plan.todo, context, gpu=given.device == "cuda", root=store.root, images=images)
            print(_disk_line(plan.todo, chosen, images), flush=True)
            context = replace(context, cache=chosen.cache)
            from cluster.precompute.stage import precompute  # loads torch

            stage = precompute(plan.todo, context, given, stop.begun)
        progress, dropped = run_trials(plan, context, given, stopping=stop.begun, over=stop.over)
        store.update()
        for cell in plan.todo:
            if cell.key() in progress.crashed:
                record_crash(cell, progress.crashed[cell.key()], context)
        unfinished = [cell.key() for cell in plan.todo if store.read(cell.key(), verify=False).status != "finished"]
        bad = len(unfinished) + plan.count("failed") + plan.count("blocked")
        status = "KILLED" if stop.begun() else "FAILED" if bad else "FINISHED"
        counts = {
            "cells_finished": len(plan.todo) - len(unfinished) + plan.count("finished"),
            "cells_failed": len(progress.failed) + plan.count("failed"),
            **{f"{name}_per_s": rate for name, rate in progress.rates().items()},
            "busy_share": progress.busy_share(),
            "seconds": progress.seconds,
        }
        conclude(name, plan, unfinished, dropped, progress)
        if stop.begun() and unfinished:
            print("stopped; finished cells are kept, re-run to resume", file=sys.stderr)
        return SOME_FAILED if bad else DONE
    except GaveUp as error:
        traceback.print_exception(error.__cause__)
        print(f"error: {error}; finished cells are kept, re-run to resume", file=sys.stderr)
        status = "FAILED"
        return SOME_FAILED
    except KeyboardInterrupt:
        print("interrupted; finished cells are kept, re-run to resume", file=sys.stderr)
        return SOME_FAILED
    finally:
        if tracking is not None:
            close_tracking(tracking, status, counts, path)
        with contextlib.suppress(OSError):  # a full disk: the next launch closes this one
            write_atomically(path, to_json({**note, "ended": now(), "status": status, "stage": stage}))
            store.publish_file(f"{LAUNCHES}/{path.name}")
        shutil.rmtree(store.root / TUNE / context.launch, ignore_errors=True)


def _forget(plan: Plan, store: Store, launch: str) -> None:
    """Drop the results that are to be made again, each under its lease: another launch may be running it."""
    leases = store.leases
    forced = {cell.key() for cell in plan.forced}
    for key in [*forced, *(record.key for record in plan.damaged)]:
        lease = acquire(leases, key, launch)
        if lease is None:
            continue
        try:
            status = store.read(key).status
            if status == "finished" and key in forced:
                store.forget(key)
            elif status == "damaged":
                store.forget_result(key)
        finally:
            lease.release()
