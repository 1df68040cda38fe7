"""MLflow as a view of the result store: experiment = grid, parent run = launch, child run = cell.

Everything logged comes from the store, so a run that could not be logged in its trial (tracking down, a kill in
between) is logged later, once. No failure of tracking ever fails a cell: it warns, the grid goes on, and for a minute
no cell of this process tries again.

    python -m cluster.tracking sync --results DIR [--tracking-uri URI] [--experiment NAME]
    python -m cluster.tracking serve --results DIR [--port N]

``sync`` rebuilds all runs from the store, however often it is run; ``serve`` starts MLflow's server on this machine.
Results in an object store (``s3://…``) are downloaded to this machine's copy of it before.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from cluster.storage.atomic import now
from cluster.storage.record import Record
from cluster.storage.results import Store
from cluster.tracking.client import (
    client_of,
    note_failure,
    open_experiment,
    open_store,
    require_answer,
    resolve_uri,
    rests,
    shown,
    warn,
)
from cluster.tracking.export import OWNER, TEXT_LENGTH, Place, ensure_run, log_launch, log_params, milliseconds, tags_of
from diffup.errors import UserError
from diffup.grid.axes import describe
from diffup.grid.cell import AnyCell

__all__ = [
    "Tracking", "close_tracking", "log_cell", "log_failure", "main", "open_tracking", "resolve_uri", "shown",
    "system_metrics",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where child runs go: plain strings without secrets, so that it can be sent to a trial.

    Attributes:
        uri: of the MLflow store.
        experiment_id, parent_run: of the launch.
        store: id of the result store; ``""`` in notes of earlier versions.
    """

    uri: str
    experiment_id: str
    parent_run: str
    store: str = ""

    def to_dict(self) -> dict[str, str]:
        """As plain JSON types."""
        return asdict(self)

    @property
    def place(self) -> Place:
        """Experiment, result store and parent of a cell's run."""
        return Place(experiment_id=self.experiment_id, store=self.store, parent_run=self.parent_run)


def open_tracking(uri: str, experiment: str, launch: str, store: Store, tags: dict[str, str]) -> Tracking | None:
    """Create or upgrade the store, the experiment and the parent run: in the driver, before any trial starts.

    Returns:
        None, with a warning, if tracking is down.
    """
    from cluster.tracking.sync import experiment_of

    try:
        client = open_store(uri)
        owner = store.identity()
        renamed = partial(experiment_of, client, store, experiment)
        experiment_id = open_experiment(client, uri, experiment, store.root, renamed)
        run = client.create_run(experiment_id, tags={"kind": "launch", OWNER: owner, **tags}, run_name=launch)
        return Tracking(uri=shown(uri), experiment_id=experiment_id, parent_run=run.info.run_id, store=owner)
    except Exception as error:
        warn(f"{shown(uri)} can't be used", error)
        return None


def close_tracking(tracking: Tracking, status: str, metrics: dict[str, float], note: Path | None = None) -> None:
    """End a parent run as ``FINISHED``, ``FAILED`` or ``KILLED``, with the counts of its launch and its note."""
    try:
        from mlflow.entities import Metric

        require_answer(tracking.uri)
        client = client_of(tracking.uri)
        if metrics:
            stamp = milliseconds(now())
            client.log_batch(tracking.parent_run, metrics=[Metric(k, v, stamp, 0) for k, v in metrics.items()])
        if note is not None:
            log_launch(client, tracking.parent_run, note)
        client.set_terminated(tracking.parent_run, status)
    except Exception as error:
        warn("the launch can't be closed", error)


def log_cell(tracking: Tracking, store: Store, cell: AnyCell, record: Record | None = None) -> bool:
    """Log a finished cell as a child run, unless the experiment has it already; a half-written run is completed.

    Returns:
        whether the cell is logged now; False comes with a warning, or within a minute of one.
    """
    key = cell.key()
    if rests(tracking.uri):
        return False
    try:
        require_answer(tracking.uri)
        run_id, _ = ensure_run(client_of(tracking.uri), tracking.place, store, cell, record or store.read(key))
        store.mark_logged(key, tracking.uri, run_id)
        return True
    except Exception as error:
        note_failure(tracking.uri, error)
        warn(f"cell {key} can't be logged", error)
        return False


def log_failure(tracking: Tracking, cell: AnyCell, error: str, traceback: str, started: str) -> None:
    """Log a failed attempt as a child run with status ``FAILED``."""
    if rests(tracking.uri):
        return
    try:
        require_answer(tracking.uri)
        client = client_of(tracking.uri)
        tags = {**tags_of(cell, cell.key(), tracking.place, {}), "error": error[:TEXT_LENGTH]}
        run = client.create_run(
            tracking.experiment_id, start_time=milliseconds(started), tags=tags, run_name=describe(cell)
        )
        log_params(client, run.info.run_id, cell)
        client.log_text(run.info.run_id, traceback or error, "error.txt")
        client.set_terminated(run.info.run_id, "FAILED")
    except Exception as problem:
        note_failure(tracking.uri, problem)
        warn(f"the failure of cell {cell.key()} can't be logged", problem)


@contextlib.contextmanager
def system_metrics(tracking: Tracking | None, seconds: float = 10.0) -> Iterator[None]:
    """Log CPU, memory, disk, network and GPU of this machine to the launch's run while this lasts, as MLflow does it.

    One process a machine does so, under the machine's name; the others do nothing. Needs psutil, and says so.

    Args:
        tracking: None: does nothing.
        seconds: between samples.
    """
    if tracking is None:
        yield
        return
    from cluster.tracking.system_metrics import monitor

    with monitor(tracking.uri, tracking.parent_run, seconds):
        yield


def _options() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m cluster.tracking", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = made.add_subparsers(dest="command", required=True)
    sync = commands.add_parser("sync", help="rebuild all runs from the result store")
    sync.add_argument("--tracking-uri", default="", metavar="URI", help="default: sqlite in the results")
    sync.add_argument(
        "--experiment", default="", metavar="NAME", help="put all runs there (default: the grid that made them)"
    )
    serve = commands.add_parser("serve", help="MLflow's server over the results' sqlite store")
    serve.add_argument("--port", type=int, default=5000, metavar="N")
    serve.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default: this machine alone")
    for command in (sync, serve):
        command.add_argument(
            "--results", required=True, metavar="DIR", help="the result store: a folder, or s3://bucket/prefix, gs://…"
        )
    return made


def _store(results: str) -> Store:
    """The result store that the command is about; of an object store, this machine's copy, brought up to date.

    Raises:
        UserError: nothing is there, or the object store can't be reached.
    """
    store = Store.at(results)
    try:
        store.update()
    except OSError as error:
        raise UserError(
            f"{results} can't be downloaded: {error}. Check the name and the credentials, or use a folder: "
            f"`python -m cluster sync pull {results} DIR` first, then --results DIR"
        ) from error
    if not store.root.is_dir():
        what = f"results in {results}" if store.sync.is_copy else f"results directory {store.root}"
        raise UserError(f"no {what}; pass the one that a grid script printed (its --results)")
    return store


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 0, 1 if some runs could not be written, or 2 for bad input."""
    args = _options().parse_args(argv)
    try:
        store = _store(args.results)
        if args.command == "serve":
            from cluster.tracking.server import serve

            serve(store.root, args.host, args.port)
        from cluster.tracking.sync import sync

        uri = resolve_uri(args.tracking_uri, store.root)
        done = sync(store, uri, experiment=args.experiment)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{done}  ({uri})", flush=True)
    return 1 if done.failed else 0
