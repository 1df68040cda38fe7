"""What was drawn on a support in the page, as cues: strokes in pixels of the picture become masks, scribbles and boxes.

Letters: H W size of the picture in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from diffup.errors import UserError

TOOLS = ("scribble", "box", "outline", "brush", "eraser")
MASK_TOOLS = ("outline", "brush", "eraser")  # they draw one mask, in their order
MOST_POINTS, MOST_STROKES, MOST_SIZE = 20_000, 1_000, 4_096
LARGE = 1e6  # coordinates beyond are no drawing
NOT_DRAWN = "what was drawn can't be read: {}. Clear the picture and draw it again"

Point = tuple[float, float]


@dataclass(frozen=True)
class Stroke:
    """One movement of the pen.

    Attributes:
        tool: of `TOOLS`.
        size: width of the pen in pixels of the picture; a box and an outline have none.
        points: (x, y) in pixels, the upper left corner of the picture is (0, 0). A box has two, opposite corners.
    """

    tool: str
    size: float
    points: tuple[Point, ...]


def read_strokes(found: object) -> tuple[Stroke, ...]:
    """Strokes from what the page sent: a list of ``{"tool": …, "size": …, "points": [[x, y], …]}``.

    Raises:
        UserError: anything else.
    """
    if not isinstance(found, Sequence) or isinstance(found, str) or len(found) > MOST_STROKES:
        raise UserError(NOT_DRAWN.format(f"it is no list of at most {MOST_STROKES} strokes"))
    return tuple(_stroke(each) for each in found)


def _stroke(found: Any) -> Stroke:
    if not isinstance(found, Mapping) or found.get("tool") not in TOOLS:
        raise UserError(NOT_DRAWN.format("a stroke has no known tool"))
    tool, given, size = str(found["tool"]), found.get("points"), found.get("size", 1)
    if not isinstance(given, Sequence) or isinstance(given, str) or not 0 < len(given) <= MOST_POINTS:
        raise UserError(NOT_DRAWN.format("a stroke has no points, or too many"))
    points = tuple(_point(each) for each in given)
    if not _is_number(size) or not 0 < size <= MOST_SIZE:
        raise UserError(NOT_DRAWN.format("a stroke's width is out of range"))
    if tool == "box" and len(points) != 2:
        raise UserError(NOT_DRAWN.format("a box has two corners"))
    return Stroke(tool, float(size), points)


def _point(found: Any) -> Point:
    pair = isinstance(found, Sequence) and not isinstance(found, str) and len(found) == 2
    if not pair or not all(_is_number(value) for value in found):
        raise UserError(NOT_DRAWN.format("a point is no pair of numbers"))
    return float(found[0]), float(found[1])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGE < value < LARGE  # never NaN


def annotations_of(strokes: Sequence[Stroke], size: tuple[int, int]) -> dict[str, NDArray[Any]]:
    """What strokes mean on a picture of `size` (H, W), by kind; each can be a `diffup.Support`'s annotation.

    Returns:
        ``"mask"``: bool [H, W], from outlines (filled), brush and eraser; ``"scribble"``: bool [H, W];
        ``"box"``: int [N, 4], rows x0, y0, x1, y1, cut off at the border. A kind that marks no pixel is left out.
    """
    found: dict[str, NDArray[Any]] = {
        "mask": _raster([stroke for stroke in strokes if stroke.tool in MASK_TOOLS], size),
        "scribble": _raster([stroke for stroke in strokes if stroke.tool == "scribble"], size),
        "box": np.array([box for stroke in strokes if stroke.tool == "box" for box in _box(stroke, size)], np.int64),
    }
    return {kind: drawn for kind, drawn in found.items() if drawn.any()}


def _raster(strokes: Sequence[Stroke], size: tuple[int, int]) -> NDArray[np.bool_]:
    layer = Image.new("1", (size[1], size[0]))
    draw = ImageDraw.Draw(layer)
    for stroke in strokes:
        value = stroke.tool != "eraser"
        centres = [(x - 0.5, y - 0.5) for x, y in stroke.points]  # Pillow counts from the middle of the first pixel
        if stroke.tool == "outline":
            if len(centres) > 2:
                draw.polygon(centres, fill=value)
            continue
        radius = max(stroke.size, 1) / 2 - 0.5
        draw.line(centres, fill=value, width=max(1, round(stroke.size)))
        for x, y in centres:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=value)
            draw.point((math.floor(x + 0.5), math.floor(y + 0.5)), fill=value)  # a small ellipse may hold no middle
    return np.asarray(layer)


def _box(stroke: Stroke, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    (ax, ay), (bx, by) = stroke.points
    x0, y0 = max(math.floor(min(ax, bx)), 0), max(math.floor(min(ay, by)), 0)
    x1, y1 = min(math.ceil(max(ax, bx)), size[1]), min(math.ceil(max(ay, by)), size[0])
    return [(x0, y0, x1, y1)] if x1 > x0 and y1 > y0 else []
