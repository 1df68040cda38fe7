"""What the cells of a plan read and compute, counted as a launch does it and without their data.

Cells that share their episodes and their features form a pass: an image is read, resized and encoded once for all of
them, and the prior maps of a (query, support, annotation) are computed once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from diffup.config import FEATURE_METHODS, BankConfig, parse_annotation, support_kinds
from diffup.grid.cell import AnyCell, Cell, TrainingCell

# Images of benchmarks whose files need not be available to plan: VOC 2012 trainaug + val, COCO 2014 train + val.
IMAGES = {"pascal5i": 10582 + 1449, "coco20i": 82783 + 40504}
TESTED = {"pascal5i": 1449, "coco20i": 40504}  # of them, those that episodes are drawn from
DTYPE_BYTES = {"float16": 2, "float32": 4}
INFO_BYTES = 3 * 40 * 40 * 4
OFTEN = 8  # times that a training draws an image on average, for it to be kept
KEPT_BYTES = 4 << 30  # of features in a worker's memory, as `diffup.evaluation.encode.FeatureCache` keeps them


class Place(NamedTuple):
    """What the features of an image depend on."""

    dataset: str
    grid: int
    dtype: str
    side: int
    backbone: str
    weights: str

    def feature_bytes(self, channels: int) -> int:
        """Of one image."""
        return channels * self.grid**2 * DTYPE_BYTES[self.dtype] + INFO_BYTES


@dataclass
class Pass:
    """Evaluation cells that share episodes and features.

    Attributes:
        place, draw: what they share.
        draws: images of their episodes, each as often as it occurs.
        queries, pairs: (query) and (query, support) that prior maps are computed for, by bank.
        triples: (query, support, annotation) by bank and annotation: maps beside another bank are others.
        texts: queries that are read by `reader` too.
        rounded: whether pixels are rounded to 8 bits.
        cells: themselves.
    """

    place: Place
    draw: tuple[Any, ...]
    draws: int = 0
    queries: dict[BankConfig, int] = field(default_factory=lambda: defaultdict(int))
    pairs: dict[BankConfig, int] = field(default_factory=lambda: defaultdict(int))
    triples: dict[tuple[BankConfig, str], int] = field(default_factory=lambda: defaultdict(int))
    texts: int = 0
    reader: str = ""
    rounded: bool = False
    cells: list[Cell] = field(default_factory=list)

    def add(self, cell: Cell) -> None:
        """Count a cell: shots are nested, so that the most of each number counts."""
        self.cells.append(cell)
        self.draws = max(self.draws, cell.episodes * (1 + cell.shots))
        self.rounded |= cell.input.pixel_dtype == "uint8"
        if cell.sample.method in FEATURE_METHODS:
            return
        kinds, bank = support_kinds(cell.annotation, cell.shots), cell.input.negatives
        self.queries[bank] = max(self.queries[bank], cell.episodes)
        self.pairs[bank] = max(self.pairs[bank], cell.episodes * cell.shots)
        for kind in set(kinds):
            of = bank, kind
            self.triples[of] = max(self.triples[of], cell.episodes * cell.shots // len(set(kinds)))
        if "text" in parse_annotation(cell.annotation):
            self.texts = max(self.texts, cell.episodes)
            self.reader = cell.input.companion or cell.backbone


def passes(cells: Iterable[AnyCell]) -> list[Pass]:
    """The passes of evaluation cells, foreign methods left out."""
    found: dict[tuple[Any, ...], Pass] = {}
    for cell in cells:
        if isinstance(cell, Cell) and cell.sample.method != "adapter":
            place, seed = place_of(cell), cell.train_seed if cell.hold_out else 0
            draw = (cell.fold, cell.episode_seed, cell.classes, cell.tested, cell.manifest, seed)
            found.setdefault((place, draw), Pass(place, draw)).add(cell)
    return list(found.values())


def place_of(cell: AnyCell) -> Place:
    """Where a cell's features are."""
    given = cell.input
    return Place(
        cell.dataset, given.feature_grid, given.feature_dtype, given.input_size, cell.backbone, cell.weights
    )  # fmt: skip


def squares(found: Iterable[Pass], tested: Mapping[str, int] = TESTED) -> dict[tuple[str, int], int]:
    """Photographs that are kept as pixels, by data set and side: once for all backbones and folds."""
    shown: dict[tuple[str, int], dict[tuple[Any, ...], int]] = defaultdict(lambda: defaultdict(int))
    for each in found:
        if each.rounded:
            draws = shown[each.place.dataset, each.place.side]
            draws[each.draw] = max(draws[each.draw], each.draws)
    return {where: distinct(sum(draws.values()), tested.get(where[0])) for where, draws in shown.items()}


def distinct(draws: int, of: int | None) -> int:
    """How many of `of` images so many draws hit on average; all draws where their number is not known."""
    return draws if of is None else math.ceil(of * -math.expm1(-draws / of))


def encoded(draws: int, of: int | None, feature_bytes: int) -> int:
    """Forward passes for so many draws out of `of` images, where memory keeps `KEPT_BYTES` of features."""
    images = distinct(draws, of)
    forgotten = 1 - min(1.0, KEPT_BYTES / (images * feature_bytes)) if images else 0.0
    return images + round((draws - images) * forgotten)


def steps_drawn(cell: TrainingCell) -> int:
    """Training steps that are drawn; the others repeat these."""
    return min(cell.train.draws or cell.train.steps, cell.train.steps)


def keeps_pixels(cell: TrainingCell, images: int) -> bool:
    """Whether a training draws its images so often that they are kept as pixels; else it reads the photographs."""
    draws = steps_drawn(cell) * cell.train.episodes * (1 + mean_shots(cell))
    return cell.input.pixel_dtype == "uint8" and draws >= OFTEN * images


def mean_shots(cell: TrainingCell) -> float:
    """Supports of a training episode on average, as `diffup.training.sampler.step_cues` draws them."""
    most = cell.train.max_shots
    return most / sum(1 / number for number in range(1, most + 1))


def draws_key(cell: TrainingCell) -> tuple[Any, ...]:
    """Trainings of equal keys draw the same steps, and share their prior maps."""
    how = (cell.train.episodes, cell.train.max_shots, cell.train.cue_weights, cell.train.flip, cell.train.hold_out)
    return (place_of(cell), cell.fold, cell.train_seed, cell.model.decoder_grid, *how)
