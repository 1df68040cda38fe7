"""Small data sets on disk in both layouts, for tests to open and to damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = ("dog", "bird", "cat", "cow")
FOLDS = [["dog", "bird"], ["cat", "cow"]]
SIZE = (40, 60)  # height, width


def labels(class_index: int, number: int) -> NDArray[np.uint8]:
    """Labels of an image: a rectangle of its class, a smaller one of the next class, a void rim."""
    label = np.zeros(SIZE, np.uint8)
    label[5 : 25 + number, 10:40] = 255
    label[6 : 24 + number, 11:39] = class_index + 1
    label[30:34, 50:55] = (class_index + 1) % len(CLASSES) + 1  # 20 of 2400 pixels: too few for the protocol
    return label


def write_image(path: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> None:
    """A noisy photograph of size (H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def write_json(folder: Path, **changes: Any) -> Path:
    """``dataset.json`` of `CLASSES` and `FOLDS` with changed fields; a field of None is left out."""
    document = {"name": "toy", "layout": "voc", "classes": list(CLASSES), "folds": FOLDS, **changes}
    path = folder / "dataset.json"
    path.write_text(json.dumps({field: value for field, value in document.items() if value is not None}))
    return path


def write_voc(folder: Path, per_class: int = 3, **changes: Any) -> Path:
    """A data set in VOC layout, images ``dog_0`` …; returns the path of its ``dataset.json``."""
    (folder / "SegmentationClass").mkdir(parents=True)
    for c, name in enumerate(CLASSES):
        for i in range(per_class):
            write_image(folder / "JPEGImages" / f"{name}_{i}.jpg", seed=c * per_class + i)
            mask = Image.fromarray(labels(c, i))
            if i % 2:  # every other mask has a palette
                mask.putpalette([value for entry in range(256) for value in (entry, 255 - entry, 7)])
            mask.save(folder / "SegmentationClass" / f"{name}_{i}.png")
    return write_json(folder, **changes)


def square(left: float, top: float, side: float) -> list[float]:
    """A COCO polygon."""
    return [left, top, left + side, top, left + side, top + side, left, top + side]


def write_coco(folder: Path, annotations: list[dict[str, Any]], images: int = 2, **changes: Any) -> Path:
    """A data set in COCO layout with `images` images ``0.jpg`` … of `SIZE` (ids 10 …).

    Category ids are 7 · index + 3. Each annotation names its ``category``, and may leave out ``id``, ``image_id``
    (10) and ``iscrowd`` (0).
    """
    for i in range(images):
        write_image(folder / "images" / f"{i}.jpg", seed=i)
    names = [*CLASSES, "lamp"]
    document = {
        "images": [{"id": 10 + i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in range(images)],
        "categories": [{"id": 7 * i + 3, "name": name} for i, name in enumerate(names)],
        "annotations": [
            {
                "id": i,
                "image_id": 10,
                "iscrowd": 0,
                "category_id": 7 * names.index(entry["category"]) + 3,
                **entry,
            }
            for i, entry in enumerate(annotations)
        ],
    }
    (folder / "instances.json").write_text(json.dumps(document))
    return write_json(folder, layout="coco", **changes)
