"""FSS layout, as FSS-1000 comes: a folder per class, in it ``1.jpg`` … and for each a mask ``1.png`` of the same name.

A mask is black and white: pixels above 127 are the class; there is no void. Each image shows one class, that of its
folder. Ids are ``class/1``.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffup.data.images import IMAGE_SUFFIXES
from diffup.data.labels import MASK_SUFFIX, Labels, read_binary
from diffup.data.layouts.scan import (
    Folder,
    Pair,
    Remarks,
    Scan,
    bad_names,
    index_pairs,
    listed,
    notes_of,
    relative,
    remark,
    same_name,
)
from diffup.data.records import Record
from diffup.data.spec import DatasetSpec
from diffup.errors import UserError

REMEDY = "Repair or remove the files named above, then run again; nothing was written"
EMPTY = "{n} of the masks are black, so that their images show no class: {names}. Draw them, or remove the images"
FULL = "{n} of the masks are white throughout, so that the class covers the image: {names}. Check them"
PHOTOS = tuple(suffix for suffix in IMAGE_SUFFIXES if suffix != MASK_SUFFIX)


def source_files(root: Path, spec: DatasetSpec) -> list[Path]:
    """The files that the index is made of: images, then masks."""
    pairs = _pairs(_folders(root, spec))
    return [pair.image for pair in pairs] + [pair.mask for pair in pairs]


def scan(root: Path, spec: DatasetSpec) -> Scan:
    """Read every image and mask once.

    Raises:
        UserError: no images at all.
    """
    folders, remarks = _folders(root, spec), Remarks()
    pairs = _pairs(folders)
    if not pairs:
        raise UserError(f"{root / spec.images}: no images in the folders of the classes; put them there")

    def areas(pair: Pair, labels: Labels) -> dict[int, int]:
        area = int(labels.values.sum())
        if area in (0, labels.values.size):
            remark(remarks, FULL if area else EMPTY, relative(pair.mask, root))
        return {pair.class_index: area} if area else {}

    records, problems = index_pairs(root, spec.name, pairs, read_binary, areas, remarks)
    present = {pair.class_index for pair in pairs}
    absent = [name for c, name in enumerate(spec.classes) if c not in present]
    problems += [f"{root / spec.images / name}: no images of class {name!r}" for name in absent]
    problems += bad_names(pair.image for pair in pairs)
    notes = notes_of(remarks)
    for folder in folders.values():
        for stem in Counter(path.stem for path in folder.files((MASK_SUFFIX,))):
            problems += same_name(folder.named(stem, (MASK_SUFFIX,)))
        notes += folder.unread()
        if lone := folder.lone_masks(pairs):
            notes.append(
                f"{folder.root}: {len(lone)} .png files are not masks of an image, and PNG files are taken for masks: "
                f"{listed(lone)}. Save photographs as JPEG, and call masks as their images"
            )
    return Scan(records, problems, notes)


def read_mask(root: Path, record: Record, class_index: int, spec: DatasetSpec) -> NDArray[np.uint8]:
    """The mask of one class, uint8 [H, W]: 0 background, 1 the class, which only images of its folder show.

    Raises:
        UserError: missing, truncated or refused; the message does not name the file.
    """
    mask = read_binary(root / record.mask).values
    return mask if class_index in record.areas else np.zeros_like(mask)


def _folders(root: Path, spec: DatasetSpec) -> dict[str, Folder]:
    return {name: Folder(root / spec.images / name) for name in spec.classes}


def _pairs(folders: dict[str, Folder]) -> list[Pair]:
    return [
        Pair(f"{name}/{image.stem}", image, mask, class_index=class_index)
        for class_index, (name, folder) in enumerate(folders.items())
        for image in folder.files(PHOTOS)
        for mask in (folder.named(image.stem, (MASK_SUFFIX,)) or [image.with_suffix(MASK_SUFFIX)])[:1]
    ]
