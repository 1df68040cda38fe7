"""Launching a grid from outside, as a user does: by its command line, and by what it leaves in files."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.storage.layout import PARTS
from tools.faults.lab import ROOT, Lab
from tools.faults.work import LOG

FUSED = ("--cache", "none", "--batch-size", "4", "--shard-episodes", "20")  # the longest cells have 40
SCRIPT = ROOT / "tools" / "faults" / "grid.py"
HUNG = "hung"
TELLING = ("error", "exception", "warning", "failed", "interrupt", "killed")
NOISE = ("View run ", "View experiment ")  # MLflow's
SHOWN = 6  # lines of what a driver said, of each sort


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A grid under test.

    Attributes:
        name: as on the command line.
        which: ``"fake"`` or ``"quickstart"``, see `tools.faults.grid`.
        arguments: of its script.
        smaller: arguments that make it smaller; with these it runs first where a shard is damaged, so that the cells
            that come after it read the damaged shard.
    """

    name: str
    which: str
    arguments: tuple[str, ...] = ()
    smaller: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an injection happens.

    Attributes:
        lab: the cluster.
        grid: what is launched there.
        name: of the MLflow experiment.
        folder: logs of drivers and executions.
        results: the result store.
    """

    lab: Lab
    grid: Grid
    name: str
    folder: Path
    results: Path

    def start(self, *more: str, smaller: bool = False) -> Driver:
        """Start a driver."""
        number = len(list(self.folder.glob("driver-*.log")))
        log = self.folder / f"driver-{number}.log"
        arguments = self.grid.smaller if smaller else self.grid.arguments
        if self.grid.which == "fake":
            arguments = (*arguments, "--log", str(self.folder))
        where = ("--results", str(self.results), "--tracking-uri", self.lab.tracking_uri)
        command = [sys.executable, str(SCRIPT), self.grid.which, self.name, *arguments, *where, *more]
        with log.open("w") as output:
            process = subprocess.Popen(
                command, env=self.lab.driver_environment(), stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, cwd=self.folder, start_new_session=True,
            )  # fmt: skip
        return Driver(process=process, log=log, began=time.monotonic())

    def executions(self) -> list[tuple[str, str, int]]:
        """Unit, ``start`` or ``end``, and nanoseconds of each line in the log; none for real work, which keeps none."""
        log = self.folder / LOG
        lines = log.read_text().splitlines() if log.exists() else []
        return [(unit, what, int(stamp)) for unit, _, _, what, stamp in (line.split() for line in lines)]

    def results_now(self) -> dict[str, int]:
        """When each cell's ``result.json`` was written, in nanoseconds, by key."""
        return {path.parent.name: path.stat().st_mtime_ns for path in self.results.glob("*/result.json")}

    def parts_now(self) -> dict[str, int]:
        """When each part that is kept of an unfinished cell was written, by unit."""
        found = {path: path.stat().st_mtime_ns for path in self.results.glob(f"*/{PARTS}/*.json")}
        return {f"{path.parent.parent.name}@{path.name.partition('-')[0]}": time for path, time in found.items()}


@dataclass(frozen=True, kw_only=True)
class Driver:
    """A driver that was started."""

    process: subprocess.Popen[bytes]
    log: Path
    began: float

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.began

    def wait(self, seconds: float) -> int | str:
        """Its exit code (negative: the signal that ended it); one that takes longer than `seconds` is killed."""
        try:
            return self.process.wait(timeout=max(0.1, seconds))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return HUNG

    def said(self) -> list[str]:
        """The telling lines of its output, and the last."""
        lines = [line[:240] for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        lines = [line for line in lines if not any(word in line for word in NOISE)]
        telling = [line for line in lines if any(word in line.lower() for word in TELLING)]
        return list(dict.fromkeys([*telling[:SHOWN], *telling[-SHOWN:], *lines[-2:]]))


def arguments_of(select: str, smaller: str, episodes: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Arguments of a part of the quickstart, and of a smaller part of it."""

    def words(selection: str) -> Sequence[str]:
        return ("--select", selection, "--episodes", str(episodes))

    return tuple(words(select)), tuple(words(smaller))
