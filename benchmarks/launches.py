"""What benchmarks that launch a grid share: a grid script and a benchmark in one file, run as a module."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.cli import DatasetOptions, Study, run_study
from diffup.grid.cell import AnyCell, TrainingCell


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(DatasetOptions):
    """Options of a benchmark that launches a grid."""

    out: Path = Path()
    """folder of the benchmark"""
    trained: Path | None = None
    """results with the grid's training cells, finished"""
    grid: bool = False
    """only run the grid (what the benchmark itself calls)"""


def main(study: Study[Any], benchmark: Callable[[Any], int]) -> int:
    """Run the grid alone, or the benchmark around it; returns the exit code."""
    asked = study.parse()
    return run_study(study, asked) if asked.grid else benchmark(asked)


def launched(name: str, asked: BenchmarkOptions, results: Path, *more: str) -> float:
    """`run_grid` of a benchmark with these options."""
    given = ("--dataset", asked.dataset, "--weights-dir", str(asked.run.weights_dir), "--episodes", str(asked.episodes))
    return run_grid(name, results, *given, *more)


def run_grid(name: str, results: Path, *words: str) -> float:
    """Run the grid of ``benchmarks.<name>`` in a process of its own, from the repository's root.

    Returns:
        seconds, from the start of the process to its end.

    Raises:
        subprocess.CalledProcessError: it did not finish its cells.
    """
    command = [sys.executable, "-m", f"benchmarks.{name}", "--grid", "--results", str(results), *words]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=sys.stderr, cwd=Path(__file__).resolve().parent.parent)
    return time.perf_counter() - began


def take(trained: Path | None, results: Path, cells: Sequence[AnyCell]) -> None:
    """Copy the training cells among `cells` from another results directory; None: they are trained."""
    for cell in cells:
        if trained is not None and isinstance(cell, TrainingCell) and not (results / cell.key()).exists():
            shutil.copytree(trained / cell.key(), results / cell.key())
