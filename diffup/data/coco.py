"""COCO layout: images and one instances JSON.

Rules: a class's mask is the union of its instances. A crowd region (``iscrowd``) is void (255) for its class; where an
instance of that class lies on it, the instance wins. Classes may overlap: each has a mask of its own. Categories that
``dataset.json`` doesn't name are background, categories of the same name are one class. Images are those that the JSON
lists, below the image folder; ids are their file names without the suffix. An image without annotations is background:
it belongs to the data set and serves for no class.
"""

from __future__ import annotations

import json
import reprlib
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as masks

from diffup.data.records import Record, fail, index_all, read_image, relative
from diffup.data.spec import VOID, DatasetSpec, is_plain

REMEDY = "Repair or remove the files or entries named above, then run again; nothing was written"


def source_files(root: Path, spec: DatasetSpec) -> list[Path]:
    """The files that the index is made of: the JSON, and all in the image folder."""
    folder = root / spec.images
    return [root / spec.annotations, *sorted(path for path in folder.rglob("*") if path.is_file())]


def build(root: Path, spec: DatasetSpec, json_path: Path) -> list[Record]:
    """Read the JSON and decode every image once.

    Raises:
        ValueError: malformed JSON, classes it doesn't know, missing, truncated or unequal images, bad polygons: all of
            them, the first 20 by name.
    """
    path = root / spec.annotations
    document = _load(path)
    categories = _categories(document, spec, path)
    try:
        images = {_whole(entry["id"]): dict(entry) for entry in document["images"]}
        names = Counter(_file_name(entry["file_name"]) for entry in document["images"])
        instances: dict[int, list[dict[str, Any]]] = defaultdict(list)
        strays = []
        for entry in document["annotations"]:
            image, category = _whole(entry["image_id"]), _whole(entry["category_id"])
            if image not in images:
                strays.append(f"annotation {reprlib.repr(entry.get('id'))} is of image {image}, which is not listed")
            elif category not in categories:
                strays.append(f"annotation {reprlib.repr(entry.get('id'))} is of category {category}: not listed")
            elif (class_index := categories[category]) is not None:
                instances[image].append({**entry, "class": class_index})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a COCO instances JSON: an entry lacks or misstates {error}; correct it and run again"
        ) from error
    problems = [f"{path}: names {name!r} {n} times" for name, n in names.items() if n > 1]
    if len(images) != len(document["images"]):
        problems.append(f"{path}: two images share an id")
    if not images:
        problems.append(f"{path}: lists no images")
    problems += [f"{path}: {stray}" for stray in strays]
    fail(json_path, problems, REMEDY)
    items = sorted(((entry, instances[i]) for i, entry in images.items()), key=lambda item: str(item[0]["file_name"]))
    records, problems = index_all(items, partial(_index_one, root, spec), f"indexing {spec.name}")
    twice = [name for name, n in Counter(record.image_id for record in records).items() if n > 1]
    problems += [f"{path}: two images are called {name!r} but for their suffix" for name in twice]
    fail(json_path, problems, REMEDY)
    return records


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


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():  # a device may never end
            raise OSError("it is no file")
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; put the instances JSON there or set 'annotations'") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read as JSON ({error}); correct it and run again") from error
    parts = ("images", "annotations", "categories")
    if not isinstance(document, dict) or not all(isinstance(document.get(part), list) for part in parts):
        raise ValueError(f"{path} is not a COCO instances JSON: it needs the lists {', '.join(parts)}; correct it")
    return document


