"""COCO layout: images and one instances JSON.

Rules: a class's mask is the union of its instances. A crowd region (``iscrowd``) is void (255) for its class; where an
instance of that class lies on it, the instance wins. Classes may overlap: each has a mask of its own. Categories that
``dataset.json`` doesn't name are background, categories of the same name are one class. Images are those that the JSON
lists, below the image folder; ids are their file names without the suffix. An image without annotations is background:
it belongs to the data set and serves for no class. One that is not there is looked for under its bare number
(``COCO_val2014_000000507081.jpg`` → ``000000507081.jpg``): COCO 2017's files with COCO 2014's annotations.
"""

from __future__ import annotations

import os
import re
import reprlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as masks

from diffup.data.instances import Instance, read_instances
from diffup.data.records import Record, index_all, read_image, relative
from diffup.data.spec import VOID, DatasetSpec
from diffup.errors import UserError

REMEDY = "Repair or remove the files or entries named above, then run again; nothing was written"
NUMBERED = re.compile(r"COCO_(train|val|test)\d{4}_(?P<number>\d{12}\.jpg)")


@dataclass(frozen=True)
class Part:
    """A JSON with the folder of its images, and the split that they are for."""

    annotations: Path
    images: Path
    split: str


def _parts(root: Path, spec: DatasetSpec) -> list[Part]:
    if not spec.split:
        return [Part(root / spec.annotations, root / spec.images, "")]
    return [
        Part(root / annotations, root / (images or spec.images), split)
        for annotations, images, split in (
            (spec.train_annotations, spec.train_images, "train"),
            (spec.test_annotations, spec.test_images, "test"),
        )
    ]


def source_files(root: Path, spec: DatasetSpec) -> list[Path]:
    """The files that the index is made of: the JSONs, and all in the image folders."""
    parts = _parts(root, spec)
    folders = dict.fromkeys(part.images for part in parts)
    files = [Path(base, name) for folder in folders for base, _, names in os.walk(folder) for name in names]
    return [part.annotations for part in parts] + sorted(files)


def scan(root: Path, spec: DatasetSpec) -> tuple[list[Record], list[str]]:
    """Read the JSONs and decode every image once.

    Returns:
        What is known of the good images, and every missing, truncated or unequal image and bad polygon.

    Raises:
        UserError: a malformed JSON, or one that lacks a class of ``dataset.json``.
    """
    records: list[Record] = []
    problems: list[str] = []
    for part in _parts(root, spec):
        found, bad = _scan_part(root, spec, part)
        records += found
        problems += bad
    twice = [name for name, n in Counter(record.image_id for record in records).items() if n > 1]
    where = ", ".join(str(part.annotations) for part in _parts(root, spec))
    problems += [f"{where}: two images are called {name!r} but for their suffix" for name in twice]
    return records, problems


def read_mask(root: Path, record: Record, class_index: int, spec: DatasetSpec) -> NDArray[np.uint8]:
    """The mask of one class, uint8 [H, W]: 0 background, 1 the class, 255 crowd; decoded from the record."""
    size = [record.height, record.width]
    foreground, crowd = record.rles.get(class_index, (b"", b""))
    mask = np.zeros(size, np.uint8)
    if crowd:
        mask[masks.decode({"size": size, "counts": crowd}) == 1] = VOID
    if foreground:
        mask[masks.decode({"size": size, "counts": foreground}) == 1] = 1
    return mask


def _locate(folder: Path, file_name: str) -> Path:
    """The image's path: as the JSON names it, or by its bare number, as COCO 2017 calls what COCO 2014 annotates."""
    path = folder / file_name
    number = NUMBERED.fullmatch(path.name)
    if number and not path.is_file():
        bare = path.with_name(number["number"])
        return bare if bare.is_file() else path
    return path


def _scan_part(root: Path, spec: DatasetSpec, part: Part) -> tuple[list[Record], list[str]]:
    read = read_instances(part.annotations, spec.classes)
    if read.problems:
        return [], list(read.problems)
    items = sorted(((entry, read.of(entry)) for entry in read.images), key=lambda item: str(item[0]["file_name"]))
    return index_all(items, partial(_index_one, root, part), f"indexing {spec.name}")


def _index_one(root: Path, part: Part, item: tuple[dict[str, Any], Sequence[Instance]]) -> Record | str:
    entry, instances = item
    path = _locate(part.images, str(entry["file_name"]))
    try:
        image, checksum = read_image(path)
    except UserError as error:
        return f"{path}: {error}"
    height, width = image.shape[:2]
    stated = (entry.get("height", height), entry.get("width", width))
    if stated != (height, width):
        where = part.annotations.name
        says = "x".join(map(reprlib.repr, reversed(stated)))
        return f"{path}: image is {width}x{height}, but {where} says {says} (width x height)"
    parts: dict[int, tuple[list[Any], list[Any]]] = defaultdict(lambda: ([], []))
    for instance in instances:
        runs = instance.runs(height, width)
        if isinstance(runs, str):
            return f"{path}: annotation {instance.annotation} has no valid segmentation ({runs})"
        parts[instance.class_index][instance.crowd].append({"size": [height, width], "counts": runs})
    rles: dict[int, tuple[bytes, bytes]] = {}
    areas: dict[int, int] = {}
    for class_index, (things, crowds) in sorted(parts.items()):
        union = masks.merge(things) if things else None
        rles[class_index] = (union["counts"] if union else b"", masks.merge(crowds)["counts"] if crowds else b"")
        if union and (area := int(masks.area(union))):
            areas[class_index] = area
    image_id = PurePosixPath(str(entry["file_name"])).with_suffix("").as_posix()
    return Record(image_id, relative(path, root), "", height, width, checksum, areas, rles, part.split)
