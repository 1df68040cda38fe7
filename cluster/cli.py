"""The command line that all grid scripts share, and their exit codes: 0 all finished, 1 some failed, 2 bad input."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.closing import failures
from cluster.launch import BAD_INPUT, SHARD_EPISODES, SOME_FAILED, Options, launch
from cluster.storage.backend import is_uri
from cluster.storage.results import Store
from cluster.storage.sizes import parse_size
from cluster.storage.sync import copy_folder
from diffup.errors import UserError, replace_unprintable
from diffup.grid.axes import select, unique
from diffup.grid.cell import AnyCell, Cell
from diffup.home import expanded, home

Report = Callable[[Path, list[str]], None]
GridBuilder = Callable[[argparse.Namespace], tuple[list[AnyCell], dict[str, Path]]]


def folder(text: str) -> Path:
    """A folder of this machine, for argparse; ``s3://…`` would be taken for a folder ``s3:``."""
    if is_uri(text):
        raise argparse.ArgumentTypeError(f"give a folder of this machine, not {text}")
    return Path(text)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {value}")
    return value


def results_place(text: str) -> Path | str:
    """A folder, or the URI of an object store, for argparse."""
    return text if is_uri(text) else Path(text)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must lie in (0, 1], not {value}")
    return value


def numbers(text: str) -> tuple[int, ...]:
    """``"0,2"`` as (0, 2), for argparse."""
    return tuple(int(part) for part in text.split(","))


def names(text: str) -> tuple[str, ...]:
    """``"a,b"`` as ("a", "b"), for argparse."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parser(name: str, description: str, *, episodes: int | None) -> argparse.ArgumentParser:
    """The options of every grid script.

    Args:
        name: of the grid.
        description: the script's docstring.
        episodes: default number of episodes per cell; None: as many as the protocol has, which is `build`'s to find.
    """
    made = argparse.ArgumentParser(
        prog=f"experiments/{name}.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    made.add_argument("--select", default="", metavar="K=V,…", help="only cells with these values (K=V|W for several)")
    number = "as many as the protocol has" if episodes is None else episodes
    made.add_argument("--episodes", type=_count, default=episodes, metavar="N", help=f"per cell (default: {number})")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="training seed; the episodes stay the same")
    made.add_argument(
        "--results",
        type=results_place,
        default=None,
        metavar="DIR",
        help=f"a folder, or s3://bucket/prefix, gs://… (default $DIFFUP_HOME/results/{name}, else ~/.diffup/…)",
    )
    made.add_argument("--tracking-uri", default="", metavar="URI", help="MLflow; default: sqlite in the results")
    made.add_argument("--max-concurrent", type=_count, default=None, metavar="N", help="trials at a time")
    made.add_argument("--retry-failed", action="store_true", help="run cells again that failed before")
    made.add_argument(
        "--force",
        nargs="?",
        const="all",
        default="",
        choices=("all", "other-code"),
        help="run finished cells again: all selected, or those made by other code",
    )
    made.add_argument("--batch-size", type=_count, default=8, metavar="N", help="episodes at a time in evaluation")
    made.add_argument(
        "--gpus-per-trial",
        type=_share,
        default=0.0,
        metavar="F",
        help="GPU share of an evaluation cell (default: by the memory that past evaluation cells took)",
    )
    made.add_argument(
        "--shard-episodes",
        type=int,
        default=SHARD_EPISODES,
        metavar="N",
        help=f"cells of more episodes are cut and run in parallel (default {SHARD_EPISODES}; 0: never)",
    )
    made.add_argument(
        "--features", type=folder, default=None, metavar="DIR", help="shards of features (default: in the results)"
    )
    made.add_argument("--no-features", action="store_true", help="no shards: every cell computes what it reads")
    made.add_argument(
        "--features-limit",
        type=parse_size,
        default=0,
        metavar="SIZE",
        help="of all shards, such as 200GB (default: the disk)",
    )
    made.add_argument("--verify", action="store_true", help="read all that finished cells hold before planning")
    made.add_argument(
        "--past", type=folder, action="append", default=[], metavar="DIR", help="other results to estimate time from"
    )
    made.add_argument(
        "--system-metrics", action="store_true", help="log CPU, memory and GPU of machines (needs psutil)"
    )
    made.add_argument("--workers", type=_count, default=0, metavar="N", help="that a dry run reckons with")
    made.add_argument(
        "--train-workers",
        type=_count,
        default=1,
        metavar="N",
        help="processes (on GPUs where there are some) that train a cell together; the result is the same",
    )
    return made


def add_data(made: argparse.ArgumentParser) -> None:
    """The options of a grid on one data set: where it lies, and where backbone weights do."""
    made.add_argument("--dataset", required=True, metavar="PATH", help="a dataset.json, or a known name")
    made.add_argument("--weights-dir", type=folder, default=None, metavar="DIR", help="folder of backbone weights")


def add_protocol(made: argparse.ArgumentParser) -> None:
    """The options that say how episodes come about; their number is then the protocol's own by default."""
    number = next(action for action in made._actions if action.dest == "episodes")
    number.help = f"{number.help}; with another protocol than paired as many as it has"
    made.set_defaults(episodes=None)
    made.add_argument(
        "--protocol", default="paired", metavar="NAME", help="see `python -m diffup.episodes.protocols list`"
    )
    made.add_argument("--lists", type=folder, default=None, metavar="DIR", help="HSNet's 'splits', for hsnet")
    made.add_argument(
        "--manifests",
        type=folder,
        default=None,
        metavar="DIR",
        help="episodes: fold{F}_shots{K}.json or .parquet",
    )


