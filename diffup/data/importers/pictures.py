"""What the importers read: pictures with annotated objects, and how shapes become masks.

Letters: H W an image's size.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as masks

from diffup.data.images import IMAGE_SUFFIXES
from diffup.data.layouts.instances import reaches_beyond, runs_of
from diffup.data.spec import LONGEST, NO_CLASS, UNPRINTABLE
from diffup.errors import UserError

Mask = NDArray[np.bool_]
Points = Sequence[tuple[float, float]]
# From the size of its image a mask [H, W], and whether the thing reaches beyond the image; its UserErrors name no file.
Draw = Callable[[int, int], tuple[Mask, bool]]
VOID_LABELS = ("ignore", "void")
CORNERS = 96  # of the polygon that stands for a circle or an ellipse


@dataclass(frozen=True)
class Thing:
    """An annotated object.

    Attributes:
        label: of its class, as the tool has it.
        where: what it is called in messages, such as ``"shape 3"``.
        draw: its mask.
        level: things of a higher level lie on top; of one level the smaller do.
        void: whether its pixels are to be ignored.
    """

    label: str
    where: str
    draw: Draw
    level: int = 0
    void: bool = False


@dataclass(frozen=True)
class Picture:
    """An annotated image.

    Attributes:
        image: its file.
        name: path of the image below the source, which its id is made of.
        annotation: the file that annotates it, for messages.
        things: what it shows.
        size: (H, W) that it was annotated at, if that is stated.
        upright: whether the tool shows images turned by their EXIF orientation; `size` has the last word.
        content: the image itself, where there is no file.
    """

    image: Path
    name: str
    annotation: Path
    things: Sequence[Thing]
    size: tuple[int, int] | None = None
    upright: bool = True
    content: bytes | None = None


@dataclass
class Found:
    """What an importer has found.

    Attributes:
        pictures: those that could be read.
        problems: what is damaged or missing, each beginning with a file.
        left_out: number of things that were left out, by reason.
        noted: number of things that are taken otherwise than they are told, by what was done.
        classes: labels in the order of the tool; empty: sorted.
    """

    pictures: list[Picture] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    classes: list[str] = field(default_factory=list)
    _takers: dict[Path, str] = field(default_factory=dict)  # by image

    def add(self, picture: Picture, taker: str) -> None:
        """Take a picture; `taker` is what leads to its image, for messages.

        Raises:
            UserError: another one leads to the same image.
        """
        image = picture.image.resolve()
        if first := self._takers.get(image):
            raise UserError(
                f"leads to {picture.image}, as {first} does; keep one of the two, or put each image where it is named"
            )
        self._takers[image] = taker
        self.pictures.append(picture)


def label_of(value: object) -> str:
    """A label as a class name: without control characters and outer blanks, its letters composed.

    Raises:
        UserError: it is no text, or nothing is left of it.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"has no label but {value!r:.60}; name its class")
    text = " ".join(UNPRINTABLE.sub(" ", unicodedata.normalize("NFC", str(value))).split())[:LONGEST]
    if not text:
        raise UserError("has an empty label; name its class")
    return text


def stands_for(label: str) -> str:
    """``"background"``, ``"void"`` or ``"class"``: what a label of annotation tools means."""
    plain = label.strip("_ ").lower()
    if plain in VOID_LABELS:
        return "void"
    return "background" if plain in NO_CLASS else "class"


def size_of(height: object, width: object) -> tuple[int, int] | None:
    """The size (H, W) that a file states for an image, of whole numbers or their texts; None: null, 0 or nothing.

    Raises:
        UserError: anything else.
    """
    sides = []
    for side in (height, width):
        text = str(side).strip()
        if side is None or (not isinstance(side, bool) and re.fullmatch(r"0+(\.0*)?", text)):
            return None
        if isinstance(side, bool) or not re.fullmatch(r"[0-9]{1,9}(\.0*)?", text):
            raise UserError(f"states the size {width!r:.40} x {height!r:.40}, which is no number of pixels")
        sides.append(int(float(text)))
    return sides[0], sides[1]


