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
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as masks

from diffup.data.images import read_photo
from diffup.data.layouts.instances import BEYOND, Instance, inside, read_instances
from diffup.data.layouts.scan import (
    TURNED,
    Folder,
    Remarks,
    Scan,
    beside,
    index_all,
    listed,
    notes_of,
    read_named,
    relative,
    remark,
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
CROWDS = (
    "all annotations of these classes are crowd regions ('iscrowd' 1), which are void, so that no image shows them: "
    "{names}. Some programs mark each run-length mask so; if they are objects, set 'iscrowd' to 0"
)
NUMBERED = re.compile(r"COCO_(train|val|test)\d{4}_(?P<number>\d{12}\.jpg)")


class Part(NamedTuple):
    """A JSON with the folder of its images, and the split that they are for."""

    annotations: Path
    images: Path
    split: str


def _parts(root: Path, spec: DatasetSpec) -> list[Part]:
    if not spec.split:
        return [Part(root / spec.annotations, root / spec.images, "")]
    return [
        Part(root / spec.train_annotations, root / (spec.train_images or spec.images), "train"),
        Part(root / spec.test_annotations, root / (spec.test_images or spec.images), "test"),
    ]


def source_files(root: Path, spec: DatasetSpec) -> list[Path]:
    """The files that the index is made of: the JSONs, and all in the image folders, also behind symbolic links."""
    parts = _parts(root, spec)
    folders = {part.images for part in parts}
    return [part.annotations for part in parts] + sorted(file for folder in folders for file in _below(folder, set()))


def _below(folder: Path, above: set[Path]) -> Iterator[Path]:
    """Files below a folder; a link back to a folder above is not followed."""
    real = folder.resolve()
    if real in above:
        return
    try:
        entries = list(os.scandir(folder))
    except OSError:  # it is not there: reported for the images that should be
        return
    for entry in entries:
        if entry.is_dir():
            yield from _below(Path(entry.path), {*above, real})
        else:
            yield Path(entry.path)


def scan(root: Path, spec: DatasetSpec) -> Scan:
    """Read the JSONs and decode every image once.

    Raises:
        UserError: a malformed JSON, or one that lacks a class of ``dataset.json``.
    """
    records: list[Record] = []
    problems: list[str] = []
    remarks, parts = Remarks(), _parts(root, spec)
    for part in parts:
        found, bad = _scan_part(root, spec, part, remarks)
        records += found
        problems += bad
    where = ", ".join(str(part.annotations) for part in parts)
    notes = notes_of(remarks)
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
    for counts, value in ((crowd, VOID), (foreground, 1)):
        if counts:
            mask[masks.decode({"size": size, "counts": counts}) == 1] = value
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


def _side(stated: Any, real: int) -> Any:
    """A side of an image as an entry states it, the real one if it does not: null or 0."""
    if isinstance(stated, str) and stated.isdecimal() and len(stated) < 10:
        stated = int(stated)
    return real if stated is None or stated == 0 else stated


def _slashed(folder: Path, name: str) -> str:
    """A file name with slashes where Windows' backslashes stood, unless there is a file of that name.

    Raises:
        ValueError: the name then leads out of the image folder.
    """
    return name if "\\" not in name or _is_file(folder / name) else inside(name.replace("\\", "/"))


def _scan_part(root: Path, spec: DatasetSpec, part: Part, remarks: Remarks) -> tuple[list[Record], list[str]]:
    read = read_instances(part.annotations, spec.classes)
    if read.problems:
        return [], list(read.problems)
    try:
        entries = [{**entry, "file_name": _slashed(part.images, entry["file_name"])} for entry in read.images]
    except ValueError as error:
        raise UserError(f"{part.annotations}: {error}; correct it and run again") from error
    folder = Folder(part.images)
    items = sorted(entries, key=lambda entry: str(entry["file_name"]))
    return index_all(items, lambda entry: _index_one(root, part, folder, remarks, entry, read.of(entry)), spec.name)


def _index_one(
    root: Path, part: Part, folder: Folder, remarks: Remarks, entry: dict[str, Any], instances: Sequence[Instance]
) -> Record:
    name = entry["file_name"]
    path = _locate(part.images, name, folder)
    photo = read_named(path, read_photo, lambda _: _elsewhere(root, part.images, name))
    height, width = photo.pixels.shape[:2]
    stated = _side(entry.get("height"), height), _side(entry.get("width"), width)
    if stated != (height, width):
        says = "x".join(map(reprlib.repr, reversed(stated)))
        raise UserError(
            f"{path}: image is {width}x{height}, but {part.annotations.name} says {says} (width x height)"
            f"{turned(photo, stated)}"
        )
    runs: dict[int, tuple[list[Any], list[Any]]] = defaultdict(lambda: ([], []))
    for instance in instances:
        counts, beyond = instance.runs(height, width)
        if isinstance(counts, str):
            raise UserError(f"{path}: annotation {instance.annotation} has no valid segmentation ({counts})")
        made = {"size": [height, width], "counts": counts}
        if beyond:
            remark(remarks, BEYOND, f"annotation {instance.annotation} of {name}")
        if not masks.area(made):
            remark(remarks, NOTHING, f"annotation {instance.annotation} of {name}")
        runs[instance.class_index][instance.crowd].append(made)
    rles: dict[int, tuple[bytes, bytes]] = {}
    areas: dict[int, int] = {}
    for class_index, (things, crowds) in sorted(runs.items()):
        union = masks.merge(things) if things else {"counts": b""}
        rles[class_index] = union["counts"], masks.merge(crowds)["counts"] if crowds else b""
        if things and (area := int(masks.area(union))):
            areas[class_index] = area
    if photo.orientation != 1:
        remark(remarks, TURNED, f"{name} ({photo.orientation})")
    image_id = PurePosixPath(name).with_suffix("").as_posix()
    return Record(image_id, relative(path, root), "", height, width, photo.checksum, areas, rles, part.split)
