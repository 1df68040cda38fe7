"""Work that costs nothing and can be checked: counts that follow from a cell's key, and a line for each execution.

The lines go to ``executions.log`` in the folder that the grid names as its data set's:
``key pid host start|end nanoseconds``.
"""

from __future__ import annotations

import os
import platform
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image

from cluster.options import Work
from diffup.evaluation.metrics import fb_iou, miou
from diffup.grid.cell import AnyCell, Cell, TrainingCell
from tests.helpers.fake_work import Outcome

if TYPE_CHECKING:
    from cluster.execution.context import WorkContext

DATASET = "faults"
LOG = "executions.log"
CLASSES = 4
SHORTEST, LONGEST = 0.2, 1.0  # seconds of a cell
TRAINING = 1.5


def _say(cell: AnyCell, context: WorkContext, what: str) -> None:
    """One line, in one write: lines of several processes never mix."""
    line = f"{cell.key()} {os.getpid()} {platform.node()} {what} {time.time_ns()}\n"
    log = Path(context.datasets[DATASET]).parent / LOG
    handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def execute(cell: AnyCell, context: WorkContext) -> Outcome:
    """Sleep for a while that the key decides, then give the counts that it decides."""
    _say(cell, context, "start")
    provenance: dict[str, object] = {"device": context.device, "weights_hash": "abc", "threads": context.threads}
    if isinstance(cell, TrainingCell):
        time.sleep(TRAINING)
        folder = context.results / cell.key() / "checkpoint"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(cell.key().encode() * 1000)
        (folder / "config.json").write_text("{}")
        outcome = Outcome({"loss": 0.5, "seconds": TRAINING}, None, provenance, {})
    else:
        seconds = random.Random(cell.key()).uniform(SHORTEST, LONGEST)
        time.sleep(seconds)
        outcome = Outcome(*_evaluated(cell, context, seconds), provenance, {"episode_0000": Image.new("RGB", (8, 8))})
    _say(cell, context, "end")
    return outcome


def _evaluated(cell: Cell, context: WorkContext, seconds: float) -> tuple[dict[str, float], pd.DataFrame]:
    """The episode table with the columns that `analysis` reads, and its metrics."""
    if cell.checkpoint:
        trained = context.results / cell.checkpoint / "checkpoint" / "model.safetensors"
        if trained.read_bytes() != cell.checkpoint.encode() * 1000:
            raise RuntimeError(f"{trained} is not what training wrote")
    rng = np.random.default_rng(int(cell.key(), 16))
    numbers = np.arange(cell.episodes)
    inter, inter_bg = rng.integers(1, 100, cell.episodes), rng.integers(100, 900, cell.episodes)
    errors = rng.integers(0, 100, cell.episodes)
    table = pd.DataFrame(
        {
            "episode": numbers,
            "class_id": numbers % CLASSES,
            "class_name": [f"class {number % CLASSES}" for number in numbers],
            "query": [f"image {number}" for number in numbers],
            "inter_fg": inter,
            "union_fg": inter + errors,
            "inter_bg": inter_bg,
            "union_bg": inter_bg + errors,
            "seconds": rng.random(cell.episodes) * time.time() % 1,
        }
    )
    metrics = {
        "miou": miou(table["class_id"], table["inter_fg"], table["union_fg"], range(CLASSES)),
        "fb_iou": fb_iou(table["inter_fg"], table["union_fg"], table["inter_bg"], table["union_bg"]),
        "seconds": seconds,
    }
    return metrics, table


WORK = Work(execute)
