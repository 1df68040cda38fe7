"""Estimates of what a plan costs, from past cells: seconds, memory, wall time."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.storage.record import Record
from cluster.storage.results import Store, cell_of
from diffup.errors import UserError
from diffup.grid.cell import AnyCell, Cell, TrainingCell

OTHERS = 1000  # finished cells of other grids that are looked at, at most


@dataclass(frozen=True, kw_only=True)
class Past:
    """What a finished cell cost: seconds, peak memory in MB, and how much work it was (episodes)."""

    seconds: float
    memory_mb: float
    gpu_memory_mb: float
    amount: float


def amount(cell: AnyCell) -> float:
    """How much work a cell is: episodes that it evaluates or trains on."""
    if isinstance(cell, TrainingCell):
        return float(cell.train.steps * cell.train.episodes)
    return float(cell.episodes)


def likeness(cell: AnyCell) -> list[tuple[Any, ...]]:
    """Groups of like cost that a cell belongs to, the narrowest first."""
    if isinstance(cell, TrainingCell):
        what: tuple[Any, ...] = ("train", cell.input.input_size, "")
        return [(*what, cell.backbone), what, ("train",)]
    what = ("evaluate", cell.input.input_size, cell.sample.method, cell.sample.snap)
    backbone = (*what, cell.backbone)
    return [(*backbone, cell.shots, cell.annotation), backbone, what, ("evaluate",)]


def past_cells(
    cells: Sequence[AnyCell], records: Mapping[str, Record], stores: Iterable[Store]
) -> list[tuple[AnyCell, Past]]:
    """What finished cells of this grid cost, and some of other grids in these stores."""
    found = [(cell, records[cell.key()]) for cell in cells if records[cell.key()].status == "finished"]
    for store in stores:
        looked = 0
        for key in store.cell_keys():
            if key in records or looked >= OTHERS:
                continue
            record, document = store.read(key, verify=False), store.read_cell(key)
            if record.status != "finished":
                continue
            looked += 1
            try:
                found.append((cell_of(document), record))
            except UserError:  # of another version of the identity
                continue
    known = []
    for cell, record in found:
        metrics = record.metrics
        seconds = metrics.get("seconds")
        if isinstance(seconds, int | float):
            memory, gpu = metrics.get("peak_memory_mb", 0.0), metrics.get("peak_gpu_memory_mb", 0.0)
            known.append((cell, Past(seconds=float(seconds), memory_mb=memory, gpu_memory_mb=gpu, amount=amount(cell))))
    return known


def expected_seconds(cells: Sequence[AnyCell], past: Sequence[tuple[AnyCell, Past]]) -> dict[str, float]:
    """Seconds of work by key, from the finished cells that are most alike (per episode); nothing where none is."""
    seconds: dict[tuple[Any, ...], float] = defaultdict(float)
    amounts: dict[tuple[Any, ...], float] = defaultdict(float)
    for cell, cost in past:
        for group in likeness(cell):
            seconds[group] += cost.seconds
            amounts[group] += cost.amount
    expected = {}
    if seconds:
        for cell in cells:
            for group in likeness(cell):
                if amounts.get(group):
                    expected[cell.key()] = seconds[group] / amounts[group] * amount(cell)
                    break
    return expected


def gpu_share(past: Iterable[Past], total_mb: float, *, margin: float = 1.25) -> float:
    """The share of a GPU that an evaluation cell needs, by the most that past ones took: 1, 1/2, … 1/8.

    Args:
        total_mb: memory of a GPU.
        margin: factor on what was measured.
    """
    peak = max((cost.gpu_memory_mb for cost in past), default=0.0)
    if not peak or not total_mb:
        return 1.0
    return 1 / max(1, min(8, int(total_mb / (margin * peak))))


def evaluation_share(past: Iterable[tuple[AnyCell, Past]], total_mb: float) -> float:
    """`gpu_share` by what past evaluation cells took: training cells get a whole GPU, and their peaks say nothing."""
    return gpu_share((cost for cell, cost in past if isinstance(cell, Cell)), total_mb)


def duration(seconds: float) -> str:
    """``"40 s"``, ``"25 min"``, ``"3.2 h"`` or ``"31 h"``."""
    if seconds < 5400:
        return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36000 else f"{seconds / 3600:,.0f} h"


def wall_seconds(cells: Sequence[AnyCell], seconds: Mapping[str, float], workers: int) -> float:
    """Wall time of cells in this order on a number of workers, an evaluation cell after its training cell."""
    if not cells or not seconds:
        return 0.0
    mean = sum(seconds.values()) / len(seconds)
    free = [0.0] * max(1, workers)
    trained: dict[str, float] = {}
    end = 0.0
    for cell in cells:
        start = heapq.heappop(free)
        if isinstance(cell, Cell):
            start = max(start, trained.get(cell.checkpoint, 0.0))
        done = start + seconds.get(cell.key(), mean)
        if isinstance(cell, TrainingCell):
            trained[cell.key()] = done
        heapq.heappush(free, done)
        end = max(end, done)
    return end
