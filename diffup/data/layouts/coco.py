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
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as masks

from diffup.data.images import read_photo
from diffup.data.layouts.instances import Instance, inside, read_instances
from diffup.data.layouts.scan import (
    TURNED,
    Folder,
    Remarks,
    Scan,
    beside,
    index_all,
    listed,
    relative,
    same_ids,
    turned,
)
from diffup.data.records import Record
from diffup.data.spec import VOID, DatasetSpec
from diffup.errors import UserError

REMEDY = "Repair or remove the files or entries named above, then run again; nothing was written"
NOTHING = (
    "no pixel of the image is covered by {n} of the annotations: {names}. Check their coordinates, which are pixels"
)
BEYOND = (
    "{n} of the annotations reach beyond their images by a tenth or more: {names}. Check that coordinates are those of "
    "these images, and not of the same images at another size"
)
CROWDS = (
    "all annotations of these classes are crowd regions ('iscrowd' 1), which are void, so that no image shows them: "
    "{names}. Some programs mark each run-length mask so; if they are objects, set 'iscrowd' to 0"
)
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
    """The files that the index is made of: the JSONs, and all in the image folders, also behind symbolic links."""
    parts = _parts(root, spec)
    folders = dict.fromkeys(part.images for part in parts)
    return [part.annotations for part in parts] + sorted(file for folder in folders for file in _below(folder, set()))


def _below(folder: Path, above: set[Path]) -> Iterator[Path]:
    """Files below a folder; a link back to a folder above is not followed."""
    real = folder.resolve()
    if real in above:
        return
    try:
        entries = list(os.scandir(folder))
    except OSError:  # it is not there: said of the images that should be
        return
    for entry in entries:
        if entry.is_dir():
            yield from _below(Path(entry.path), {*above, real})
        else:
            yield Path(entry.path)


def scan(root: Path, spec: DatasetSpec) -> Scan:
    """Read the JSONs and decode every image once.

    Returns:
        What is known of the good images, every missing, truncated or unequal image and bad polygon, and what is
        remarkable about sound ones.

    Raises:
        UserError: a malformed JSON, or one that lacks a class of ``dataset.json``.
    """
    records: list[Record] = []
    problems: list[str] = []
    remarks = Remarks()
    for part in _parts(root, spec):
        found, bad = _scan_part(root, spec, part, remarks)
        records += found
        problems += bad
    where = ", ".join(str(part.annotations) for part in _parts(root, spec))
    notes = remarks.notes()
    crowds = {c for record in records for c, (_, crowd) in record.rles.items() if crowd}
    void = crowds - {c for record in records for c in record.areas}
    if names := [name for c, name in enumerate(spec.classes) if c in void]:
        notes.append(CROWDS.format(names=listed(names)))
    return Scan(records, problems + [f"{where}: {problem}" for problem in same_ids(records)], notes)


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


def _locate(folder: Path, file_name: str, there: Folder) -> Path:
    """The image's path: as the JSON names it, else by another case of its suffix or its bare number (COCO 2017's)."""
    path = folder / file_name
    if _is_file(path):
        return path
    name = PurePosixPath(file_name)
    same = there.named(str(name.with_suffix("")), (name.suffix.lower(),))
    if len(same) == 1:
        return same[0]
    number = NUMBERED.fullmatch(path.name)
    bare = path.with_name(number["number"]) if number else path
    return bare if _is_file(bare) else path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long
        return False


def _elsewhere(root: Path, folder: Path, file_name: str) -> str:
    """For an image that is missing: where one of that name is, as part of a message."""
    if _is_file(root / file_name):
        return f"; the names in the JSON begin at {root}: set 'images' of dataset.json to '.'"
    other = folder / unquote(file_name).strip()
    if _is_file(other):
        return f"; there is {other.name!r}: correct the name in the JSON, which has blanks or '%' in another way"
    return beside(folder / file_name)


def _side(stated: Any) -> Any:
    """A side of an image as an entry states it, None if it does not: null or 0."""
    if isinstance(stated, str) and stated.isdecimal() and len(stated) < 10:
        stated = int(stated)
    return None if stated == 0 else stated


def _slashed(folder: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """An entry whose file name has slashes where Windows' backslashes stood, unless there is a file of that name.

    Raises:
        UserError: the name then leads out of the image folder.
    """
    name = str(entry["file_name"])
    if "\\" not in name or _is_file(folder / name):
        return entry
    return {**entry, "file_name": inside(name.replace("\\", "/"))}


def _scan_part(root: Path, spec: DatasetSpec, part: Part, remarks: Remarks) -> tuple[list[Record], list[str]]:
    read = read_instances(part.annotations, spec.classes)
    if read.problems:
        return [], list(read.problems)
    try:
        entries = [(_slashed(part.images, entry), read.of(entry)) for entry in read.images]
    except UserError as error:
        raise UserError(f"{part.annotations}: {error}; correct it and run again") from error
    items = sorted(entries, key=lambda item: str(item[0]["file_name"]))
    work = partial(_index_one, root, part, Folder(part.images), remarks)
    return index_all(items, work, f"indexing {spec.name}")


def _index_one(
    root: Path, part: Part, there: Folder, remarks: Remarks, item: tuple[dict[str, Any], Sequence[Instance]]
) -> Record | str:
    entry, instances = item
    path = _locate(part.images, str(entry["file_name"]), there)
    try:
        photo = read_photo(path)
    except UserError as error:
        where = _elsewhere(root, part.images, str(entry["file_name"])) if "missing" in str(error) else ""
        return f"{path}: {error}{where}"
    height, width = photo.pixels.shape[:2]
    sides = (_side(entry.get("height")), _side(entry.get("width")))
    stated = tuple(real if side is None else side for side, real in zip(sides, (height, width), strict=True))
    if stated != (height, width):
        where = part.annotations.name
        says = "x".join(map(reprlib.repr, reversed(stated)))
        why = turned(photo.orientation, stated, (height, width))
        return f"{path}: image is {width}x{height}, but {where} says {says} (width x height){why}"
    parts: dict[int, tuple[list[Any], list[Any]]] = defaultdict(lambda: ([], []))
    for instance in instances:
        runs = instance.runs(height, width)
        if isinstance(runs, str):
            return f"{path}: annotation {instance.annotation} has no valid segmentation ({runs})"
        if instance.reaches_beyond(height, width):
            remarks.add(BEYOND, f"annotation {instance.annotation} of {entry['file_name']}")
        made = {"size": [height, width], "counts": runs}
        if not masks.area(made):
            remarks.add(NOTHING, f"annotation {instance.annotation} of {entry['file_name']}")
        parts[instance.class_index][instance.crowd].append(made)
    rles: dict[int, tuple[bytes, bytes]] = {}
    areas: dict[int, int] = {}
    for class_index, (things, crowds) in sorted(parts.items()):
        union = masks.merge(things) if things else None
        rles[class_index] = (union["counts"] if union else b"", masks.merge(crowds)["counts"] if crowds else b"")
        if union and (area := int(masks.area(union))):
            areas[class_index] = area
    if photo.orientation != 1:
        remarks.add(TURNED, f"{entry['file_name']} ({photo.orientation})")
    image_id = PurePosixPath(str(entry["file_name"])).with_suffix("").as_posix()
    return Record(image_id, relative(path, root), "", height, width, photo.checksum, areas, rles, part.split)
