"""Cues as users give them in Python: annotated images and names, checked and brought into one form.

Letters: H W an image's own size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from diffup.config import VISUAL_CUES
from diffup.cues import BACKGROUND, FOREGROUND, UNKNOWN
from diffup.data.images import read_photo, rgb
from diffup.encode import Features
from diffup.errors import UserError

AnyImage = Image.Image | NDArray[np.uint8] | str | Path


@dataclass(frozen=True, eq=False)
class Support:
    """An annotated image that shows the class.

    Attributes:
        image: picture (PIL, uint8 [H, W, 3], or a path) or its `Features`. EXIF rotation is not applied to a path:
            annotations refer to the pixels as they are stored.
        annotation: by `kind`:
            ``"mask"``: [H, W], bool, or uint8 with 0 background, 1 the class, 2 unknown;
            ``"scribble"``: [H, W], bool or 0 and 1, the strokes; what is not scribbled is unknown;
            ``"box"``: boxes (x0, y0, x1, y1) in pixels, one or several; x1 and y1 lie just outside, so that
            (0, 0, W, H) is the whole image. Parts beyond the image are cut off.
        kind: ``"mask"``, ``"box"`` or ``"scribble"``.

    Raises:
        UserError: an unknown kind.
    """

    image: AnyImage | Features
    annotation: ArrayLike
    kind: str = "mask"

    def __post_init__(self) -> None:
        if self.kind not in VISUAL_CUES:
            raise UserError(f"a support's kind must be one of {', '.join(VISUAL_CUES)}; not {self.kind!r}")

    def drawn(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        """The annotation as `diffup.cues.cue_weights` reads it, [H, W]: 0 background, 1 the class, 2 unknown.

        Raises:
            UserError: it does not fit an image of `size`, shows nothing of the class, or holds other values.
        """
        drawn = _boxes(self.annotation, size) if self.kind == "box" else _pixels(self.annotation, self.kind, size)
        if not (drawn == FOREGROUND).any():
            raise UserError(f"the {self.kind} of a support is empty: it marks no pixel of the class")
        return drawn


@dataclass(frozen=True)
class Text:
    """The class by name.

    Attributes:
        name: of the class, as it is put into the checkpoint's prompts ("a photo of a {}.").
        others: names of what else may be in the image; the class is told apart from these.

    Raises:
        UserError: an empty name, or `name` among `others`.
    """

    name: str
    others: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.others, str):
            raise UserError(f"Text.others is a list of names; write others=({self.others!r},)")
        object.__setattr__(self, "others", tuple(self.others))
        if not all(name.strip() for name in (self.name, *self.others)):
            raise UserError("a text cue has an empty name")
        if self.name in self.others:
            raise UserError(f"a text cue names {self.name!r} as the class and among the others")


Cue = Support | Text


def to_rgb(image: AnyImage, place: str) -> NDArray[np.uint8]:
    """An image as uint8 [H, W, 3].

    Raises:
        UserError: it is no image, or can't be read; the message begins with `place`.
    """
    if isinstance(image, Image.Image):
        try:
            return rgb(image)
        except UserError as error:
            raise UserError(f"{place} is refused: {error}") from error
    if isinstance(image, str | Path):
        try:
            return read_photo(Path(image).expanduser(), upright=True).pixels
        except UserError as error:
            raise UserError(f"{place}, {image}: {error}") from error
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(f"{place} is {what}; an image is a PIL image, a uint8 array [H, W, 3] or a path")
    if not image.size:
        raise UserError(f"{place} has no pixel: its shape is {image.shape}")
    return image


def _pixels(annotation: ArrayLike, kind: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A mask or strokes as 0, 1, 2."""
    drawn = np.asarray(annotation)
    if drawn.shape != size:
        raise UserError(f"the {kind} has shape {drawn.shape}, but its image is {size[0]} × {size[1]} (H × W)")
    allowed = [BACKGROUND, FOREGROUND, UNKNOWN] if kind == "mask" else [BACKGROUND, FOREGROUND]
    if drawn.dtype != np.bool_ and not np.isin(drawn, allowed).all():
        strange = np.setdiff1d(drawn, allowed)[:4].tolist()
        raise UserError(
            f"the {kind} holds values {', '.join(map(str, strange))}; it takes a bool array, or the numbers "
            f"{', '.join(map(str, allowed))} (for a picture of 0 and 255 pass it as: picture > 0)"
        )
    if kind == "scribble":
        return np.where(drawn == FOREGROUND, np.uint8(FOREGROUND), np.uint8(UNKNOWN))
    return drawn.astype(np.uint8)


def _boxes(annotation: ArrayLike, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Boxes filled, [H, W]."""
    boxes = np.atleast_2d(np.asarray(annotation, dtype=np.float64))
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise UserError(f"boxes are rows of four numbers x0, y0, x1, y1; got shape {boxes.shape}")
    drawn = np.zeros(size, np.uint8)
    for x0, y0, x1, y1 in boxes:
        left, top = max(int(np.floor(x0)), 0), max(int(np.floor(y0)), 0)
        right, bottom = min(int(np.ceil(x1)), size[1]), min(int(np.ceil(y1)), size[0])
        if right <= left or bottom <= top:
            raise UserError(
                f"box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) covers nothing of its image, which is {size[1]} wide and "
                f"{size[0]} high; write x0 < x1 and y0 < y1 in pixels"
            )
        drawn[top:bottom, left:right] = FOREGROUND
    return drawn