def numbers(values: object, count: int = 0) -> list[float]:
    """Finite numbers from a list of numbers or of their texts.

    Raises:
        UserError: anything else, or another number of them than `count` where that is given.
    """
    try:
        if not isinstance(values, list | tuple):
            raise TypeError
        found = [float(value) for value in values if not isinstance(value, bool)]
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"has coordinates that are not numbers: {values!r:.60}") from None
    if len(found) != len(values) or not all(map(math.isfinite, found)):
        raise UserError(f"has coordinates that are not finite numbers: {values!r:.60}")
    if count and len(found) != count:
        raise UserError(f"needs {count} numbers, not {len(found)}")
    return found


@dataclass(frozen=True)
class Polygon:
    """Draws the inside of a polygon, as pycocotools fills it."""

    points: Points

    def __call__(self, height: int, width: int) -> tuple[Mask, bool]:
        flat = [value for point in self.points for value in point]
        try:
            drawn = masks.decode(runs_of([flat], height, width, tiny=True))
        except (ValueError, OverflowError) as error:
            raise UserError(str(error)) from None
        return np.asarray(drawn, np.bool_), reaches_beyond([flat], height, width)


def box(x0: float, y0: float, x1: float, y1: float, rotation: float = 0.0) -> Polygon:
    """A rectangle between two corners, rotated by degrees about its middle, clockwise on the screen."""
    x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
    return Polygon(_turned([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], ((x0 + x1) / 2, (y0 + y1) / 2), rotation))


def ellipse(x: float, y: float, rx: float, ry: float, rotation: float = 0.0) -> Polygon:
    """An ellipse by its middle and half axes, rotated as a `box`."""
    angles = [2 * math.pi * corner / CORNERS for corner in range(CORNERS)]
    rim = [(x + abs(rx) * math.cos(a), y + abs(ry) * math.sin(a)) for a in angles]
    return Polygon(_turned(rim, (x, y), rotation))


def _turned(points: Points, middle: tuple[float, float], degrees: float) -> list[tuple[float, float]]:
    if not degrees:
        return list(points)
    (cx, cy), cosine, sine = middle, math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [(cx + (x - cx) * cosine - (y - cy) * sine, cy + (x - cx) * sine + (y - cy) * cosine) for x, y in points]


def patch(part: Mask, left: int, top: int) -> Draw:
    """A mask of a part of the image; what reaches beyond the image is cut off."""

    def draw(height: int, width: int) -> tuple[Mask, bool]:
        whole = np.zeros((height, width), np.bool_)
        rows, columns = part.shape
        y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + rows, height), min(left + columns, width)
        if y0 >= y1 or x0 >= x1:
            raise UserError("lies outside the image")
        whole[y0:y1, x0:x1] = part[y0 - top : y1 - top, x0 - left : x1 - left]
        return whole, reaches_beyond([[left, top, left + columns, top + rows]], height, width)

    return draw


def image_file(name: str, folders: Iterable[Path], within: Path) -> Path:
    """The image that an annotation names: below one of `folders` as it says, else by its last part alone.

    Args:
        name: with slashes or backslashes; a path of another machine stands for its last part.
        folders: where to look, in order.
        within: a folder that the image must be in.

    Raises:
        UserError: the name is no name, or leads out of `within`. An image that does not exist is no error: the first
            place where it should be is returned.
    """
    windows = PureWindowsPath(name)
    parts = PurePosixPath(windows.as_posix()) if "\\" in name or windows.drive else PurePosixPath(name)
    if UNPRINTABLE.search(name) or not parts.name or parts.name == ".." or len(name) > 4000:
        raise UserError(f"names {name!r:.60}, which can't be the name of an image")
    given = [] if parts.is_absolute() or windows.drive else [folder / parts for folder in folders]
    places = [*given, *(folder / parts.name for folder in folders)]
    found = next((place for place in places if os.path.isfile(place)), places[0])
    if not found.resolve().is_relative_to(within.resolve()):
        raise UserError(f"names {name!r:.200}, which is outside {within}; give the folder that holds both")
    return found


def images_below(folder: Path) -> list[Path]:
    """All image files below a folder, sorted; hidden ones are left out."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    return sorted(path for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts))
