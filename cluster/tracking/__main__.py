"""``python -m cluster.tracking sync|serve --results DIR``: MLflow runs of a result store, exported again or served."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import tyro

from cluster.options import option
from cluster.storage.results import Store
from cluster.tracking.client import resolve_uri
from diffup.errors import UserError, command_line

Results = Annotated[str, *option("DIR", str)]
Uri = Annotated[str, *option("URI", str, default=False)]
Name = Annotated[str, *option("NAME", str, default=False)]


def sync(results: Results, tracking_uri: Uri = "", experiment: Name = "") -> int:
    """Make MLflow's runs say what the result store says, however often it is called.

    Args:
        results: the result store: a folder, or s3://bucket/prefix, gs://…, which is downloaded first
        tracking_uri: of the MLflow server (default: an SQLite file in the results)
        experiment: put all runs there (default: the grid that made them)
    """
    from cluster.tracking.sync import sync

    store = _store(results)
    uri = resolve_uri(tracking_uri, store.root)
    done = sync(store, uri, experiment=experiment)
    print(f"{done}  ({uri})", flush=True)
    return 1 if done["failed"] else 0


def serve(results: Results, port: int = 5000, host: str = "127.0.0.1") -> int:
    """Start MLflow's server over the results' sqlite store.

    Args:
        results: the result store: a folder, or s3://bucket/prefix, gs://…, which is downloaded first
        port: to listen at
        host: address to listen at; by default reached from this machine alone
    """
    from cluster.tracking.server import serve

    serve(_store(results).root, host, port)


def _store(results: str) -> Store:
    """The result store that a command is about; that of an object store is this machine's copy, brought up to date.

    Raises:
        UserError: nothing is there, or the object store can't be reached.
    """
    store = Store.at(results)
    try:
        store.update()
    except OSError as error:
        raise UserError(
            f"{results} can't be downloaded: {error}. Check the name and the credentials, or use a folder: "
            f"`diffup sync pull {results} DIR` first, then --results DIR"
        ) from error
    if not store.root.is_dir():
        what = f"results in {results}" if store.sync.is_copy else f"results directory {store.root}"
        raise UserError(f"no {what}; pass the one that a grid script printed (its --results)")
    return store


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 0, 1 if some runs could not be written, or 2 for bad input."""
    commands: dict[str, Callable[..., int]] = {"sync": sync, "serve": serve}
    return command_line(
        lambda: tyro.extras.subcommand_cli_from_dict(commands, prog="python -m cluster.tracking", args=argv)
    )


if __name__ == "__main__":
    sys.exit(main())
