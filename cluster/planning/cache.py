"""What a launch keeps on disk for all of its cells: how large it is, and whether it pays."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.options import Cache
from cluster.planning.architectures import SIDE, architecture
from cluster.planning.counts import IMAGES, TESTED, Place, keeps_pixels, passes, place_of, squares
from cluster.planning.rates import Rates
from cluster.storage.sizes import format_size
from diffup.config import EVIDENCE_MAPS, PRIOR_MAPS
from diffup.errors import UserError
from diffup.grid.cell import AnyCell, Cell, TrainingCell

STAGES = 3
FASTER = "they are read faster than made again"
AUTO_BYTES = 20 * 10**9  # of features and prior maps that are kept without being asked for


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes of the cache.

    Attributes:
        features, priors: that shards of features and of prior maps take at most.
        pixels: that photographs rounded to 8 bits take: of those that are tested, as many as episodes draw on average
            if all are equally likely; of those that are trained on, all where a training draws them often
            (`cluster.planning.counts.keeps_pixels`).
        complete: whether all backbones are known.
    """

    features: int
    priors: int
    pixels: int
    complete: bool


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is kept, and why.

    Attributes:
        cache: ``"features"``, ``"pixels"`` or ``"none"``.
        why: half a line.
    """

    cache: Cache
    why: str


def disk(cells: Sequence[AnyCell], images: Mapping[str, int] = IMAGES, tested: Mapping[str, int] = TESTED) -> Disk:
    """What the cache of a plan takes. Each image counts once a backbone, or once for all, each triple once.

    Args:
        images: number of images by data set, where it is known.
        tested: of them, those that episodes are drawn from.
    """
    found, complete = passes(cells), True
    wanted: dict[Place, int] = defaultdict(int)
    for each in found:
        wanted[each.place] += each.draws
    for cell in cells:
        if isinstance(cell, TrainingCell):
            complete &= cell.dataset in images
            wanted[place_of(cell)] += images.get(cell.dataset, 0)
    features = 0
    for place, count in wanted.items():
        try:
            one = place.feature_bytes(architecture(place.backbone).channels)
        except UserError:  # the name of no backbone that can be built: nothing is known of its size
            complete = False
            continue
        features += min(count, images.get(place.dataset, count)) * one
    maps = STAGES * len((*PRIOR_MAPS, *EVIDENCE_MAPS))
    priors = sum(sum(each.triples.values()) * maps * each.place.grid**2 * 4 for each in found)
    kept = squares(found, tested)
    trained = {
        (cell.dataset, cell.input.input_size)
        for cell in cells
        if isinstance(cell, TrainingCell) and keeps_pixels(cell, images.get(cell.dataset, sys.maxsize))
    }
    for name, side in trained:
        kept[name, side] = kept.get((name, side), 0) + images[name] - tested.get(name, 0)
    pixels = sum(count * 3 * side**2 for (_, side), count in kept.items())
    return Disk(features=features, priors=priors, pixels=pixels, complete=complete)


def choose_cache(
    asked: Cache, cells: Sequence[AnyCell], *, gpu: bool, room: float = float("inf"), rates: Rates | None = None,
    images: Mapping[str, int] = IMAGES,
) -> Choice:  # fmt: skip
    """What is kept on disk.

    By itself, features if they are read faster than they are made again and there is room; else pixels, where cells
    read rounded ones. Without rates, a CPU is taken to be slower than a disk and a GPU to be faster: a ResNet-50's
    features are 6 MB an image at 400 px.

    Args:
        asked: one of these, or ``"auto"``.
        cells: of the plan.
        gpu: whether cells run on one.
        room: bytes that the disk has for it.
        rates: of the device that cells run on, where they are known.
        images: number of images by data set, where it is known.

    Raises:
        UserError: pixels are asked for, but no cell reads any.
    """
    rounded = any(isinstance(cell, Cell) and cell.input.pixel_dtype == "uint8" for cell in cells)
    if asked == "pixels" and not rounded:
        raise UserError(
            "--cache pixels: no cell that is to be evaluated rounds its input to 8 bits (InputConfig.pixel_dtype is "
            "'float32'), so there is nothing to keep; take --cache features, or none"
        )
    if asked != "auto":
        return Choice(cache=asked, why="as asked")
    if rates is not None and (slower := _slower(cells, rates, rounded)):
        return Choice(cache="pixels" if rounded else "none", why=slower)
    if not rounded:
        why = (
            "they are read faster than made again" if rates else "pixels are kept only where cells round them to 8 bits"
        )
        return Choice(cache="features", why=why)
    if rates is None and gpu:
        return Choice(cache="pixels", why="a GPU is taken to encode faster than a disk reads features")
    most = disk(cells, images)
    takes = most.features + most.priors
    if takes > min(AUTO_BYTES, room):
        limit = "are free" if room < AUTO_BYTES else "are taken unasked"
        return Choice(cache="pixels", why=f"features exceed the {format_size(min(AUTO_BYTES, room))} that {limit}")
    return Choice(cache="features", why=FASTER)


def _slower(cells: Sequence[AnyCell], rates: Rates, rounded: bool) -> str:
    """In words, that reading features takes longer than making them again, for an image of each backbone."""
    read = made = 0.0
    for place in {place_of(cell) for cell in cells if not (isinstance(cell, Cell) and cell.sample.method == "adapter")}:
        try:
            shape = architecture(place.backbone)
        except UserError:
            continue
        read += place.feature_bytes(shape.channels) / rates.disk
        made += rates.encode(place.backbone, shape.gflops * (place.side / SIDE) ** 2)
        made += 3 * place.side**2 / rates.disk if rounded else rates.decode
    return f"reading features takes {read / made:.1f} times as long as encoding again" if read > made > 0 else ""
