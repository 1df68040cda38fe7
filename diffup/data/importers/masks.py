"""Folders of masks: a folder per class, with a black-and-white PNG for each image that shows it.

``SRC/images/1.jpg`` with ``SRC/masks/wren/1.png`` or ``SRC/wren/1.png``; or image and mask side by side,
``SRC/wren/1.jpg`` and ``SRC/wren/1.png``. A mask is named as its image, also with ``_mask`` at its end.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from diffup.data.images import DAMAGE, IMAGE_SUFFIXES
from diffup.data.importers.pictures import Found, Mask, Picture, Thing, images_below, label_of
from diffup.data.labels import MASK_SUFFIX, read_drawn
from diffup.data.layouts.scan import NOTES, Folder, beside, listed
from diffup.errors import UserError

IMAGES = ("images", "JPEGImages", "imgs", "image")
MASKS = ("masks", "labels", "annotations", "SegmentationClass")
ENDS = re.compile(r"[_-](mask|label|seg)$", re.IGNORECASE)
PHOTOS = tuple(suffix for suffix in IMAGE_SUFFIXES if suffix != MASK_SUFFIX)


def read(source: Path, images: Path | None = None) -> Found:
    """The masks of all class folders; `images` is the folder of the images where it is not in `source`.

    Raises:
        UserError: there are no class folders, or no masks in them.
    """
    photos = images or next((source / name for name in IMAGES if (source / name).is_dir()), None)
    above = next((source / name for name in MASKS if (source / name).is_dir()), source)
    skipped = {photos.resolve()} if photos else set()
    folders = [f for f in sorted(above.iterdir()) if f.is_dir() and f.resolve() not in skipped and f.name[0] != "."]
    if not folders:
        raise UserError(f"{above} holds no folders of masks; make one per class, named as the class")
    found, things, masks = Found(), defaultdict[Path, list[Thing]](list), dict[Path, Path]()
    all_photos = Folder(photos) if photos else None
    for folder in folders:
        for mask in Folder(folder).files((MASK_SUFFIX,)):
            images_of = all_photos or Folder(folder)
            suffixes = IMAGE_SUFFIXES if all_photos else PHOTOS
            named = images_of.named(mask.stem, suffixes) or images_of.named(ENDS.sub("", mask.stem), suffixes)
            try:
                if len(named) != 1:
                    several = f"mask of {len(named)} images ({', '.join(p.name for p in named[:3])})"
                    none = f"mask without an image in {images_of.root}{beside(images_of.root / mask.name)}"
                    raise UserError(several if named else none)
                things[named[0]].append(Thing(label_of(folder.name), mask.name, _Drawn(mask)))
                masks.setdefault(named[0], mask)
            except UserError as error:
                found.problems.append(f"{mask}: {error}")
    base = photos or source
    for image, drawn in sorted(things.items()):
        found.pictures.append(
            Picture(image, image.relative_to(base).as_posix(), masks[image], drawn, _size(masks[image]))
        )
    if not found.pictures and not found.problems:
        raise UserError(f"{above}: the folders {', '.join(f.name for f in folders[:5])} hold no PNG masks")
    others = [p for f in folders for p in Folder(f).files() if p.suffix.lower() not in (MASK_SUFFIX, *NOTES)]
    if unread := [f"{p.parent.name}/{p.name}" for p in others if p not in things]:
        found.left_out[f"files and folders that are no PNG masks ({listed(unread)})"] = len(unread)
    if photos and (bare := len(set(images_below(photos)) - set(things))):
        found.left_out["images without any mask"] = bare
    return found


def _size(mask: Path) -> tuple[int, int] | None:
    """(H, W) as a mask's header states it; what is wrong with the file is said when it is read."""
    try:
        with Image.open(mask) as image:
            return image.height, image.width
    except DAMAGE:
        return None


class _Drawn:
    """Reads a mask when it is drawn, so that not all are in memory at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, height: int, width: int) -> tuple[Mask, bool]:
        try:
            values = read_drawn(self.path)
        except UserError as error:
            raise UserError(f"in {self.path.parent.name}/: {error}") from None
        if values.shape != (height, width):
            raise UserError(
                f"in {self.path.parent.name}/ is {values.shape[1]}x{values.shape[0]}, but its image is {width}x{height}"
            )
        return np.asarray(values == 1, np.bool_), False
