"""An instances JSON of COCO, read as a stream: as one Python object COCO's would take gigabytes.

Polygons become compressed runs as soon as they are read, at the size that the JSON states for their image. The parser
keeps the path of every open bracket, so that nesting is bounded before it starts.
"""

from __future__ import annotations

import codecs
import re
import reprlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import ijson
import numpy as np
from numpy.typing import ArrayLike
from pycocotools import mask as masks

from diffup.data.spec import is_plain
from diffup.errors import UserError

IMAGE_FIELDS = ("id", "file_name", "height", "width")
CHUNK = 1 << 24
DEEPEST = 100  # brackets; COCO's have 5
DEPTHS = np.zeros(256, np.int8)
DEPTHS[[ord("["), ord("{")]], DEPTHS[[ord("]"), ord("}")]] = 1, -1
PARTS = ("images", "annotations", "categories")
DRIVE = re.compile(r"[A-Za-z]:[\\/]")  # of an absolute path on Windows
SLACK = 0.1  # by this share of its sides polygons may reach beyond an image
BEYOND = (
    "{n} of the annotations reach beyond their images by a tenth or more: {names}. Check that coordinates are those of "
    "these images, and not of the same images at another size"
)
FRACTIONS = (-0.5, 1.5)  # all of whose coordinates are in this range, and not whole, is given in shares of the image
IN_FRACTIONS = "its coordinates are fractions of the image; multiply x by the width and y by the height"
LARGEST = 1 << 15  # side of an image that runs are made for before it is opened


@dataclass(frozen=True, slots=True)
class Instance:
    """An annotation of a class that is asked for.

    Attributes:
        class_index: 0-based.
        crowd: whether it is a crowd region.
        annotation: its id as a text, for messages.
        segmentation: as in the JSON, if this states no size of the image; else None.
        found: result of `runs`, if the JSON states the size of the image.
    """

    class_index: int
    crowd: bool
    annotation: str
    segmentation: Any
    found: tuple[bytes | str, bool] | None

    def runs(self, height: int, width: int) -> tuple[bytes | str, bool]:
        """Compressed runs or what is wrong with them, and whether they reach beyond the image by a share of `SLACK`."""
        return self.found or _compressed(self.segmentation, height, width)


@dataclass(frozen=True)
class Instances:
    """What an instances JSON holds of some classes.

    Attributes:
        images: ``id, file_name`` and, where stated, ``height, width`` of each.
        by_image: instances by image id.
        problems: what is wrong with it as a whole.
    """

    images: Sequence[dict[str, Any]]
    by_image: dict[int, list[Instance]]
    problems: Sequence[str]

    def of(self, image: dict[str, Any]) -> Sequence[Instance]:
        """The instances of an entry of `images`."""
        return self.by_image.get(_whole(image["id"]), ())


def read_instances(path: Path, classes: Sequence[str], *, anywhere: bool = False) -> Instances:
    """Read the annotations of some classes.

    Args:
        path: of the JSON.
        classes: names of categories, by class index.
        anywhere: names of images may lead out of the image folder; the caller checks where they lead.

    Raises:
        UserError: not JSON, no instances JSON, or a class that it has no category for.
    """
    _check_depth(path)
    categories = _categories(list(_stream(path, "categories")), classes, path)
    try:
        images = [{name: entry[name] for name in IMAGE_FIELDS if name in entry} for entry in _stream(path, "images")]
        sizes = {_whole(entry["id"]): (entry.get("height"), entry.get("width")) for entry in images}
        names = Counter(_file_name(entry["file_name"], anywhere) for entry in images)
        by_image: dict[int, list[Instance]] = defaultdict(list)
        strays = []
        for entry in _stream(path, "annotations"):
            image_id, category, number = _whole(entry["image_id"]), _whole(entry["category_id"]), entry.get("id")
            if image_id not in sizes:
                strays.append(f"annotation {reprlib.repr(number)} is of image {image_id}, which is not listed")
            elif category not in categories:
                strays.append(f"annotation {reprlib.repr(number)} is of category {category}: not listed")
            elif (class_index := categories[category]) is not None:
                crowd = entry.get("iscrowd", 0)
                if crowd not in (0, 1, None):
                    strays.append(f"annotation {reprlib.repr(number)}: iscrowd is 0 or 1, not {reprlib.repr(crowd)}")
                by_image[image_id].append(_instance(entry, class_index, bool(crowd), *sizes[image_id]))
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path} is not a COCO instances JSON: an entry lacks or misstates {error}; correct it and run again"
        ) from error
    problems = [f"names {name!r} {n} times" for name, n in names.items() if n > 1] + strays
    if len(sizes) != len(images):
        problems.append("two images share an id")
    if not images:
        problems.append("lists no images")
    return Instances(images, by_image, [f"{path}: {problem}" for problem in problems])


