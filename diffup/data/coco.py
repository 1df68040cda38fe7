"""COCO layout: images and one instances JSON.

Rules: a class's mask is the union of its instances. A crowd region (``iscrowd``) is void (255) for its class; where an
instance of that class lies on it, the instance wins. Classes may overlap: each has a mask of its own. Categories that
``dataset.json`` doesn't name are background. Images are those that the JSON lists; ids are their file names without the
suffix. An image that is not there is looked for under its bare number (``COCO_val2014_000000507081.jpg`` →
``000000507081.jpg``): COCO 2017's files with COCO 2014's annotations.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import ijson
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as masks

from diffup.data.records import Record, index_all, read_image, relative
from diffup.data.spec import VOID, DatasetSpec

REMEDY = "Repair or remove the files or entries named above, then run again; nothing was written"
CHUNK = 1 << 24
DEEPEST = 100  # brackets; COCO's have 5
DEPTHS = np.zeros(256, np.int8)
DEPTHS[[ord("["), ord("{")]], DEPTHS[[ord("]"), ord("}")]] = 1, -1
Document = dict[str, list[dict[str, Any]]]
ANNOTATION_FIELDS = ("id", "image_id", "category_id", "iscrowd", "segmentation")
IMAGE_FIELDS = ("id", "file_name", "height", "width")
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
        ValueError: a malformed JSON, or one that lacks a class of ``dataset.json``.
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


def _scan_part(root: Path, spec: DatasetSpec, part: Part) -> tuple[list[Record], list[str]]:
    path = part.annotations
    document = _load(path)
    categories = _categories(document, spec, path)
    try:
        images = {int(entry["id"]): entry for entry in document["images"]}
        names = Counter(str(entry["file_name"]) for entry in document["images"])
        instances: dict[int, list[dict[str, Any]]] = defaultdict(list)
        strays = []
        for entry in document["annotations"]:
            if int(entry["image_id"]) not in images:
                strays.append(f"annotation {entry['id']} is of image {entry['image_id']}, which is not listed")
            elif entry["category_id"] in categories:
                entry["class"] = categories[entry["category_id"]]
                instances[int(entry["image_id"])].append(entry)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{path} is not a COCO instances JSON: an entry lacks or misstates {error}; correct it and run again"
        ) from error
    problems = [f"{path}: names {name!r} {n} times" for name, n in names.items() if n > 1]
    if len(images) != len(document["images"]):
        problems.append(f"{path}: two images share an id")
    if not images:
        problems.append(f"{path}: lists no images")
    problems += [f"{path}: {stray}" for stray in strays]
    if problems:
        return [], problems
    document.clear()
    items = sorted(((entry, instances[i]) for i, entry in images.items()), key=lambda item: str(item[0]["file_name"]))
    return index_all(items, partial(_index_one, root, part), f"indexing {spec.name}")


def decode_mask(record: Record, class_index: int) -> NDArray[np.uint8]:
    """The mask of one class, uint8 [H, W]: 0 background, 1 the class, 255 crowd."""
    size = [record.height, record.width]
    foreground, crowd = record.rles.get(class_index, (b"", b""))
    mask = np.zeros(size, np.uint8)
    if crowd:
        mask[masks.decode({"size": size, "counts": crowd}) == 1] = VOID
    if foreground:
        mask[masks.decode({"size": size, "counts": foreground}) == 1] = 1
    return mask


def _load(path: Path) -> Document:
    """The three lists of an instances JSON, read as a stream: as one object COCO's would take gigabytes."""
    made: Document = {}
    try:
        _check_depth(path)
        for part, slim in (("categories", dict), ("images", _slim_image), ("annotations", _slim_annotation)):
            with path.open("rb") as file:
                made[part] = [slim(entry) for entry in ijson.items(file, f"{part}.item", use_float=True)]
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; put the instances JSON there or set 'annotations'") from None
    except (OSError, ijson.JSONError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} can't be read as JSON ({error}); correct it and run again") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a COCO instances JSON ({error}); correct it and run again") from error
    empty = [part for part, entries in made.items() if not entries and not _has_list(path, part)]
    if empty:
        raise ValueError(
            f"{path} is not a COCO instances JSON: it needs the lists images, annotations, categories; there is no "
            f"{', '.join(empty)}"
        )
    return made


def _check_depth(path: Path) -> None:
    """Refuse brackets nested without bound: the stream's reader keeps the whole path of each, gigabytes at 100 000."""
    depth = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            signs = DEPTHS[np.frombuffer(chunk, np.uint8)]
            if depth + int(signs.cumsum(dtype=np.int64).max()) > DEEPEST:
                raise ValueError(f"brackets are nested more than {DEEPEST} deep")
            depth += int(signs.sum(dtype=np.int64))


