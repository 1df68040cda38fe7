"""What a ``dataset.json`` says, checked: name, layout, classes, folds and where the files are."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import reprlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffup.data.text import decode
from diffup.errors import UserError

VOID = 255
ALL_CLASSES = 1 << 16  # in place of a fold: none is left out, all classes are base classes
DEFAULT_IMAGES = {"voc": "JPEGImages", "coco": "images", "fss": "."}
# Where a data set keeps training and test images apart: both of a pair or none, and in which layout.
SPLIT_FIELDS = {"train_list": "voc", "test_list": "voc", "train_annotations": "coco", "test_annotations": "coco"}
IMAGE_FIELDS = ("train_images", "test_images")
LONGEST = 200  # bytes of a name or of a part of a path: files are called so, and file systems end at 255
SHOWN = 10  # problems that a message names
# Names that label lists of other tools begin with.
NO_CLASS = ("background", "bg", "ignore", "unlabeled", "unlabelled", "void")
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, halves of surrogate pairs


@dataclass(frozen=True, kw_only=True)
class SizeRule:
    """Which images may serve for a class; the defaults are PFENet's rule, as protocol ``paired`` has it.

    Attributes:
        name: how cells and tables name it.
        min_pixels: in the data sets named in `pixel_datasets`, an image counts for a class that covers at least this
            many pixels at original size.
        pixel_datasets: data sets that `min_pixels` is meant for.
        min_fraction: in any other data set, an image counts for a class that covers at least this share of it, unless
            its ``dataset.json`` gives a ``min_area_fraction`` of its own.
    """

    name: str = "paired"
    min_pixels: int = 2 * 32 * 32
    pixel_datasets: tuple[str, ...] = ("pascal5i", "coco20i")
    min_fraction: float = 0.01

    def needed_pixels(self, dataset: str, size: tuple[int, int], min_fraction: float | None = None) -> float:
        """Pixels that a class must cover for an image to count, at least 1.

        Args:
            dataset: name of the data set.
            size: (H, W) of the image.
            min_fraction: the data set's own share, in place of the rule's.
        """
        if dataset in self.pixel_datasets:
            return self.min_pixels
        fraction = self.min_fraction if min_fraction is None else min_fraction
        return max(1.0, fraction * size[0] * size[1])


PAIRED = SizeRule()


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """The content of a ``dataset.json``; paths are relative to its folder.

    Attributes:
        name: used in tables and cells; no slash.
        layout: ``"voc"``, ``"coco"`` or ``"fss"`` (a folder a class, each image with a mask of its own).
        classes: class names; class index = position.
        folds: class indices of each fold. A class in no fold is a base class of every fold.
        ignore_index: VOC only: the label that means void (default 255).
        min_area_fraction: share of an image that a class must cover for the image to count; None = the protocol's.
        images: folder of the images (``JPEGImages`` or ``images``).
        masks: VOC only: folder of the label images (``SegmentationClass``).
        annotations: COCO only: the instances JSON (``instances.json``).
        lists: VOC only: folder whose ``*.txt`` name the images to use (``ImageSets/Segmentation``).
        train_list, test_list: VOC only, both or none: files that name the images to train on and those to test on, in
            place of `lists`.
        train_annotations, test_annotations: COCO only, both or none: instances JSONs in place of `annotations`.
        train_images, test_images: COCO only: folders of their images, `images` by default.
    """

    name: str
    layout: str
    classes: tuple[str, ...]
    folds: tuple[tuple[int, ...], ...]
    ignore_index: int = VOID
    min_area_fraction: float | None = None
    images: str = ""
    masks: str = "SegmentationClass"
    annotations: str = "instances.json"
    lists: str = "ImageSets/Segmentation"
    train_list: str = ""
    test_list: str = ""
    train_annotations: str = ""
    test_annotations: str = ""
    train_images: str = ""
    test_images: str = ""

    @property
    def split(self) -> bool:
        """Whether training and test images are kept apart."""
        return bool(self.test_list or self.test_annotations)

    def identity(self) -> dict[str, Any]:
        """All fields but those of splits that are not used: data sets without keep the fingerprint they had."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if value or name not in (*SPLIT_FIELDS, *IMAGE_FIELDS)}


