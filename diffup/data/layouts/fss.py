"""FSS layout, as FSS-1000 comes: a folder per class, in it ``1.jpg`` … and for each a mask ``1.png`` of the same name.

A mask is black and white: pixels above 127 are the class; there is no void. Each image shows one class, that of its
folder. Ids are ``class/1``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffup.data.images import IMAGE_SUFFIXES
from diffup.data.labels import MASK_SUFFIX, read_binary
from diffup.data.layouts.scan import Folder, Remarks, Scan, index_all, listed, read_pair, relative
from diffup.data.records import Record
from diffup.data.spec import DatasetSpec, is_plain
from diffup.errors import UserError

REMEDY = "Repair or remove the files named above, then run again; nothing was written"
EMPTY = "{n} of the masks are black, so that their images show no class: {names}. Draw them, or remove the images"
FULL = "{n} of the masks are white throughout, so that the class covers the image: {names}. Check them"

# Class index, image id, image, mask.
Pair = tuple[int, str, Path, Path]


def source_files(root: Path, spec: DatasetSpec) -> list[Path]:
    """The files that the index is made of: images, then masks."""
    pairs = _pairs(root, spec)
    return [image for _, _, image, _ in pairs] + [mask for _, _, _, mask in pairs]


def scan(root: Path, spec: DatasetSpec) -> Scan:
    """Read every image and mask once.

    Returns:
        What is known of the good ones, every missing, truncated, unequal or refused file, and what is remarkable about
        sound ones.

    Raises:
        UserError: no images at all.
    """
    pairs, remarks = _pairs(root, spec), Remarks()
    if not pairs:
        raise UserError(f"{root / spec.images}: no images in the folders of the classes; put them there")
    records, problems = index_all(pairs, partial(_index_one, root, remarks), f"indexing {spec.name}")
    present = {class_index for class_index, _, _, _ in pairs}
    absent = [name for c, name in enumerate(spec.classes) if c not in present]
    problems += [f"{root / spec.images / name}: no images of class {name!r}" for name in absent]
    problems += _names(root, spec, pairs)
    notes = remarks.notes()
    served = {mask for _, _, _, mask in pairs}
    for name in spec.classes:
        folder = Folder(root / spec.images / name)
        notes += folder.unread() + folder.deeper()
        lone = [p.name for p in folder.files() if p.suffix.lower() == MASK_SUFFIX and p not in served]
        if lone:
            notes.append(
                f"{folder.root}: {len(lone)} .png files are no masks of an image, and PNG files are taken for masks: "
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


def _pairs(root: Path, spec: DatasetSpec) -> list[Pair]:
    found = []
    for class_index, name in enumerate(spec.classes):
        folder = Folder(root / spec.images / name)
        for path in folder.files():
            if path.suffix.lower() in IMAGE_SUFFIXES and path.suffix.lower() != MASK_SUFFIX:
                masks = folder.named(path.stem, (MASK_SUFFIX,))
                found.append((class_index, f"{name}/{path.stem}", path, (masks or [path.with_suffix(MASK_SUFFIX)])[0]))
    return found


def _names(root: Path, spec: DatasetSpec, pairs: Sequence[Pair]) -> list[str]:
    """Problems: names that are no text, and images with two masks."""
    problems = [f"{str(image)!a}: a name that is no text" for _, _, image, _ in pairs if not is_plain(image.stem)]
    for name in spec.classes:
        folder = Folder(root / spec.images / name)
        stems = Counter(p.stem for p in folder.files() if p.suffix.lower() == MASK_SUFFIX)
        for stem in [stem for stem, n in stems.items() if n > 1]:
            both = folder.named(stem, (MASK_SUFFIX,))
            problems.append(f"{both[1]}: same name as {both[0].name}")
    return problems


def _index_one(root: Path, remarks: Remarks, pair: Pair) -> Record | str:
    class_index, image_id, image_path, mask_path = pair
    read = read_pair(image_path, mask_path, read_binary, remarks)
    if isinstance(read, str):
        return read
    height, width = read.values.shape
    area = int(read.values.sum())
    if area in (0, height * width):
        remarks.add(FULL if area else EMPTY, relative(mask_path, root))
    return Record(
        image_id,
        relative(image_path, root),
        relative(mask_path, root),
        height,
        width,
        read.checksum,
        {class_index: area} if area else {},
        {},
    )
