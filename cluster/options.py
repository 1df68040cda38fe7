"""Options of a launch, one dataclass from the command line to the workers, and the types that its parser is made of."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from cluster.storage.backend import is_uri
from cluster.storage.sizes import parse_size
from diffup.commands import options as common
from diffup.commands.options import Count as Count
from diffup.commands.options import CountOrAuto
from diffup.commands.options import CountOrNone as CountOrNone
from diffup.commands.options import File as File
from diffup.commands.options import Name as Name
from diffup.commands.options import Names as Names
from diffup.commands.options import NamesOrNone as NamesOrNone
from diffup.commands.options import PathOrName as PathOrName
from diffup.commands.options import Text as Text
from diffup.commands.options import names as names
from diffup.commands.options import option as option
from diffup.errors import UserError

Parsed = TypeVar("Parsed")


def numbers(text: str) -> tuple[int, ...]:
    """``"0,2"`` as (0, 2)."""
    return tuple(int(part) for part in text.split(","))


def folder(text: str) -> Path:
    """A folder of this machine; ``s3://…`` would be taken for a folder ``s3:``."""
    if is_uri(text):
        raise UserError(f"give a folder of this machine, not {text}")
    return Path(text)


def results_place(text: str) -> Path | str:
    """A folder, or the URI of an object store."""
    return text if is_uri(text) else Path(text)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise UserError(f"must be in (0, 1], not {value}")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise UserError(f"must be a number of seconds above 0, not {text}")
    return value


Numbers = Annotated[tuple[int, ...], *option("0,1,…", numbers)]
NumbersOrAll = Annotated[tuple[int, ...], *option("0,1,…", numbers, default=False)]
NumbersOrNone = Annotated[tuple[int, ...] | None, *option("0,1,…", numbers, default=False)]
Seconds = Annotated[float | None, *option("SECONDS", _seconds, default=False)]
Folder = Annotated[Path | None, *option("DIR", folder, default=False)]
Cache = Literal["auto", "features", "pixels", "none"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the cells are run. Nothing here changes what is in a result."""

    dry_run: bool = False
    """print the plan and stop"""
    select: Annotated[str, *option("K=V,…", str, default=False)] = ""
    """only cells with these values; K=V|W for several"""
    results: Annotated[Path | str, *option("DIR", results_place, default=False)] = ""
    """a folder, or s3://bucket/prefix, gs://… (default: $DIFFUP_HOME/results/NAME, else ~/.diffup/results/NAME)"""
    tracking_uri: Annotated[str, *option("URI", str, default=False)] = ""
    """of the MLflow server (default: an SQLite file in the results)"""
    retry_failed: bool = False
    """run cells again that failed before"""
    force: Annotated[
        Literal["", "all", "other-code"], tyro.conf.arg(metavar="all|other-code", help_behavior_hint="")
    ] = ""
    """run finished cells again: all that are selected (also --force alone), or those made by other code"""
    verify: bool = False
    """read everything that finished cells hold before planning"""
    weights_dir: Folder = None
    """folder of backbone weights; others are downloaded by name"""
    max_concurrent: CountOrAuto = 0
    """cells at a time (default: as many as there are CPUs, or shares of GPUs)"""
    batch_size: Count = 8
    """episodes at a time in evaluation"""
    gpus_per_trial: Annotated[float, *option("F", _share, default=False)] = 0.0
    """share of a GPU for an evaluation cell (default: by the memory that past evaluation cells took)"""
    train_workers: Count = 1
    """processes, on GPUs where there are some, that train a cell together; the result is the same"""
    shard_episodes: Annotated[int, tyro.conf.arg(metavar="N")] = 5000
    """cells of more episodes are split and run in parallel; 0: never"""
    features: Folder = None
    """folder of the cache (default: in the results)"""
    cache: Annotated[Cache, tyro.conf.arg(help_behavior_hint="")] = "auto"
    """kept on disk for all cells: features and prior maps, or the resized photographs (auto: features up to 20 GB where
    they are read faster than made again, else pixels where the cells' input is rounded to 8 bits)"""
    features_limit: Annotated[int, *option("SIZE", parse_size, default=False)] = 0
    """of the whole cache, such as 200GB (default: what the disk has room for)"""
    memory: Annotated[int, *option("SIZE", parse_size, default=False)] = 4 << 30
    """of features that a worker keeps in the host's memory (default: 4 GiB)"""
    gpu_memory: Annotated[int, *option("SIZE", parse_size, default=False)] = 8 << 30
    """of features that a worker keeps on its GPU (default: 8 GiB)"""
    past: Annotated[
        tuple[Annotated[Path, *option("DIR", folder)], ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(help_behavior_hint="(repeatable)"),
    ] = ()
    """other results to estimate time from"""
    rates: File = None
    """of a machine, as python -m benchmarks.accelerator --out FILE writes them, to estimate time from where no cell has
    finished (default: a CPU's)"""
    workers: CountOrAuto = 0
    """number of workers that the estimate of a dry run assumes (default: CPUs of this machine)"""
    system_metrics: bool = False
    """log CPU, memory and GPU of each machine to the launch's run (needs psutil)"""


@dataclass(frozen=True)
class Work:
    """What a worker does with a cell: the functions of `cluster.execution.run_cell`, or others in their place.

    Workers import them, so that they must be in a module.
    """

    execute: Callable[..., Any]
    evaluate_part: Callable[..., Any] | None = None
    conclude: Callable[..., Any] | None = None
    execute_together: Callable[..., Any] | None = None


def parse(kind: type[Parsed], argv: Sequence[str] | None = None, *, prog: str, description: str) -> Parsed:
    """`diffup.commands.options.parse`, where ``--force`` may stand without its value."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for place, argument in enumerate(arguments):
        if argument == "--force" and arguments[place + 1 : place + 2] not in (["all"], ["other-code"]):
            arguments[place] = "--force=all"
    return common.parse(kind, arguments, prog=prog, description=description)
