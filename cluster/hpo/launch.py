"""Launches searches over training configurations: the cells of a grid as searches, brought to their end in turn."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.execution.session import ray_session
from cluster.hpo.trials import DIVERGED, FAILED, FINISHED, STOPPED, Record, Search, searches_of
from cluster.options import Options, Work
from cluster.planning.preflight import git_commit, preflight
from cluster.storage.leases import alone
from cluster.storage.results import Store
from cluster.tracking.client import resolve_uri
from diffup.data.dataset import open_dataset, resolve_dataset
from diffup.errors import UserError
from diffup.grid.axes import select
from diffup.grid.cell import AnyCell

UNUSED = ("force", "verify", "past", "rates", "workers", "gpus_per_trial", "shard_episodes", "train_workers")
DONE, SOME_FAILED = 0, 1


def launch_searches(
    name: str,
    cells: Sequence[AnyCell],
    options: Options,
    *,
    store: Store,
    datasets: dict[str, Path],
    work: Work | None = None,
    reduction: int,
    milestones: int,
) -> int:
    """Bring the searches of a grid to their end, one after the other.

    Args:
        name: of the grid; the MLflow experiment.
        cells: training cells that hold out base classes, and the evaluation cells that score them.
        options: how; those in `UNUSED` are of other launches alone.
        store: of the results; a folder.
        datasets, work: see `cluster.launch.launch`.
        reduction: at each milestone, one configuration of so many goes on.
        milestones: how many; see `cluster.hpo.trials.halvings`.

    Returns:
        0 if every configuration has ended and none failed; one that diverged has not failed.

    Raises:
        UserError: a user's mistake, found before anything is run.
    """
    if store.remote:
        raise UserError(
            f"--results {store.remote}: a search goes on from its record and from paused trainings, which must be in a "
            "folder; give one that all machines see. Its finished trainings can be copied to an object store: "
            f"`diffup sync push DIR {store.remote}`"
        )
    for option in UNUSED:
        if getattr(options, option) != getattr(Options, option):
            raise UserError(f"--{option.replace('_', '-')} has no use in a search")
    uri = resolve_uri(options.tracking_uri, store.root)
    cells = select(cells, options.select)
    opened = {cell.dataset: open_dataset(resolve_dataset(str(datasets[cell.dataset]))) for cell in cells}
    searches = searches_of(cells, opened, reduction=reduction, milestones=milestones)
    records = [Record(store, search, retry_failed=options.retry_failed) for search in searches]
    for search, record in zip(searches, records, strict=True):
        print(overview(search, record), flush=True)
    if options.dry_run:
        return DONE
    todo = [(search, record) for search, record in zip(searches, records, strict=True) if record.todo()]
    if todo:
        paths = preflight(cells, datasets, options.weights_dir)
        store.make_writable()
        try:
            with alone(store.leases, "search", str(os.getpid()), store.root), ray_session():
                from cluster.execution.context import WorkContext
                from cluster.hpo.search import run_search
                from cluster.planning.nodes import check_nodes, shared_by_nodes, wait_for_nodes

                features = None if options.cache == "none" or work else options.features or store.root / "features"
                resolved = {
                    "results": store.root,
                    "weights_dir": options.weights_dir and options.weights_dir.absolute(),
                    "cache": "features",
                    "features": features and features.absolute(),
                    "gpus_per_trial": 1.0,
                    "shard_episodes": 0,
                }
                context = WorkContext(**vars(options) | resolved, datasets=paths, git_commit=git_commit(), work=work)
                wait_for_nodes()
                for warning in check_nodes(*shared_by_nodes(store, context.features, options.weights_dir, paths)):
                    print(f"warning: {warning}", file=sys.stderr)
                for search, record in todo:
                    run_search(search, record, context, uri, name)
        except KeyboardInterrupt:
            print("interrupted; all scores are kept, re-run to resume", file=sys.stderr)
            return SOME_FAILED
    return SOME_FAILED if any(record.count(FAILED) or record.todo() for record in records) else DONE


def overview(search: Search, record: Record) -> str:
    """What there is to do, by number, and whether scores are of other code."""
    ended = ", ".join(f"{record.count(how)} {how}" for how in (FINISHED, STOPPED, DIVERGED, FAILED))
    count, steps, todo = len(search.candidates), search.milestones[-1], len(record.todo())
    lines = [
        f"{search.name}: {count} configurations of {steps} steps, {todo} to do ({ended})",
        f"  scored after {', '.join(map(str, search.milestones))} steps on {', '.join(search.classes)}",
    ]
    for number, candidate in enumerate(search.candidates):
        if record.entries[candidate.cell.key()]["ended"] is None:
            lines.append(f"  {number}: {candidate.cell.key()} {candidate.in_words()}")
    if record.stale:
        what = f"{len(record.stale)} have scores made by other code"
        lines.append(f"  warning: {what}; remove {record.path} to score anew")
    return "\n".join(lines)
