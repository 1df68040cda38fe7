"""VOC layout: photographs in one folder, a palette or grey PNG of labels for each in another.

Label 0 is background, v ≥ 1 is class v-1, `ignore_index` (255) is void. Images are those that
``ImageSets/Segmentation`` lists (all its ``*.txt`` together, a name per line), else all in the image folder; or those
of ``train_list`` and ``test_list``.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from diffup.data.images import IMAGE_SUFFIXES
from diffup.data.labels import MASK_SUFFIX, Colour, Labels, palette_faults, read_labels, smeared
from diffup.data.layouts.scan import (
    Folder,
    Pair,
    Remarks,
    Scan,
    bad_names,
    fail,
    index_pairs,
    listed,
    notes_of,
    relative,
    remark,
    same_name,
)
from diffup.data.lists import SUFFIX
from diffup.data.records import Record
from diffup.data.spec import LONGEST, VOID, DatasetSpec, is_plain
from diffup.data.text import read_lines
from diffup.errors import UserError

REMEDY = (
    "Repair or remove the files named above (or list only sound images in ImageSets/Segmentation/*.txt), then "
    "run again; nothing was written"
)
WHITE = 255
VOID_ONLY = (
    "{n} of the masks hold 0 and 255, which is void, and no class: {names}. If they are black-and-white masks, write "
    "the label of their class in place of 255"
)
SMEARED = (
    "{n} of the masks hold labels that are nowhere larger than the edge of another: {names}. Resizing with "
    "interpolation and JPEG make such labels, which nobody drew; resize masks by nearest neighbour"
)
OTHER_COLOURS = (
    "a label has another colour than in most other files in {n} of the palettes: {names}. Check that labels mean the "
    "same classes in all files, or save all masks with one palette"
)
ODD = re.compile(r"[,;\"'#]")  # a line with one of these is not a name
FLAGS = ("-1", "0", "1")  # after names in VOC's lists of ImageSets/Main


def source_files(root: Path, spec: DatasetSpec) -> list[Path]:
    """The files that the index is made of: images, then masks, then lists; some may not exist.

    Raises:
        UserError: as for `scan`.
    """
    pairs = _pairs(root, spec)
    return [pair.image for pair in pairs] + [pair.mask for pair in pairs] + list(_lists(root, spec))


def scan(root: Path, spec: DatasetSpec) -> Scan:
    """Read every image and mask once.

    Raises:
        UserError: no image at all, a name that stands for two images, or lists that can't be meant.
    """
    pairs, remarks = _pairs(root, spec), Remarks()
    palettes: dict[str, dict[int, Colour]] = {}
    used: dict[str, frozenset[int]] = {}

    def areas(pair: Pair, labels: Labels) -> dict[int, int]:
        counts = np.bincount(labels.values.reshape(-1), minlength=256)
        present = frozenset(int(v) for v in np.flatnonzero(counts))
        strange = sorted(v for v in present if v > len(spec.classes) and v != spec.ignore_index)
        if strange:
            raise UserError(
                f"{pair.mask}: unknown labels {', '.join(map(str, strange[:5]))}; dataset.json knows 0 (background), "
                f"1-{len(spec.classes)} (classes) and {spec.ignore_index} (void). If their classes are missing in "
                "'classes', add them in their places (label v is the v-th name); else repair the mask"
            )
        if labels.palette:
            name = relative(pair.mask, root)
            palettes[name] = {v: c for v, c in labels.palette.items() if v <= len(spec.classes) or v in present}
            used[name] = present
        if smeared(labels.values):
            remark(remarks, SMEARED, pair.mask.name)
        if spec.ignore_index == WHITE and WHITE in present <= {0, WHITE}:
            remark(remarks, VOID_ONLY, pair.mask.name)
        return {c: int(counts[c + 1]) for c in range(len(spec.classes)) if counts[c + 1]}

    records, problems = index_pairs(root, spec.name, pairs, read_labels, areas, remarks)
    moved, other = palette_faults(palettes, used, spec.ignore_index)
    voids = len(remarks.get(VOID_ONLY, ()))
    if voids and not any(record.areas for record in records):
        problems.append(
            f"{root / spec.masks}: {voids} masks hold 0 and 255 alone, and no image shows a class. In 0/255 masks, "
            f"value 255 is void: write the label of the class (1-{len(spec.classes)}) in its place, or use layout "
            "'fss' (a folder per class, with black-and-white masks)"
        )
    notes = notes_of(remarks)
    if other:
        notes.append(OTHER_COLOURS.format(n=len(other), names=listed(other)))
    if not _lists(root, spec):
        notes += Folder(root / spec.images).unread()
        if lone := Folder(root / spec.masks).lone_masks(pairs):
            notes.append(
                f"{root / spec.masks}: {len(lone)} masks have no image of their name: {listed(lone)}. Add the images "
                "or remove the masks"
            )
    return Scan(records, problems + moved, notes)


def read_mask(root: Path, record: Record, class_index: int, spec: DatasetSpec) -> NDArray[np.uint8]:
    """The mask of one class, uint8 [H, W]: 0 background or another class, 1 the class, 255 void.

    Raises:
        UserError: missing, truncated, or not a palette or grey image; the message does not name the file.
    """
    labels = read_labels(root / record.mask).values
    mask: NDArray[np.uint8] = (labels == class_index + 1).astype(np.uint8)
    mask[labels == spec.ignore_index] = VOID
    return mask


def _is_name(name: str) -> bool:
    path = PurePosixPath(name)
    return is_plain(name) and not path.is_absolute() and ".." not in path.parts and len(path.name.encode()) <= LONGEST


def _lists(root: Path, spec: DatasetSpec) -> dict[Path, str]:
    """The files that name images, and the split of each."""
    if spec.split:
        return {root / spec.train_list: "train", root / spec.test_list: "test"}
    lists = sorted((root / spec.lists).glob("*.txt"))
    return dict.fromkeys((path for path in lists if not path.name.startswith(".")), "")  # macOS: ._train.txt


def _pairs(root: Path, spec: DatasetSpec) -> list[Pair]:
    images, masks = Folder(root / spec.images), Folder(root / spec.masks)
    mixed = os.path.realpath(images.root) == os.path.realpath(masks.root)  # there, PNG files are masks
    suffixes = tuple(suffix for suffix in IMAGE_SUFFIXES if not mixed or suffix != MASK_SUFFIX)
    found: dict[str, list[Path]] = {}
    for path in images.files(suffixes):
        found.setdefault(path.stem, []).append(path)
    problems = [problem for paths in found.values() for problem in same_name(paths)]
    problems += bad_names(paths[0] for paths in found.values())
    named: dict[str, str] = {}
    lists = _lists(root, spec)
    for path, split in lists.items():
        names, strange = _names(path, images, suffixes)
        problems += [
            f"{path}: {name!r:.80} is not the name of an image in {images.root}; write a name per line, such as im_1"
            for name in strange
        ]
        problems += [f"{path}: names {name!r} {n} times" for name, n in Counter(names).items() if n > 1]
        both = sorted(name for name in set(names) if split and named.get(name, split) != split)
        problems += [f"{path}: {name!r} is a training image too" for name in both]
        named |= dict.fromkeys(names, split)
    ids = sorted(named) if lists else sorted(found)
    pairs = []
    for image_id in ids if not problems else ():
        there, drawn = images.named(image_id, suffixes), masks.named(image_id, (MASK_SUFFIX,))
        problems += same_name(there) + same_name(drawn)
        image, mask = [*there, images.root / f"{image_id}.jpg"][0], [*drawn, masks.root / f"{image_id}.png"][0]
        pairs.append(Pair(image_id, image, mask, named.get(image_id, "")))
    fail(root, problems, "Names must be those of images, and unique: correct or remove the files or lines named above")
    if not ids:
        none = f"{images.root} holds no {'/'.join(IMAGE_SUFFIXES)}"
        where = f"the lists in {root / spec.lists} are empty" if lists else none
        raise UserError(f"{root}: no images: {where}; put them there or correct dataset.json")
    return pairs


def _names(path: Path, images: Folder, suffixes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Image names of a list, and its words and lines that can not be names.

    A line is a name, with or without suffix and folder; or holds several, where one of them is an image.
    """
    names: list[str] = []
    strange: list[str] = []
    for line in read_lines(path):
        words = [line] if _known(line, images, suffixes) else line.split()
        known = [_known(word, images, suffixes) for word in words]
        if len(words) == 1 or not any(known):
            missing = not any(known) and (ODD.search(line) or not _is_name(line))
            (strange if missing else names).append(known[0] or (line if missing else SUFFIX.sub("", line)))
        else:
            for word, name in zip(words, known, strict=True):
                other = not name and ("/" in word or word in FLAGS)  # a label's path, whether a class is in the image
                (strange if other else names).append(f"{word} in {line}" if other else name or word)
    return names, strange


def _known(name: str, images: Folder, suffixes: Sequence[str]) -> str:
    """The id of the image that a name in a list stands for, ``""`` if there is none."""
    for each in dict.fromkeys((name, name.replace("\\", "/"))):
        path = PurePosixPath(each)
        bare = str(path.with_suffix("")) if path.suffix.lower() in IMAGE_SUFFIXES else each
        below = bare.lstrip("/").removeprefix(f"{images.root.name}/")  # JPEGImages/im_1.jpg
        for candidate in dict.fromkeys((each, bare, below)):
            if _is_name(candidate) and (found := images.named(candidate, suffixes)):
                return str(PurePosixPath(candidate).with_name(found[0].stem))
    return ""
