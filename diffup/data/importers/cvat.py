"""CVAT: the XML of "CVAT for images 1.1", with polygons, boxes, ellipses and run-length masks.

Polylines, points, skeletons, cuboids and tags are left out. Of two objects that overlap the one with the larger
``z_order`` lies on top, as in CVAT.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import numpy as np

from diffup.data.importers.pictures import (
    Draw,
    Found,
    Picture,
    Polygon,
    Thing,
    box,
    ellipse,
    image_file,
    label_of,
    numbers,
    patch,
)
from diffup.errors import UserError

NO_AREA = ("polyline", "points", "skeleton", "cuboid", "tag")
NAMES = ("annotations.xml", "annotation.xml")
LARGEST_MASK = 1 << 28  # pixels


def read(source: Path, images: Path | None = None) -> Found:
    """The annotations of a task.

    Args:
        source: the XML, or the folder of ``annotations.xml``.
        images: folder of the images; by default the XML's folder, or ``images/`` in it.

    Raises:
        UserError: there is no such XML, or it is of another format.
    """
    path = source if source.is_file() else next((source / n for n in NAMES if (source / n).is_file()), source)
    if not path.is_file():
        raise UserError(f"{source} holds no annotations.xml; export the task as 'CVAT for images 1.1' and unpack it")
    root = _parsed(path)
    if root.find("track") is not None:
        raise UserError(f"{path} holds tracks of a video; export the task as 'CVAT for images 1.1'")
    entries = root.findall("image")
    if root.tag != "annotations" or not entries:
        raise UserError(f"{path} lists no images; export the task as 'CVAT for images 1.1'")
    folders = [images] if images else [path.parent / "images", path.parent]
    within, found, seen = images or path.parent, Found(), Counter[str]()
    for entry in entries:
        name = entry.get("name", "")
        try:
            seen[name] += 1
            if seen[name] > 1:
                raise UserError("is listed twice")
            image = image_file(name, folders, within)
            height, width = (int(numbers([entry.get(side)], 1)[0]) for side in ("height", "width"))
            things = [t for n, e in enumerate(entry) if (t := _thing(n, e, found.left_out)) is not None]
            found.add(Picture(image, name.replace("\\", "/"), path, things, (height, width)), f"{name!r:.200}")
        except UserError as error:
            found.problems.append(f"{path}: image {name!r:.200} {error}")
    return found


def _parsed(path: Path) -> ET.Element:
    try:
        content = path.read_bytes()
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
            raise UserError(f"{path} defines entities, which CVAT's XML never does; export it again")
        return ET.fromstring(content)
    except (OSError, ET.ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} can't be read as XML ({error!s:.200}); export it again") from None


def _thing(number: int, element: ET.Element, left_out: Counter[str]) -> Thing | None:
    if element.tag in NO_AREA:
        left_out["lines, points, skeletons, cuboids and tags, which mark no area"] += 1
        return None
    where = f"{element.tag} {number}"
    try:
        level = numbers([element.get("z_order", "0")], 1)[0]
        return Thing(label_of(element.get("label")), where, _drawn(element), int(level))
    except UserError as error:
        raise UserError(f"has an object, {where}, that {error}") from None


def _values(element: ET.Element, *names: str) -> list[float]:
    lacking = [name for name in names if element.get(name) is None]
    if lacking:
        raise UserError(f"lacks {', '.join(lacking)}")
    return numbers([element.get(name) for name in names])


def _drawn(element: ET.Element) -> Draw:
    kind, rotation = element.tag, numbers([element.get("rotation", "0")], 1)[0]
    if kind == "polygon":
        points = [numbers(point.split(","), 2) for point in element.get("points", "").split(";")]
        return Polygon([(x, y) for x, y in points])
    if kind == "box":
        x0, y0, x1, y1 = _values(element, "xtl", "ytl", "xbr", "ybr")
        return box(x0, y0, x1, y1, rotation)
    if kind == "ellipse":
        x, y, rx, ry = _values(element, "cx", "cy", "rx", "ry")
        return ellipse(x, y, rx, ry, rotation)
    if kind == "mask":
        left, top, width, height = (int(value) for value in _values(element, "left", "top", "width", "height"))
        return _mask(element.get("rle", ""), left, top, width, height)
    raise UserError("is of an unknown kind")


def _mask(rle: str, left: int, top: int, width: int, height: int) -> Draw:
    """Run lengths by rows, of background first."""
    runs = [int(run) for run in numbers(rle.split(","))]
    if not (0 < width * height <= LARGEST_MASK and width > 0) or min(runs) < 0 or sum(runs) != width * height:
        raise UserError(f"has run lengths that do not add up to its {width}x{height} pixels")
    values = np.arange(len(runs)) % 2 == 1
    return patch(np.repeat(values, runs).reshape(height, width), left, top)
