"""VOC layout: photographs in one folder, a palette or grey PNG of labels for each in another.

Label 0 is background, v ≥ 1 is class v-1, `ignore_index` (255) is void. Images are those that
``ImageSets/Segmentation`` lists (all its ``*.txt`` together), else all in the image folder; or those of ``train_list``
and ``test_list``.
"""

from __future__ import annotations

import io
import zlib
from collections import Counter
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffup.data.records import IMAGE_SUFFIXES, Record, fail, index_all, read_pair, relative
from diffup.data.spec import LONGEST, VOID, DatasetSpec, is_plain
from diffup.errors import UserError

REMEDY = (
    "Repair or remove the files named above (or list only sound images in ImageSets/Segmentation/*.txt), then "
    "run again; nothing was written"
)


def source_files(root: Path, spec: DatasetSpec) -> list[Path]:
    """The files that the index is made of: images, then masks, then lists; some may not exist.

    Raises:
        UserError: no image at all, a name that stands for two images, or a list that names an image twice.
    """
    pairs = _pairs(root, spec)
    lists = list(_lists(root, spec))
    return [image for _, image, _, _ in pairs] + [mask for _, _, mask, _ in pairs] + lists


def scan(root: Path, spec: DatasetSpec) -> tuple[list[Record], list[str]]:
    """Read every image and mask once.

    Returns:
        What is known of the good ones, and every missing, truncated, unequal or wrongly labelled file.

    Raises:
        UserError: no images, or lists that can't be meant.
    """
    return index_all(_pairs(root, spec), partial(_index_one, root, spec), f"indexing {spec.name}")


def read_mask(root: Path, record: Record, class_index: int, spec: DatasetSpec) -> NDArray[np.uint8]:
    """The mask of one class, uint8 [H, W]: 0 background or another class, 1 the class, 255 void.

    Raises:
        UserError: missing, truncated, or not a palette or grey image; the message does not name the file.
    """
    labels, _ = _read_labels(root / record.mask)
    mask: NDArray[np.uint8] = (labels == class_index + 1).astype(np.uint8)
    mask[labels == spec.ignore_index] = VOID
    return mask


def _read_labels(path: Path) -> tuple[NDArray[np.uint8], int]:
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            if image.mode not in ("P", "L"):
                raise UserError(f"mode {image.mode}; labels need a palette or an 8-bit grey PNG")
            return np.asarray(image), zlib.crc32(content)
    except FileNotFoundError:
        raise UserError("mask is missing") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"mask can't be decoded ({error})") from error


def _is_name(name: str) -> bool:
    path = PurePosixPath(name)
    return is_plain(name) and not path.is_absolute() and ".." not in path.parts and len(path.name.encode()) <= LONGEST


def _lists(root: Path, spec: DatasetSpec) -> dict[Path, str]:
    """The files that name images, and the split of each."""
    if spec.split:
        return {root / spec.train_list: "train", root / spec.test_list: "test"}
    return dict.fromkeys(sorted((root / spec.lists).glob("*.txt")), "")


def _pairs(root: Path, spec: DatasetSpec) -> list[tuple[str, Path, Path, str]]:
    folder = root / spec.images
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            found.setdefault(path.stem, []).append(path)
    problems = [f"{paths[1]}: same name as {paths[0].name}" for paths in found.values() if len(paths) > 1]
    problems += [f"{str(paths[0])!a}: a name that is no text" for stem, paths in found.items() if not is_plain(stem)]
    listed: dict[str, str] = {}
    lists = _lists(root, spec)
    for path, split in lists.items():
        names = _names(path)
        problems += [f"{path}: {name!r:.80} is not the name of an image" for name in names if not _is_name(name)]
        problems += [f"{path}: names {name!r} {n} times" for name, n in Counter(names).items() if n > 1]
        both = sorted(name for name in set(names) if split and listed.get(name, split) != split)
        problems += [f"{path}: {name!r} is a training image too" for name in both]
        listed |= dict.fromkeys(names, split)
    fail(root, problems, "Names of images must be unique: rename or remove the files or lines named above")
    ids = sorted(listed) if lists else sorted(found)
    if not ids:
        where = (
            f"the lists in {root / spec.lists} are empty" if lists else f"{folder} holds no {'/'.join(IMAGE_SUFFIXES)}"
        )
        raise UserError(f"{root}: no images: {where}; put them there or correct dataset.json")
    masks = root / spec.masks
    return [(i, found[i][0] if i in found else folder / f"{i}.jpg", masks / f"{i}.png", listed.get(i, "")) for i in ids]


def _names(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read as text ({error}); correct or remove it and run again") from None


def _index_one(root: Path, spec: DatasetSpec, pair: tuple[str, Path, Path, str]) -> Record | str:
    image_id, image_path, mask_path, split = pair
    read = read_pair(image_path, mask_path, _read_labels)
    if isinstance(read, str):
        return read
    labels, checksum = read
    height, width = labels.shape
    areas = np.bincount(labels.reshape(-1), minlength=256)
    strange = [int(v) for v in np.flatnonzero(areas) if v > len(spec.classes) and v != spec.ignore_index]
    if strange:
        return (
            f"{mask_path}: unknown labels {', '.join(map(str, strange[:5]))}; dataset.json knows 0 (background), "
            f"1-{len(spec.classes)} (classes) and {spec.ignore_index} (void)"
        )
    return Record(
        image_id,
        relative(image_path, root),
        relative(mask_path, root),
        height,
        width,
        checksum,
        {c: int(areas[c + 1]) for c in range(len(spec.classes)) if areas[c + 1]},
        {},
        split,
    )