def categories_of(path: Path) -> list[str]:
    """Names of the categories of an instances JSON, in the order of their ids, each once.

    Raises:
        UserError: not JSON, or no instances JSON.
    """
    _check_depth(path)
    entries = list(_stream(path, "categories"))
    _categories(entries, (), path)
    return list(dict.fromkeys(str(e["name"]) for e in sorted(entries, key=lambda entry: _whole(entry["id"]))))


def _instance(entry: dict[str, Any], class_index: int, crowd: bool, height: Any, width: Any) -> Instance:
    raw, number = entry.get("segmentation"), reprlib.repr(entry.get("id"))
    if all(type(side) is int and 0 < side <= LARGEST for side in (height, width)):
        return Instance(class_index, crowd, number, None, _compressed(raw, height, width))
    return Instance(class_index, crowd, number, raw, None)


def _compressed(segmentation: Any, height: int, width: int) -> tuple[bytes | str, bool]:
    try:
        counts = bytes(runs_of(segmentation, height, width)["counts"])
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        return str(error), False
    return counts, isinstance(segmentation, list) and reaches_beyond(segmentation, height, width)


def reaches_beyond(polygons: Sequence[Sequence[float]], height: int, width: int) -> bool:
    """Whether polygons (x, y, x, y, …) reach beyond an image by a share of `SLACK`."""
    return any(
        max(polygon[start::2]) > (1 + SLACK) * side or min(polygon[start::2]) < -SLACK * side
        for polygon in polygons
        for start, side in ((0, width), (1, height))
    )


def in_fractions(values: ArrayLike) -> bool:
    """Whether coordinates are shares of the image. Whole numbers may tell of one pixel at a corner; others can't."""
    given, (low, high) = np.asarray(values, np.float64), FRACTIONS
    return bool(((given >= low) & (given <= high)).all() and (given % 1 != 0).any())


def _stream(path: Path, part: str) -> Iterator[Any]:
    """The entries of one of the three lists."""
    found = False
    try:
        with _opened(path) as file:
            for entry in ijson.items(file, f"{part}.item", use_float=True):
                found = True
                yield entry
        if not found and (part, "start_array") not in _events(path):
            raise UserError(f"{path} is not a COCO instances JSON: it needs the lists {', '.join(PARTS)}; correct it")
    except (OSError, ijson.JSONError, UnicodeDecodeError) as error:
        # ijson's messages have the bytes of the place in further lines, and may be bytes themselves.
        said = re.split(r"\n|\\n", str(error).removeprefix("b'"))[0].rstrip(".")
        raise UserError(f"{path} can't be read as JSON ({said}); correct it and run again") from error


def _opened(path: Path) -> BinaryIO:
    """The file, past its byte order mark."""
    file = path.open("rb")
    begin = file.read(len(codecs.BOM_UTF8))
    if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        file.close()
        raise UserError(f"{path} is in UTF-16; save it as UTF-8, correct and run again")
    file.seek(len(codecs.BOM_UTF8) if begin == codecs.BOM_UTF8 else 0)
    return file


def _events(path: Path) -> Iterator[tuple[str, str]]:
    with _opened(path) as file:
        yield from ((place, event) for place, event, _ in ijson.parse(file))


