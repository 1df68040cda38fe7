"""``python -m analysis COMMAND``: tables, figures and pages made from a result store; ``--help`` lists the commands."""

from __future__ import annotations

import diffup.checkout  # noqa: F401

# isort: split
import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd

from analysis import command, embed, paper, quality
from analysis.files import texts_of, write_files
from analysis.from_mlflow import load_mlflow
from analysis.published.table import PUBLISHED, check_published, load_published, summary
from analysis.report import page
from analysis.results import Results, load_results, read_episodes, where
from analysis.tables.protocol_spread import spread_tables
from diffup.errors import UserError, command_line
from diffup.evaluation.stats import RESAMPLES


def spread(arguments: Sequence[str] | None = None) -> int:
    """Write the tables of `analysis.tables.protocol_spread`; returns 0, or 2 for wrong usage."""
    parser = command.parser("spread", "Figures of the same checkpoints under several protocols.")
    return command.run(parser.parse_args(arguments), write_spread)


def write_spread(
    results: Path, out: Path, *, keys: Iterable[str] | None = None, resamples: int = RESAMPLES
) -> list[Path]:
    """Write the tables; errors of `spread_tables` pass through."""
    tables = spread_tables(results, keys=keys, resamples=resamples)
    return [path for table in tables for path in write_files(out, texts_of(table))]


def published(arguments: Sequence[str] | None = None) -> int:
    """Check published figures; returns 0, 1 if there are problems, or 2 if the file can't be read."""
    parser = argparse.ArgumentParser(prog="python -m analysis published", description="Check published figures.")
    parser.add_argument("--file", type=Path, default=PUBLISHED, metavar="CSV", help="default: the one of the package")
    try:
        frame = load_published(parser.parse_args(arguments).file)
        problems = check_published(frame)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    print(summary(frame))
    return 1 if problems else 0


def cells(arguments: Sequence[str] | None = None) -> int:
    """Write cells and episodes as CSV or Parquet; returns 0, or 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m analysis cells", description="Cells and episodes as tidy tables.")
    parser.add_argument("--results", type=Path, metavar="DIR", help="the results of a grid")
    parser.add_argument("--from-mlflow", metavar="URI", help="read the runs of an MLflow store instead")
    parser.add_argument("--experiment", default="", metavar="NAME", help="in MLflow")
    parser.add_argument("--store", default="", metavar="ID", help="of the result store, if the experiment has several")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where files from MLflow go (a temporary one)")
    parser.add_argument("--where", default="", metavar="K=V,…", help="only these cells, e.g. fold=0,shots=1|5")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="cells, .csv or .parquet")
    parser.add_argument("--episodes", type=Path, metavar="FILE", help="their episodes, .csv or .parquet")
    options = parser.parse_args(arguments)
    try:
        results = _read(options)
        chosen = where_text(results.cells, options.where)
        _write(chosen, options.out)
        if options.episodes is not None:
            finished = [key for key in chosen["key"] if key in results.counts]
            _write(read_episodes(results.root, finished), options.episodes)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for warning in results.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{len(chosen)} cells, {(chosen['status'] == 'finished').sum()} finished: {options.out}")
    return 0


def where_text(cells: pd.DataFrame, text: str) -> pd.DataFrame:
    """The cells that match ``fold=0,shots=1|5``, as grids' ``--select``.

    Raises:
        UserError: not of that form, or no such column.
    """
    axes: dict[str, object] = {}
    for condition in filter(None, text.split(",")):
        name, equals, values = condition.partition("=")
        if not equals or not name or not values:
            raise UserError(f"--where {text!r}: write k=v,k=v|w; {condition!r} is not of that form")
        numeric = name in cells.columns and pd.api.types.is_numeric_dtype(cells[name])
        try:
            axes[name] = [float(value) for value in values.split("|")] if numeric else values.split("|")
        except ValueError as error:
            raise UserError(f"--where {text!r}: {name} is a number, {values!r} is none") from error
    return where(cells, **axes)


def _read(options: argparse.Namespace) -> Results:
    if (options.results is None) == (options.from_mlflow is None):
        raise UserError("pass --results DIR, or --from-mlflow URI with --experiment NAME")
    if options.results is not None:
        return load_results(options.results)
    if not options.experiment:
        raise UserError("--from-mlflow needs --experiment NAME, the grid's name if it wasn't named otherwise")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="diffup-mlflow-"))
    return load_mlflow(options.from_mlflow, options.experiment, folder, store=options.store)


def _write(frame: pd.DataFrame, path: Path) -> None:
    writers: dict[str, Callable[..., object]] = {".csv": frame.to_csv, ".parquet": frame.to_parquet}
    if path.suffix not in writers:
        raise UserError(f"{path}: cells and episodes are written as .csv or .parquet")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writers[path.suffix](path, index=False)
    except OSError as error:
        raise UserError(f"can't write {path} ({error.strerror or error}); choose another path") from error


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "paper": (paper.main, "all tables and figures, a document that compiles, and the report"),
    "report": (page.main, "one HTML page"),
    "quality": (quality.main, "whether the model's estimates of its own quality hold"),
    "spread": (spread, "figures of the same checkpoints under several protocols"),
    "cells": (cells, "cells and episodes as CSV or Parquet, also from MLflow"),
    "embed": (embed.main, "tables in Markdown documents, from CSV files"),
    "published": (published, "check the published figures"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    texts = "\n".join(f"  {name:11}{text}" for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m analysis",
        description=f"Tables, figures and pages made from a result store.\n\ncommands:\n{texts}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="COMMAND --help lists them")
    options = parser.parse_args(arguments)
    return COMMANDS[options.command][0](options.arguments)


if __name__ == "__main__":
    sys.exit(command_line(main))
