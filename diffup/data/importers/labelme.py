"""labelme: a JSON per image, with polygons, rectangles, circles and masks.

Lines and points have no area and are left out. Images are shown upright by labelme, and are saved so. An image that is
not there is taken from the JSON (``imageData``), where that holds it.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffup.data.images import DAMAGE, IMAGE_SUFFIXES
from diffup.data.importers.pictures import (
    Draw,
    Found,
    Picture,
    Points,
    Polygon,
    Thing,
    box,
    ellipse,
    image_file,
    label_of,
    numbers,
    patch,
    size_of,
)
from diffup.data.text import decode
from diffup.errors import UserError

NO_AREA = ("point", "points", "line", "linestrip")
OUTLINES = ("polygon", "oriented_rectangle", "quadrilateral", "rotation")
LARGEST_MASK = 1 << 28  # pixels


def read(source: Path, images: Path | None = None) -> Found:
    """All annotations below a folder; `images` is a folder of images that are not where the JSON files say.

    Raises:
        UserError: there is no JSON of labelme.
    """
    found = Found()
    for path in sorted(source.rglob("*.json")):
        try:
            document = json.loads(decode(path.read_bytes()))
        except (OSError, ValueError, RecursionError) as error:
            found.problems.append(f"{path}: can't be read as JSON ({error!s:.200})")
            continue
        if not isinstance(document, dict) or not {"shapes", "imagePath"} <= document.keys():
            found.left_out["JSON files that are not labelme's"] += 1
            continue
        try:
            found.add(_picture(document, path, source, images, found), str(path))
        except UserError as error:
            found.problems.append(f"{path}: {error}")
    if not found.pictures and not found.problems:
        raise UserError(f"{source}: there is no JSON of labelme in it (with 'shapes' and 'imagePath'); give its folder")
    return found


def _picture(document: dict[str, Any], path: Path, source: Path, images: Path | None, found: Found) -> Picture:
    named, shapes = document["imagePath"], document["shapes"]
    if not isinstance(named, str) or not isinstance(shapes, list):
        raise UserError("'imagePath' must be a text and 'shapes' a list")
    folders = [path.parent, *([images] if images else [])]
    within = source if images is None else Path(os.path.commonpath([source.resolve(), images.resolve()]))
    image, content = image_file(named, folders, within), None
    if not image.is_file():  # saved under another name since: beside the JSON, or in it
        beside = [other for s in IMAGE_SUFFIXES for other in (path.with_suffix(s), path.with_suffix(s.upper()))]
        image = next((other for other in beside if other.is_file()), image)
        found.noted["images that 'imagePath' does not lead to, taken by the name of their JSON"] += image.is_file()
        content = None if image.is_file() else _embedded(document.get("imageData"))
    things = []
    for number, shape in enumerate(shapes):
        where = f"shape {number}"
        try:
            drawn = _shape(shape, found.left_out)
            if drawn is not None:
                things.append(Thing(label_of(shape.get("label")), where, drawn))
        except UserError as error:
            raise UserError(f"{where} {error}") from None
    try:
        name = image.resolve().relative_to(source.resolve()).as_posix()
    except ValueError:
        name = image.name
    size = size_of(document.get("imageHeight"), document.get("imageWidth"))
    return Picture(image, name, path, things, size, content=content)


def _embedded(data: object) -> bytes | None:
    if not isinstance(data, str) or not data:
        return None
    try:
        return base64.b64decode(data)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"'imageData' can't be decoded ({error}), and the image is not there either") from None


def _shape(shape: Any, left_out: Counter[str]) -> Draw | None:
    """How a shape is drawn; None for one without an area."""
    if not isinstance(shape, dict):
        raise UserError(f"must be an object, not {shape!r:.60}")
    kind = shape.get("shape_type") or "polygon"
    if kind in NO_AREA:
        left_out["lines and points, which have no area"] += 1
        return None
    given = shape.get("points")
    if not isinstance(given, list):
        raise UserError("has no list of 'points'")
    points: Points = [(x, y) for x, y in (numbers(point, 2) for point in given)]
    if kind == "mask":
        return _mask(shape.get("mask"), points)
    if kind in OUTLINES or (kind == "rectangle" and len(points) == 4):  # X-AnyLabeling has rectangles by four corners
        if len(points) < 3:
            left_out["polygons with fewer than three points"] += 1
            return None
        return Polygon(points)
    if kind not in ("rectangle", "circle"):
        raise UserError(f"is of the unknown type {kind!r:.60}")
    if len(points) != 2:
        raise UserError(f"is a {kind} of {len(points)} points; it needs two")
    (x0, y0), (x1, y1) = points
    if kind == "rectangle":
        return box(x0, y0, x1, y1)
    radius = math.hypot(x1 - x0, y1 - y0)  # the second point is on the rim
    return ellipse(x0, y0, radius, radius)


def _mask(data: object, points: Points) -> Draw:
    """A mask of the part of the image between two points, whose pixels are those that are not 0."""
    try:
        if not isinstance(data, str) or not points:
            raise ValueError("it needs 'mask' and two points")
        image = Image.open(io.BytesIO(base64.b64decode(data)), formats=["PNG"])
        if image.width * image.height > LARGEST_MASK:
            raise ValueError(f"{image.width}x{image.height} pixels")
        drawn = np.asarray(image.convert("L")) > 0
    except (binascii.Error, *DAMAGE) as error:
        raise UserError(f"has a mask that can't be decoded ({error!s:.200})") from None
    (x, y) = points[0]
    if max(abs(x), abs(y)) > LARGEST_MASK:
        raise UserError("lies far outside the image")
    return patch(drawn, round(x), round(y))