def _categories(document: dict[str, Any], spec: DatasetSpec, path: Path) -> dict[int, int | None]:
    """Category id of the JSON → class index of the data set, None for those it doesn't name."""
    try:
        listed = [(_whole(entry["id"]), str(entry["name"])) for entry in document["categories"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a COCO instances JSON: a category lacks or misstates {error}; correct it"
        ) from error
    twice = [number for number, n in Counter(number for number, _ in dict.fromkeys(listed)).items() if n > 1]
    if twice:
        raise ValueError(f"{path}: categories of different names share the id {twice[0]}; correct it")
    ids = sorted({name for _, name in listed})
    missing = [name for name in spec.classes if name not in ids]
    if missing:
        raise ValueError(
            f"{path} has no category {', '.join(map(reprlib.repr, missing[:20]))}; 'classes' of dataset.json must use "
            f"the names of its categories ({', '.join(map(reprlib.repr, ids[:20]))}{' …' if len(ids) > 20 else ''})"
        )
    classes = {name: index for index, name in enumerate(spec.classes)}
    return {number: classes.get(name) for number, name in listed}


def _whole(value: Any) -> int:
    """An id: a whole number, or the text of one."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 20:
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if type(value) is not int or abs(value) >= 2**63:
        raise ValueError(f"an id: {reprlib.repr(value)} is not a whole number")
    return value


def _file_name(value: Any) -> str:
    """The path of an image in the image folder."""
    if not isinstance(value, str) or not is_plain(value) or not PurePosixPath(value).name:
        raise ValueError(f"a file name: {reprlib.repr(value)}")
    if PurePosixPath(value).is_absolute() or ".." in PurePosixPath(value).parts:
        raise ValueError(f"a file name: {reprlib.repr(value)} leads out of the image folder ('images' of dataset.json)")
    return value


def _index_one(root: Path, spec: DatasetSpec, item: tuple[dict[str, Any], list[dict[str, Any]]]) -> Record | str:
    entry, instances = item
    path = root / spec.images / str(entry["file_name"])
    try:
        image, checksum = read_image(path)
    except ValueError as error:
        return f"{path}: {error}"
    height, width = image.shape[:2]
    stated = (entry.get("height", height), entry.get("width", width))
    if stated != (height, width):
        return (
            f"{path}: image is {width}x{height}, but {spec.annotations} says "
            f"{reprlib.repr(stated[1])}x{reprlib.repr(stated[0])} (width x height)"
        )
    parts: dict[int, tuple[list[Any], list[Any]]] = defaultdict(lambda: ([], []))
    for instance in instances:
        try:
            runs = _runs(instance["segmentation"], height, width)
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            return f"{path}: annotation {reprlib.repr(instance.get('id'))} has no valid segmentation ({error})"
        if (crowd := instance.get("iscrowd", 0)) not in (0, 1, None):
            where = f"annotation {reprlib.repr(instance.get('id'))} of {spec.annotations}"
            return f"{path}: {where}: iscrowd is 0 or 1, not {reprlib.repr(crowd)}"
        parts[instance["class"]][bool(crowd)].append(runs)
    rles: dict[int, tuple[bytes, bytes]] = {}
    areas: dict[int, int] = {}
    for class_index, (things, crowds) in sorted(parts.items()):
        union = masks.merge(things) if things else None
        rles[class_index] = (union["counts"] if union else b"", masks.merge(crowds)["counts"] if crowds else b"")
        if union and (area := int(masks.area(union))):
            areas[class_index] = area
    image_id = PurePosixPath(str(entry["file_name"])).with_suffix("").as_posix()
    return Record(image_id, relative(path, root), "", height, width, checksum, areas, rles)


def _runs(segmentation: Any, height: int, width: int) -> Any:
    """Compressed run lengths of a polygon list, of uncompressed or of compressed runs."""
    if isinstance(segmentation, list):
        if not all(isinstance(polygon, list) and set(map(type, polygon)) <= {int, float} for polygon in segmentation):
            raise ValueError("a polygon is a list of numbers")
        polygons = [[float(value) for value in polygon] for polygon in segmentation]
        if not polygons or any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
            raise ValueError("a polygon needs x, y of at least three points")
        # Far or infinite coordinates would make pycocotools allocate without bound.
        limit = 2 * max(height, width)
        if not all(abs(value) <= limit for polygon in polygons for value in polygon):
            raise ValueError("a polygon lies far outside the image")
        return masks.merge(masks.frPyObjects(polygons, height, width))
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"its size is {reprlib.repr(segmentation['size'])}, the image's [{height}, {width}]")
    counts = segmentation["counts"]
    runs = counts if isinstance(counts, list) else _run_lengths(counts)
    # pycocotools trusts run lengths, and gives uninitialised memory where they are too few.
    if set(map(type, runs)) != {int} or sum(runs) != height * width or min(runs) < 0:
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
        if not 0 <= bits < 64 or shift > 35:  # 35: seven characters, enough for any image; more take quadratic time
            raise ValueError("its run lengths are damaged")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("its run lengths end within a number")
    return runs
