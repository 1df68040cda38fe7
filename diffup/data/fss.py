"""FSS layout, as FSS-1000 comes: a folder a class, in it ``1.jpg`` … and for each a mask ``1.png`` of the same name.

A mask is an image whose pixels above 127 are the class; there is no void. Each image shows one class, that of its
folder. Ids are ``class/1``.
"""

from __future__ import annotations

import io
import zlib
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffup.data.records import IMAGE_SUFFIXES, Record, index_all, read_pair, relative
from diffup.data.spec import DatasetSpec
from diffup.errors import UserError

REMEDY = "Repair or remove the files named above, then run again; nothing was written"
FOREGROUND = 127  # pixels above are the class
MASK = ".png"


def source_files(root: Path, spec: DatasetSpec) -> list[Path]:
    """The files that the index is made of: images, then masks."""
    pairs = _pairs(root, spec)
    return [image for _, image, _ in pairs] + [mask for _, _, mask in pairs]


def scan(root: Path, spec: DatasetSpec) -> tuple[list[Record], list[str]]:
    """Read every image and mask once.

    Returns:
        What is known of the good ones, and every missing, truncated or unequal file.

    Raises:
        UserError: no images at all.
    """
    pairs = _pairs(root, spec)
    if not pairs:
        raise UserError(f"{root / spec.images}: no images in the folders of the classes; put them there")
    records, problems = index_all(pairs, partial(_index_one, root), f"indexing {spec.name}")
    present = {class_index for class_index, _, _ in pairs}
    absent = [name for c, name in enumerate(spec.classes) if c not in present]
    return records, problems + [f"{root / spec.images / name}: no images of class {name!r}" for name in absent]


def read_mask(root: Path, record: Record, class_index: int, spec: DatasetSpec) -> NDArray[np.uint8]:
    """The mask of one class, uint8 [H, W]: 0 background, 1 the class, which only images of its folder show.

    Raises:
        UserError: missing or truncated; the message does not name the file.
    """
    mask, _ = _read(root / record.mask)
    return mask if class_index in record.areas else np.zeros_like(mask)


def _read(path: Path) -> tuple[NDArray[np.uint8], int]:
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            grey = np.asarray(image.convert("L"))
    except FileNotFoundError:
        raise UserError("mask is missing") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"mask can't be decoded ({error})") from error
    return (grey > FOREGROUND).astype(np.uint8), zlib.crc32(content)


def _pairs(root: Path, spec: DatasetSpec) -> list[tuple[int, Path, Path]]:
    found = []
    for class_index, name in enumerate(spec.classes):
        folder = root / spec.images / name
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.suffix.lower() in IMAGE_SUFFIXES and path.suffix != MASK:
                found.append((class_index, path, path.with_suffix(MASK)))
    return found


def _index_one(root: Path, pair: tuple[int, Path, Path]) -> Record | str:
    class_index, image_path, mask_path = pair
    read = read_pair(image_path, mask_path, _read)
    if isinstance(read, str):
        return read
    mask, checksum = read
    height, width = mask.shape
    area = int(mask.sum())
    return Record(
        f"{image_path.parent.name}/{image_path.stem}",
        relative(image_path, root),
        relative(mask_path, root),
        height,
        width,
        checksum,
        {class_index: area} if area else {},
        {},
    )