def _has_list(path: Path, part: str) -> bool:
    with path.open("rb") as file:
        return any((place, event) == (part, "start_array") for place, event, _ in ijson.parse(file))


def _slim_image(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in IMAGE_FIELDS if name in dict(entry)}


def _slim_annotation(entry: dict[str, Any]) -> dict[str, Any]:
    """What is read of an annotation, polygons as arrays."""
    kept = {name: entry[name] for name in ANNOTATION_FIELDS if name in dict(entry)}
    if isinstance(kept.get("segmentation"), list):
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # refused later, by its image's name
            kept["segmentation"] = [np.array(polygon, np.float64) for polygon in kept["segmentation"]]
    return kept


def _categories(document: Document, spec: DatasetSpec, path: Path) -> dict[int, int]:
    """Category id of the JSON → class index of the data set."""
    try:
        ids = {str(entry["name"]): int(entry["id"]) for entry in document["categories"]}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a COCO instances JSON: a category lacks or misstates {error}") from error
    missing = [name for name in spec.classes if name not in ids]
    if missing:
        raise ValueError(
            f"{path} has no category {', '.join(map(repr, missing))}; 'classes' of dataset.json must use the names of "
            f"its categories ({', '.join(sorted(ids)[:20])}{' …' if len(ids) > 20 else ''})"
        )
    return {ids[name]: index for index, name in enumerate(spec.classes)}


def _locate(folder: Path, file_name: str) -> Path:
    """The image's path: as the JSON names it, or by its bare number, as COCO 2017 calls what COCO 2014 annotates."""
    path = folder / file_name
    number = NUMBERED.fullmatch(path.name)
    if number and not path.is_file():
        bare = path.with_name(number["number"])
        return bare if bare.is_file() else path
    return path


def _index_one(root: Path, part: Part, item: tuple[dict[str, Any], list[dict[str, Any]]]) -> Record | str:
    entry, instances = item
    path = _locate(part.images, str(entry["file_name"]))
    try:
        image, checksum = read_image(path)
    except ValueError as error:
        return f"{path}: {error}"
    height, width = image.shape[:2]
    stated = (entry.get("height", height), entry.get("width", width))
    if stated != (height, width):
        where = part.annotations.name
        return f"{path}: image is {width}x{height}, but {where} says {stated[1]}x{stated[0]} (width x height)"
    parts: dict[int, tuple[list[Any], list[Any]]] = defaultdict(lambda: ([], []))
    for instance in instances:
        try:
            runs = _runs(instance["segmentation"], height, width)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            return f"{path}: annotation {instance.get('id')} has no valid segmentation ({error})"
        parts[instance["class"]][bool(instance.get("iscrowd", 0))].append(runs)
    rles: dict[int, tuple[bytes, bytes]] = {}
    areas: dict[int, int] = {}
    for class_index, (things, crowds) in sorted(parts.items()):
        union = masks.merge(things) if things else None
        rles[class_index] = (union["counts"] if union else b"", masks.merge(crowds)["counts"] if crowds else b"")
        if union and (area := int(masks.area(union))):
            areas[class_index] = area
    image_id = PurePosixPath(str(entry["file_name"])).with_suffix("").as_posix()
    return Record(image_id, relative(path, root), "", height, width, checksum, areas, rles, part.split)


def _runs(segmentation: Any, height: int, width: int) -> Any:
    """Compressed run lengths of a polygon list, of uncompressed or of compressed runs."""
    if isinstance(segmentation, list):
        polygons = [np.asarray(polygon, np.float64) for polygon in segmentation]
        if not polygons or any(p.ndim != 1 or len(p) < 6 or len(p) % 2 for p in polygons):
            raise ValueError("a polygon needs x, y of at least three points")
        # Far or infinite coordinates would make pycocotools allocate without bound.
        limit = 2 * max(height, width)
        if not all((np.abs(polygon) <= limit).all() for polygon in polygons):
            raise ValueError("a polygon lies far outside the image")
        return masks.merge(masks.frPyObjects([polygon.tolist() for polygon in polygons], height, width))
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"its size is {segmentation['size']}, the image's [{height}, {width}]")
    counts = segmentation["counts"]
    runs = counts if isinstance(counts, list) else _run_lengths(counts)
    # pycocotools trusts run lengths, and gives uninitialised memory where they are too few.
    if sum(runs) != height * width or min(runs) < 0:
        raise ValueError("its run lengths do not add up to the image's pixels")
    return masks.frPyObjects({"size": [height, width], "counts": runs}, height, width)


def _run_lengths(compressed: str) -> list[int]:
    """Decode COCO's compressed run lengths: five bits a character, from the third run on as differences to two before.

    Source: rleFrString in cocoapi's maskApi.c.
    """
    runs: list[int] = []
    value = shift = 0
    for character in compressed:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return runs
