"""What benchmarks that launch a grid share: a grid script and a benchmark in one file, run as a module."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster import cli
from diffup.grid.cell import AnyCell, TrainingCell

Benchmark = Callable[[argparse.Namespace], int]


def options(name: str, description: str, *, episodes: int) -> argparse.ArgumentParser:
    """The command line of a grid script, and the benchmark's own."""
    made = cli.parser(name, description, episodes=episodes)
    cli.add_data(made)
    made.add_argument("--out", type=Path, metavar="DIR", help="of the benchmark")
    made.add_argument("--trained", type=Path, metavar="DIR", help="results with the grid's training cells, finished")
    made.add_argument("--grid", action="store_true", help="only run the grid (what the benchmark itself calls)")
    return made


def main(name: str, args: argparse.Namespace, build: cli.GridBuilder, benchmark: Benchmark) -> int:
    """Run the grid alone, or the benchmark around it; returns the exit code."""
    return cli.run(name, args, build) if args.grid else benchmark(args)


def launched(name: str, args: argparse.Namespace, results: Path, *more: str) -> float:
    """Run the grid of ``benchmarks.<name>`` in a process of its own, from the repository's root.

    Returns:
        seconds, from the start of the process to its end.

    Raises:
        subprocess.CalledProcessError: it did not finish its cells.
    """
    command = [
        sys.executable, "-m", f"benchmarks.{name}", "--grid", "--dataset", str(args.dataset), "--weights-dir",
        str(args.weights_dir), "--episodes", str(args.episodes), "--results", str(results), *more,
    ]  # fmt: skip
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=sys.stderr, cwd=Path(__file__).resolve().parent.parent)
    return time.perf_counter() - began


def take(trained: Path | None, results: Path, cells: Sequence[AnyCell]) -> None:
    """Copy the training cells among `cells` from another results directory; None: they are trained."""
    for cell in cells:
        if trained is not None and isinstance(cell, TrainingCell) and not (results / cell.key()).exists():
            shutil.copytree(trained / cell.key(), results / cell.key())
