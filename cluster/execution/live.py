"""A training as it runs: a small file that the launch's progress reads, points of the loss, and a curve in MLflow."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.execution.context import WorkContext
from cluster.storage.layout import LIVE
from cluster.tracking.client import attempt
from cluster.tracking.runs import log
from diffup.files import write_in_full
from diffup.grid.cell import TrainingCell
from diffup.training.live import Pace, words

POINTS = 100  # of the loss that are kept
WRITE, LOG = 2.0, 15.0  # seconds between writes of the file, and between points that are sent to MLflow
STALE = 120.0  # seconds after which a file is of a training that was killed


class LiveTraining:
    """Called after each step of a training cell; errors of disk and network cost the line, not the training.

    Attributes:
        curve: step and mean loss of up to `POINTS` steps, the last one among them.
    """

    def __init__(self, cell: TrainingCell, context: WorkContext) -> None:
        self.curve: list[tuple[int, float]] = []
        self._key, self._steps, self._tracking = cell.key(), cell.train.steps, context.tracking
        self._file = context.results / self._key / LIVE
        self._every = max(1, self._steps // POINTS)
        self._pace = Pace(self._steps)
        self._wrote = self._logged = time.monotonic()

    def __call__(self, step: int, loss: float) -> None:
        """Note a step."""
        left, now = self._pace.left(step), time.monotonic()
        if step % self._every == 0 or step == self._steps:
            self.curve.append((step, round(loss, 5)))
        if now - self._wrote >= WRITE:
            self._wrote = now
            with suppress(OSError):
                line = {"line": words(step, self._steps, loss, left)}
                write_in_full(self._file, json.dumps(line).encode())
        if now - self._logged >= LOG:
            self._logged = now
            self._send(step, loss)

    def close(self) -> None:
        """Remove the file."""
        with suppress(OSError):
            self._file.unlink(missing_ok=True)

    def _send(self, step: int, loss: float) -> None:
        """A point of the curve, to the launch's run: the cell's own is written when it has finished."""
        tracking = self._tracking
        if tracking is None or not tracking.parent_run:
            return
        run, name = tracking.parent_run, f"loss/{self._key}"

        def send(client: Any) -> None:
            log(client, run, metrics={name: loss}, step=step)

        attempt(tracking.uri, f"the loss of cell {self._key} can't be logged", send)


def line_of(folder: Path) -> str:
    """How far the training in a cell's folder is, ``""`` where none runs or it is on a machine without this folder."""
    path = folder / LIVE
    try:
        fresh = time.time() - path.stat().st_mtime < STALE
        return str(json.loads(path.read_bytes())["line"]) if fresh else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""
