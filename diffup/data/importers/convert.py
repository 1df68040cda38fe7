"""Converts the pictures of an importer: each image saved upright, its objects as one label image.

Of overlapping objects the smaller lies on top, unless the tool orders them.
"""

from __future__ import annotations

import io
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as masks

from diffup.data.images import IMAGE_SUFFIXES, TURNS, Photo, read_photo
from diffup.data.importers.pictures import Picture, Polygon, stands_for
from diffup.data.layouts.instances import IN_FRACTIONS, in_fractions
from diffup.data.layouts.scan import beside
from diffup.data.spec import LONGEST, UNPRINTABLE, VOID
from diffup.errors import UserError

MOST_LABELS = 254  # of an 8-bit label image, in which 0 is background and 255 void
IGNORED = -1  # pixels that are void
JPEG_QUALITY = 95
PNG = b"\x89PNG"
PALETTE = [
    sum((label >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3))
    for label in range(256)
    for channel in range(3)
]  # of VOC


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What became of a picture.

    Attributes:
        file: name of the image.
        height, width: of the image.
        shown: class indices that it shows.
        overlapping: whether objects of different classes overlap.
        turned: whether the image was turned upright.
        hidden: number of objects that cover no pixel.
        beyond: objects that reach beyond the image.
        runs: by class, its mask in COCO's run lengths; only where labels don't fit into 8 bits.
    """

    file: str
    height: int
    width: int
    shown: tuple[int, ...]
    overlapping: bool
    turned: bool
    hidden: int
    beyond: Sequence[str]
    runs: Mapping[int, dict[str, Any]] = field(default_factory=dict)


def names(pictures: Sequence[Picture]) -> list[str]:
    """A file name without suffix for each picture: that of its image where it is the only one so called, else with its
    folders in front; none begins with a dot, differs from another in case alone, or is too long.
    """
    stems = Counter(_safe(PurePosixPath(picture.name).stem).casefold() for picture in pictures)
    taken, given = set[str](), list[str]()
    for number, picture in enumerate(pictures):
        path = PurePosixPath(picture.name)
        stem = _safe(path.stem)
        if stems[stem.casefold()] > 1:
            stem = _safe("_".join([*(part for part in path.parent.parts if part not in ("/", "..")), path.stem]))
        wanted = stem
        while stem.casefold() in taken:
            stem, number = f"{wanted}_{number}", number + 1
        taken.add(stem.casefold())
        given.append(stem)
    return given


def _safe(name: str) -> str:
    cleaned = re.sub(r"[\\/:*?\"<>|]", "_", UNPRINTABLE.sub("_", name)).strip(" .")
    while len(cleaned.encode()) > LONGEST - 20:
        cleaned = cleaned[:-1]
    return cleaned or "image"


def convert(picture: Picture, stem: str, index: Mapping[str, int], images: Path, labels: Path | None) -> Converted:
    """Write an image and its labels.

    Args:
        picture: what to convert.
        stem: name of its files without suffix.
        index: class index by label.
        images: folder of the images.
        labels: folder of the label images; None: the masks are returned as runs.

    Raises:
        UserError: a damaged or missing file, or an annotation that does not fit; the message names the file.
        OSError: one can't be written.
    """
    pixels, file, turned = _save_image(picture, stem, images)
    height, width = pixels.shape[:2]
    try:
        values, overlapping, hidden, beyond = _labels(picture, index, height, width)
    except UserError:
        (images / file).unlink()
        raise
    shown = tuple(int(value) - 1 for value in np.unique(values) if value > 0)
    if labels is not None:
        image = Image.fromarray(np.where(values == IGNORED, VOID, values).astype(np.uint8))
        image.putpalette(PALETTE)
        image.save(labels / f"{stem}.png")
    runs = {} if labels is not None else {c: _runs(values == c + 1) for c in shown}
    return Converted(
        file=file, height=height, width=width, shown=shown, overlapping=overlapping, turned=turned, hidden=hidden,
        beyond=beyond, runs=runs,
    )  # fmt: skip


def _runs(mask_HW: NDArray[np.bool_]) -> dict[str, Any]:
    runs = masks.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    return {"size": list(mask_HW.shape), "counts": runs["counts"].decode()}


def _labels(
    picture: Picture, index: Mapping[str, int], height: int, width: int
) -> tuple[NDArray[np.int32], bool, int, list[str]]:
    """Labels [H, W], whether objects of different classes overlap, how many cover no pixel, which reach beyond."""
    corners = [thing.draw.points for thing in picture.things if isinstance(thing.draw, Polygon)]
    if corners and len(corners) == len(picture.things) and in_fractions([xy for points in corners for xy in points]):
        raise UserError(f"{picture.annotation}: {picture.image.name}: {IN_FRACTIONS}")
    drawn, beyond = [], []
    for thing in picture.things:
        try:
            mask, reaches = thing.draw(height, width)
        except UserError as error:
            raise UserError(f"{picture.annotation}: {thing.where} of {picture.image.name} {error}") from None
        drawn.append((thing, mask, int(mask.sum())))
        if reaches:
            beyond.append(f"{thing.where} of {picture.name}")
    values, overlapping = np.zeros((height, width), np.int32), False
    for thing, mask, area in sorted(drawn, key=lambda each: (each[0].level, -each[2])):
        if not area:
            continue
        kind = "void" if thing.void else stands_for(thing.label)
        value = {"void": IGNORED, "background": 0}.get(kind, index.get(thing.label, 0) + 1)
        under = values[mask]
        overlapping = overlapping or bool(((under > 0) & (under != value)).any())
        values[mask] = value
    return values, overlapping, sum(not area for _, _, area in drawn), beyond


def _save_image(picture: Picture, stem: str, images: Path) -> tuple[NDArray[np.uint8], str, bool]:
    """The image as it was annotated, [H, W, 3], its new file's name, and whether it was turned."""
    source = picture.image
    if picture.content is not None:
        source = images / (stem + (".png" if picture.content.startswith(PNG) else ".jpg"))
        source.write_bytes(picture.content)
    try:
        photo = read_photo(source)
        pixels = _as_annotated(picture, photo)
    except UserError as error:
        if picture.content is not None:
            source.unlink()
        where = beside(picture.image) if "missing" in str(error) else ""
        raise UserError(f"{picture.image}: {error}{where} (annotated by {picture.annotation})") from None
    suffix = source.suffix.lower()
    if photo.orientation == 1 and suffix in IMAGE_SUFFIXES:
        if picture.content is None:
            shutil.copyfile(source, images / f"{stem}{suffix}")
        return pixels, f"{stem}{suffix}", False
    if picture.content is not None:
        source.unlink()
    lossy = suffix in (".jpg", ".jpeg")
    kept = io.BytesIO()
    Image.fromarray(pixels).save(kept, "JPEG" if lossy else "PNG", **({"quality": JPEG_QUALITY} if lossy else {}))
    file = f"{stem}{suffix if lossy else '.png'}"
    (images / file).write_bytes(kept.getvalue())
    return pixels, file, pixels.shape != photo.pixels.shape or not np.array_equal(pixels, photo.pixels)


def _as_annotated(picture: Picture, photo: Photo) -> NDArray[np.uint8]:
    stored = photo.pixels
    upright = stored
    if photo.orientation != 1:
        upright = np.asarray(Image.fromarray(stored).transpose(TURNS[photo.orientation]))
    if picture.size is None:
        return upright if picture.upright else stored
    order = (upright, stored) if picture.upright else (stored, upright)
    for pixels in order:
        if pixels.shape[:2] == picture.size:
            return pixels
    (height, width), (rows, columns) = picture.size, upright.shape[:2]
    raise UserError(f"image is {columns}x{rows}, but was annotated at {width}x{height} (width x height)")