def _check_depth(path: Path) -> None:
    """Refuse brackets nested without bound, which would take the stream's reader gigabytes."""
    depth = 0
    try:
        if path.exists() and not path.is_file():  # a device may never end
            raise OSError("it is not a file")
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                signs = DEPTHS[np.frombuffer(chunk, np.uint8)]
                if depth + int(signs.cumsum(dtype=np.int64).max()) > DEEPEST:
                    raise UserError(
                        f"{path} is not a COCO instances JSON: brackets are nested over {DEEPEST} deep; correct it"
                    )
                depth += int(signs.sum(dtype=np.int64))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; put the instances JSON there or set 'annotations'") from None
    except OSError as error:
        raise UserError(f"{path} can't be read ({error}); correct it and run again") from error


def _categories(entries: Sequence[Any], classes: Sequence[str], path: Path) -> dict[int, int | None]:
    """Category id of the JSON → class index of the data set, None for those it doesn't name."""
    try:
        listed = [(_whole(entry["id"]), str(entry["name"])) for entry in entries]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a COCO instances JSON: a category lacks or misstates {error}; correct it"
        ) from error
    twice = [number for number, n in Counter(number for number, _ in dict.fromkeys(listed)).items() if n > 1]
    if twice:
        raise UserError(f"{path}: categories of different names share the id {twice[0]}; correct it")
    names = sorted({name for _, name in listed})
    missing = [name for name in classes if name not in names]
    if missing:
        raise UserError(
            f"{path} has no category {', '.join(map(reprlib.repr, missing[:20]))}; 'classes' of dataset.json must use "
            f"the names of its categories ({', '.join(map(reprlib.repr, names[:20]))}{' …' if len(names) > 20 else ''})"
        )
    index = {name: position for position, name in enumerate(classes)}
    return {number: index.get(name) for number, name in listed}


def _whole(value: Any) -> int:
    """An id: a whole number, or the text of one."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 20:
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if type(value) is not int or abs(value) >= 2**63:
        raise ValueError(f"an id: {reprlib.repr(value)} is not a whole number")
    return value


def _file_name(value: Any, anywhere: bool) -> str:
    """The path of an image, in the image folder or `anywhere`."""
    if not isinstance(value, str) or not is_plain(value) or not PurePosixPath(value).name:
        raise ValueError(f"a file name: {reprlib.repr(value)}")
    return value if anywhere else inside(value)


def inside(name: str) -> str:
    """A path below the image folder, as it is.

    Raises:
        ValueError: it leads out of it.
    """
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or DRIVE.match(name):
        raise ValueError(f"a file name: {reprlib.repr(name)} leads out of the image folder ('images' of dataset.json)")
    return name


def runs_of(segmentation: Any, height: int, width: int, *, tiny: bool = False) -> Any:
    """Compressed runs of a polygon list, of uncompressed or of compressed runs.

    Args:
        segmentation: as in the JSON.
        height, width: of the image.
        tiny: polygons that look as if they were in fractions of the image are tiny ones.

    Raises:
        KeyError, IndexError, TypeError, ValueError, OverflowError: it is none of these, or does not fit the image.
    """
    if not segmentation:
        raise ValueError(
            "it is empty, and a polygon needs at least three points: a box alone is not a mask; draw or remove it"
        )
    if not isinstance(segmentation, list | dict):
        raise ValueError("it must be a list of polygons, or runs with 'size' and 'counts'")
    if isinstance(segmentation, list):
        if not all(isinstance(polygon, list) and set(map(type, polygon)) <= {int, float} for polygon in segmentation):
            raise ValueError("it must be a list of polygons, and a polygon a list of numbers: [[x, y, x, y, x, y], …]")
        polygons = [np.asarray(polygon, np.float64) for polygon in segmentation]
        if not polygons or any(p.ndim != 1 or len(p) < 6 or len(p) % 2 for p in polygons):
            raise ValueError("a polygon needs x, y of at least three points")
        # Far or infinite coordinates would make pycocotools allocate without bound.
        limit = 2 * max(height, width)
        if not all((np.abs(polygon) <= limit).all() for polygon in polygons):
            raise ValueError("a polygon lies far outside the image")
        if not tiny and in_fractions(np.concatenate(polygons)):
            raise ValueError(IN_FRACTIONS)
        return masks.merge(masks.frPyObjects([polygon.tolist() for polygon in polygons], height, width))
    if lacking := [name for name in ("size", "counts") if name not in segmentation]:
        raise ValueError(f"its runs have no {' and no '.join(map(repr, lacking))}")
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