def read_spec(path: Path) -> DatasetSpec:
    """Read and check a ``dataset.json``.

    Unknown fields are free for notes, unless they look like a misspelt one.

    Raises:
        UserError: missing or malformed file; the message lists everything that is wrong with its fields.
    """
    document = _load(path)
    problems: list[str] = []

    def text(field: str, default: str) -> str:
        value = document.get(field, default)
        if not isinstance(value, str) or not value:
            problems.append(f"{field!r} must be a non-empty text, not {reprlib.repr(value)}")
            return default
        if not is_plain(value) or any(len(part.encode()) > LONGEST for part in value.split("/")) or len(value) > 2000:
            problems.append(f"{field!r} is {reprlib.repr(value)}; it holds control characters or is too long")
            return default
        return value

    fields = {field.name for field in dataclasses.fields(DatasetSpec)}
    for field in document.keys() - fields:
        near = difflib.get_close_matches(field, sorted(fields), n=1, cutoff=0.8)
        if near:
            problems.append(f"unknown field {reprlib.repr(field)} (did you mean {near[0]!r}?)")
    name, layout = text("name", ""), text("layout", "")
    if "/" in name or "\\" in name:
        problems.append(f"'name' is {name!r}; it may not hold a slash")
    if layout and layout not in DEFAULT_IMAGES:
        problems.append(f"'layout' is {layout!r}; it must be 'voc', 'coco' or 'fss'")
    classes = _names(document.get("classes"), "classes", problems)
    if classes and classes[0].strip("_ ").lower() in NO_CLASS:
        problems.append(
            f"'classes' begins with {classes[0]!r}, which would become a class to be learnt: label 0 is background and "
            "is not listed; take it out, so that the first name is that of label 1"
        )
    folds = _folds(document.get("folds"), classes, problems)
    ignore = document.get("ignore_index", VOID)
    if type(ignore) is not int or not (layout in ("coco", "fss") or len(classes) < ignore) or not 0 < ignore <= 255:
        problems.append(
            f"'ignore_index' is {reprlib.repr(ignore)}; it must be a whole number above the labels "
            f"0-{len(classes)}, ≤ 255"
        )
    fraction = document.get("min_area_fraction")
    number = isinstance(fraction, int | float) and not isinstance(fraction, bool)
    if fraction is not None and not (number and 0 <= fraction < 1):
        problems.append(f"'min_area_fraction' is {reprlib.repr(fraction)}; it must be a number in [0, 1)")
    spec = {
        "images": text("images", DEFAULT_IMAGES.get(layout, "images")),
        "masks": text("masks", "SegmentationClass"),
        "annotations": text("annotations", "instances.json"),
        "lists": text("lists", "ImageSets/Segmentation"),
    }
    for field in (*SPLIT_FIELDS, *IMAGE_FIELDS):
        if field in document:
            spec[field] = text(field, "")
            if layout in DEFAULT_IMAGES and layout != SPLIT_FIELDS.get(field, "coco"):
                problems.append(f"{field!r} is for layout {SPLIT_FIELDS.get(field, 'coco')!r}, not {layout!r}")
    for one, two in (("train_list", "test_list"), ("train_annotations", "test_annotations")):
        if (one in document) != (two in document):
            problems.append(f"{one!r} and {two!r} belong together: give both or none")
    if any(field in document for field in IMAGE_FIELDS) and "test_annotations" not in document:
        problems.append("'train_images' and 'test_images' need 'train_annotations' and 'test_annotations'")
    if problems:
        rest = f"; … and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(f"{path}: " + "; ".join(problems[:SHOWN]) + rest + ". Correct the file and run again")
    return DatasetSpec(
        name=name, layout=layout, classes=classes, folds=folds, ignore_index=ignore, min_area_fraction=fraction, **spec
    )


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} does not exist; pass the path of a dataset.json (README, 'Your own data')")
    try:
        document = json.loads(decode(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} can't be read as JSON ({error}); correct it and run again") from error
    if not isinstance(document, dict):
        raise UserError(f"{path} must hold a JSON object with name, layout, classes and folds; correct it")
    return document


def is_plain(text: str) -> bool:
    """Whether a text can be a file's name and be printed: no control characters, no halves of surrogate pairs."""
    return not UNPRINTABLE.search(text)


def _names(value: object, where: str, problems: list[str]) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) and name for name in value):
        problems.append(f"{where!r} must be a non-empty list of class names, not {reprlib.repr(value)}")
        return ()
    twice = [name for name, count in Counter(value).items() if count > 1]
    if twice:
        problems.append(f"{where!r} names {', '.join(map(reprlib.repr, twice[:SHOWN]))} twice")
    odd = [name for name in value if len(name) > LONGEST or not is_plain(name)]
    if odd:
        problems.append(f"{where!r} holds {reprlib.repr(odd[0])}: a name with control characters, or too long a one")
    return tuple(value)


def _folds(value: object, classes: tuple[str, ...], problems: list[str]) -> tuple[tuple[int, ...], ...]:
    if not isinstance(value, list) or not value:
        problems.append(f"'folds' must be a non-empty list of lists of class names, not {reprlib.repr(value)}")
        return ()
    index = {name: i for i, name in enumerate(classes)}
    folds: list[tuple[int, ...]] = []
    for number, names in enumerate(value):
        known = []
        for name in _names(names, f"folds[{number}]", problems):
            if name in index:
                known.append(index[name])
            elif classes:
                few = len(problems) < SHOWN and len(name) <= LONGEST  # nobody reads the others, and a hint costs time
                near = difflib.get_close_matches(name, classes, n=1) if few else []
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                problems.append(f"fold {number} names class {reprlib.repr(name)}, which is not in 'classes'{hint}")
        folds.append(tuple(known))
    seen = Counter(c for fold in folds for c in set(fold))
    shared = [classes[c] for c, count in sorted(seen.items()) if count > 1]
    if shared:
        problems.append(f"classes in more than one fold: {', '.join(map(reprlib.repr, shared[:SHOWN]))}")
    return tuple(folds)