def episodes(args: argparse.Namespace, dataset: str, default: int) -> int:
    """Episodes per cell of a grid with `add_protocol`: as asked, else the grid's `default`, or what a protocol has."""
    from diffup.episodes.protocols import get_protocol

    if args.episodes is not None:
        return int(args.episodes)
    return default if args.protocol == "paired" else get_protocol(args.protocol).episode_count(dataset)


def run(
    name: str,
    args: argparse.Namespace,
    build: GridBuilder,
    report: Report | None = None,
    *,
    work: str = "cluster.execution.run_cell",
) -> int:
    """Build the grid, launch it and report.

    Args:
        name: of the grid.
        args: from `parser`.
        build: makes the cells and says where data sets lie.
        report: makes tables of the grid's cells (their keys) from the results directory, afterwards.
        work: module that executes cells.

    Returns:
        the exit code.
    """
    replace_unprintable()
    where: Path | str = args.results or ""
    try:
        where = where or home() / "results" / name
        remote = where if isinstance(where, str) else ""
        results = copy_folder(where) if isinstance(where, str) else expanded(where)
        cells, datasets = build(args)
        options = Options(
            results=results,
            remote=remote,
            tracking_uri=args.tracking_uri,
            select=args.select,
            dry_run=args.dry_run,
            max_concurrent=args.max_concurrent or 0,
            retry_failed=args.retry_failed,
            force=args.force,
            weights_dir=getattr(args, "weights_dir", None),
            batch_size=args.batch_size,
            gpus_per_trial=args.gpus_per_trial,
            train_workers=args.train_workers,
            shard_episodes=args.shard_episodes,
            features=args.features,
            use_features=not args.no_features,
            features_limit=args.features_limit,
            verify=args.verify,
            past=tuple(args.past),
            workers=args.workers,
            system_metrics=args.system_metrics,
        )
        code = launch(name, cells, options, datasets=datasets, work=work)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:  # such as a full disk
        what = str(error) if error.filename is not None else f"{where}: {error}"
        print(f"error: {what}; finished cells are kept, re-run to resume", file=sys.stderr)
        return SOME_FAILED
    if args.dry_run:
        return code
    chosen = select(cells, args.select)
    if report is not None:
        code = _report(report, results, cells, chosen, code)
    if code:
        for line in failures(Store(results, remote), unique(chosen)):
            print(line, flush=True)
    return code


def _report(report: Report, results: Path, cells: list[AnyCell], chosen: list[AnyCell], code: int) -> int:
    """Make tables, where there is something to put into them; returns the exit code."""
    if not any(isinstance(cell, Cell) for cell in chosen):
        print("no tables: there are no evaluation cells among these, only training", flush=True)
        return code
    try:
        report(results, [cell.key() for cell in cells])
    except UserError as error:  # such as: no cell has finished
        if code:
            print(f"no tables: {error}", flush=True)
            return code
        print(f"error: no tables: {error}", file=sys.stderr)
        return SOME_FAILED
    return code


def script(
    name: str,
    parser: argparse.ArgumentParser,
    build: GridBuilder,
    argv: Sequence[str] | None,
    report: Report | None = None,
) -> int:
    """``main`` of a grid script: parse, run, report; argparse itself exits with 2 on a usage error."""
    return run(name, parser.parse_args(argv), build, report)
