"""Work that costs nothing and can be checked: counts that follow from a cell's key, and a line for each execution.

The lines go to ``executions.log`` in the folder that the grid names as its data set's:
``unit pid host start|end nanoseconds``, where the unit is a cell's key, or key and first episode of a part.
"""

from __future__ import annotations

import os
import platform
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image

from cluster.execution.work_units import Part, WorkUnit
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
BATCH, OWN = 0.15, 0.03  # seconds of a batch of a pass: what its cells share, and each cell's own
RAISES = "raises"  # variant of cells that raise in the middle of their pass


def _say(unit: WorkUnit, context: WorkContext, what: str) -> None:
    """One line, in one write: lines of several processes never mix."""
    line = f"{unit.name} {os.getpid()} {platform.node()} {what} {time.time_ns()}\n"
    log = Path(context.datasets[DATASET]).parent / LOG
    handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def execute(cell: AnyCell, context: WorkContext) -> Outcome:
    """Sleep for a while that the key decides, then give the counts that it decides."""
    unit = WorkUnit(cell)
    _say(unit, context, "start")
    if isinstance(cell, TrainingCell):
        time.sleep(TRAINING)
        folder = context.results / cell.key() / "checkpoint"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(cell.key().encode() * 1000)
        (folder / "config.json").write_text("{}")
        outcome = Outcome({"loss": 0.5, "seconds": TRAINING}, None, _provenance(context), {})
    else:
        _check_checkpoint(cell, context)
        outcome = conclude(cell, context, [_part(unit, context, _sleep(unit))])
    _say(unit, context, "end")
    return outcome


def evaluate_part(cell: Cell, context: WorkContext, start: int, end: int) -> Part:
    """Some of a cell's counts, after a while."""
    unit = WorkUnit(cell, start, end)
    _say(unit, context, "start")
    _check_checkpoint(cell, context)
    part = _part(unit, context, _sleep(unit))
    _say(unit, context, "end")
    return part


def conclude(cell: Cell, context: WorkContext, parts: list[Part]) -> Outcome:
    """All of a cell's counts, and their metrics."""
    table = pd.concat([part.episodes for part in parts], ignore_index=True)
    if list(table["episode"]) != list(range(cell.episodes)):
        raise RuntimeError(f"the parts of cell {cell.key()} are not its {cell.episodes} episodes")
    metrics = {
        "miou": miou(table["class_id"], table["inter_fg"], table["union_fg"], range(CLASSES)),
        "fb_iou": fb_iou(table["inter_fg"], table["union_fg"], table["inter_bg"], table["union_bg"]),
        "seconds": sum(part.seconds for part in parts),
    }
    return Outcome(metrics, table, _provenance(context), {"episode_0000": Image.new("RGB", (8, 8))})


def execute_together(
    cells: Sequence[Cell], context: WorkContext, start: int = 0, end: int = 0
) -> Iterator[tuple[Cell, Outcome | Part | Exception]]:
    """All cells batch by batch; then each ends, after a while of its own."""
    running = [WorkUnit(cell, start, end) for cell in cells]
    for unit in running:
        _say(unit, context, "start")
    batches = range(start, end or max(cell.episodes for cell in cells), context.batch_size)
    for number in range(len(batches)):
        time.sleep(BATCH + OWN * len(running))
        for unit in [unit for unit in running if unit.cell.variant == RAISES and number == len(batches) // 2]:
            running.remove(unit)
            _say(unit, context, "end")
            assert isinstance(unit.cell, Cell)
            yield unit.cell, RuntimeError("in the middle")
    for unit in running:
        cell = unit.cell
        assert isinstance(cell, Cell)
        made: Part | Outcome | Exception
        try:
            _check_checkpoint(cell, context)
            part = _part(unit, context, _sleep(unit))
            made = conclude(cell, context, [part]) if unit.whole else part
        except Exception as error:
            made = error
        _say(unit, context, "end")
        yield cell, made


def _sleep(unit: WorkUnit) -> float:
    seconds = random.Random(unit.name).uniform(SHORTEST, LONGEST)
    time.sleep(seconds)
    return seconds


def _provenance(context: WorkContext) -> dict[str, object]:
    return {"device": context.device, "weights_hash": "abc", "threads": context.threads}


def _check_checkpoint(cell: Cell, context: WorkContext) -> None:
    if cell.checkpoint:
        trained = context.results / cell.checkpoint / "checkpoint" / "model.safetensors"
        if trained.read_bytes() != cell.checkpoint.encode() * 1000:
            raise RuntimeError(f"{trained} is not what training wrote")


def _part(unit: WorkUnit, context: WorkContext, seconds: float) -> Part:
    """Episodes with the columns that `analysis` reads."""
    cell = unit.cell
    assert isinstance(cell, Cell)
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
    return Part(table[unit.start : unit.end or None], _provenance(context), seconds)


WORK = Work(execute, evaluate_part, conclude, execute_together)
