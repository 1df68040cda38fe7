"""Estimates of what a plan costs, from past cells: seconds, memory, wall time, and disk for the feature cache."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.options import Cache
from cluster.storage.record import Record
from cluster.storage.results import Store, cell_of
from diffup.config import support_kinds
from diffup.errors import UserError
from diffup.grid.cell import AnyCell, Cell, TrainingCell

OTHERS = 1000  # finished cells of other grids that are looked at, at most
STAGES, INFO_BYTES = 3, 3 * 40 * 40 * 4
# Images of benchmarks whose files need not be available to plan: VOC 2012 trainaug + val, COCO 2014 train + val.
IMAGES = {"pascal5i": 10582 + 1449, "coco20i": 82783 + 40504}
TESTED = {"pascal5i": 1449, "coco20i": 40504}  # of them, those that episodes are drawn from
AUTO_BYTES = 20 * 10**9  # of features and prior maps that are kept without being asked for
DTYPE_BYTES = {"float16": 2, "float32": 4}


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
    what = ("evaluate", cell.input.input_size, cell.sample.method)
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


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes of the cache.

    Attributes:
        features, priors: that shards of features and of prior maps take at most.
        pixels: that photographs rounded to 8 bits take, as many as episodes draw on average if all are equally likely;
            photographs for training are not kept.
        complete: whether all backbones are known.
    """

    features: int
    priors: int
    pixels: int
    complete: bool


def choose_cache(asked: Cache, cells: Sequence[AnyCell], *, gpu: bool, room: float = float("inf")) -> Cache:
    """What is kept on disk: ``"features"``, ``"pixels"`` or ``"none"``.

    Features are read faster than a CPU makes them. A GPU makes them faster than a disk reads them: a ResNet-50's are 6
    MB an image at 400 px.

    Args:
        asked: one of these, or ``"auto"``.
        cells: of the plan.
        gpu: whether cells run on one.
        room: bytes that the disk has for it.

    Raises:
        UserError: pixels are asked for, but no cell reads any.
    """
    rounded = any(isinstance(cell, Cell) and cell.input.pixel_dtype == "uint8" for cell in cells)
    if asked == "pixels" and not rounded:
        raise UserError(
            "--cache pixels: no cell that is to be evaluated rounds its input to 8 bits (InputConfig.pixel_dtype is "
            "'float32'), so there is nothing to keep; take --cache features, or none"
        )
    if asked != "auto" or not rounded:
        return "features" if asked == "auto" else asked
    if gpu:
        return "pixels"
    most = disk(cells)
    return "features" if most.features + most.priors <= min(AUTO_BYTES, room) else "pixels"


def disk(cells: Sequence[AnyCell], images: Mapping[str, int] = IMAGES, tested: Mapping[str, int] = TESTED) -> Disk:
    """What the cache of a plan takes. Each image counts once a backbone, or once for all, each triple once.

    Args:
        images: number of images by data set, where it is known.
        tested: of them, those that episodes are drawn from.
    """
    from diffup.backbones.shapes import channels
    from diffup.models.baft import MAPS

    wanted: dict[tuple[Any, ...], dict[tuple[Any, ...], int]] = defaultdict(lambda: defaultdict(int))
    triples: dict[tuple[Any, ...], int] = defaultdict(int)
    shown: dict[tuple[str, int], dict[tuple[Any, ...], int]] = defaultdict(lambda: defaultdict(int))
    complete = True
    for cell in cells:
        given = cell.input
        at = (cell.dataset, given.feature_grid, given.feature_dtype, given.input_size, cell.backbone, cell.weights)
        if isinstance(cell, TrainingCell):
            complete &= cell.dataset in images
            wanted[at]["training",] = images.get(cell.dataset, 0)
        elif cell.sample.method != "adapter":
            draw = (cell.fold, cell.episode_seed, cell.classes, cell.manifest, cell.train_seed if cell.hold_out else 0)
            wanted[at][draw] = max(wanted[at][draw], cell.episodes * (1 + cell.shots))
            if given.pixel_dtype == "uint8":
                square = shown[cell.dataset, given.input_size]
                square[draw] = max(square[draw], cell.episodes * (1 + cell.shots))
            if cell.sample.method != "prototype":
                kinds = set(support_kinds(cell.annotation, cell.shots))
                for kind in kinds:
                    place = (*at, *draw, kind)
                    triples[place] = max(triples[place], cell.episodes * cell.shots // len(kinds))
    features = 0
    for (name, grid, dtype, _, backbone, _), draws in wanted.items():
        count = sum(draws.values())
        count = min(count, images.get(name, count))
        try:
            sizes, _ = channels(backbone)
        except UserError:  # the name of no backbone that can be built: nothing is known of its size
            complete = False
            continue
        features += count * (sum(sizes) * grid * grid * DTYPE_BYTES[dtype] + INFO_BYTES)
    priors = sum(count * STAGES * MAPS * place[1] ** 2 * 4 for place, count in triples.items())
    squares = ((_distinct(sum(draws.values()), tested.get(name)), side) for (name, side), draws in shown.items())
    pixels = sum(count * 3 * side**2 for count, side in squares)
    return Disk(features=features, priors=priors, pixels=pixels, complete=complete)


def _distinct(draws: int, of: int | None) -> int:
    """How many of `of` images so many draws hit on average; all draws where their number is not known."""
    return draws if of is None else math.ceil(of * -math.expm1(-draws / of))
