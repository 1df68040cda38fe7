"""Annotated images as annotation tools write them, for importers to read and for tests to damage."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 40, 60
LABELS = ("wren", "robin", "heron", "owl")
ORIENTATION = 0x0112


def write_photo(path: Path, size: tuple[int, int] = (HEIGHT, WIDTH), orientation: int = 1, seed: int = 0) -> None:
    """A noisy photograph of size (H, W) as it is stored, with an EXIF orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    exif = Image.Exif()
    if orientation != 1:
        exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


def rectangle(label: object, *corners: float) -> dict[str, Any]:
    """A rectangle of labelme: x0, y0, x1, y1."""
    x0, y0, x1, y1 = corners
    return {"label": label, "shape_type": "rectangle", "points": [[x0, y0], [x1, y1]]}


def labelme(image: str, *shapes: Mapping[str, Any], size: tuple[int, int] = (HEIGHT, WIDTH)) -> dict[str, Any]:
    """A document of labelme."""
    height, width = size
    return {
        "version": "5.4.1", "flags": {}, "shapes": list(shapes), "imagePath": image, "imageData": None,
        "imageHeight": height, "imageWidth": width,
    }  # fmt: skip


def write_labelme(folder: Path, per_class: int = 2) -> Path:
    """Images of each of `LABELS`, each with one large rectangle."""
    for c, label in enumerate(LABELS):
        for i in range(per_class):
            name = f"{label}_{i}"
            write_photo(folder / f"{name}.png", seed=10 * c + i)
            document = labelme(f"{name}.png", rectangle(label, 5, 5, 35, 25))
            (folder / f"{name}.json").write_text(json.dumps(document))
    return folder


def mask_shape(label: str, part: np.ndarray[Any, Any], left: int, top: int) -> dict[str, Any]:
    """A mask of labelme: a PNG of a part of the image."""
    png = io.BytesIO()
    Image.fromarray(part.astype(np.uint8) * 255).save(png, "PNG")
    rows, columns = part.shape
    points = [[left, top], [left + columns - 1, top + rows - 1]]
    mask = base64.b64encode(png.getvalue()).decode()
    return {"label": label, "shape_type": "mask", "points": points, "mask": mask}


def write_cvat(folder: Path, *images: tuple[str, list[tuple[str, dict[str, object]]]]) -> Path:
    """An annotations.xml with images and their shapes (tag and attributes), and the images in ``images/``."""
    root = ET.Element("annotations")
    for number, (name, shapes) in enumerate(images):
        write_photo(folder / "images" / name, seed=number)
        size = {"id": str(number), "name": name, "width": str(WIDTH), "height": str(HEIGHT)}
        entry = ET.SubElement(root, "image", size)
        for tag, attributes in shapes:
            ET.SubElement(entry, tag, {key: str(value) for key, value in attributes.items()})
    path = folder / "annotations.xml"
    ET.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
    return path


def write_masks(folder: Path, per_class: int = 2) -> Path:
    """``images/`` and a folder of 0/255 masks per class."""
    for c, label in enumerate(LABELS):
        for i in range(per_class):
            write_photo(folder / "images" / f"{label}_{i}.png", seed=10 * c + i)
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            mask[5:25, 5:35] = 255
            (folder / label).mkdir(exist_ok=True)
            Image.fromarray(mask).save(folder / label / f"{label}_{i}.png")
    return folder
