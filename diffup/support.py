"""Supports, text cues and other arguments of the Python API, checked and brought into one form.

Letters: H W an image's own size.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import nn

from diffup.config import VISUAL_CUES
from diffup.data.images import DAMAGE, read_photo, rgb
from diffup.data.labels import black_first, palette_of, read_drawn
from diffup.episodes.cues import BACKGROUND, FOREGROUND, UNKNOWN
from diffup.errors import UserError
from diffup.models.batch import Features

FRACTIONS = 1.5  # a box in fractions may go beyond its image by as much as half of it
KINDS = (*VISUAL_CUES, "points")
POINT_RADIUS = 0.04  # of the disc that a point stands for, as a share of the square root of the image's pixels
AnyImage = Image.Image | NDArray[np.uint8] | str | Path


@dataclass(frozen=True, eq=False)
class Support:
    """An annotated image that shows the class.

    Attributes:
        image: picture (PIL, uint8 [H, W, 3], or a path) or its `Features`. A path's picture is turned upright, as its
            EXIF orientation asks; PIL pictures and arrays are taken as they are.
        annotation: by `kind`:
            ``"mask"``: [H, W], bool, or uint8 with 0 background, 1 the class, 2 unknown; or the path of a PNG
            (`diffup.data.labels.read_drawn`), drawn on the upright picture;
            ``"scribble"``: [H, W], bool or 0 and 1, the strokes, or such a path; what is not scribbled is unknown;
            ``"box"``: boxes (x0, y0, x1, y1) in pixels, one or several; x1 and y1 are exclusive:
            (0, 0, W, H) is the whole image. Parts beyond the image are cut off. Fractions of the image are refused;
            ``"points"``: points (x, y) on the class, in pixels, one or several. Each is read as a scribble, a disc with
            a radius of 4 % of √(H · W): 22 pixels at 640 × 480.
        kind: ``"mask"``, ``"box"``, ``"scribble"`` or ``"points"``.

    Raises:
        UserError: an unknown kind.
    """

    image: AnyImage | Features
    annotation: ArrayLike | str | Path
    kind: str = "mask"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"a support's kind must be one of {', '.join(KINDS)}; not {self.kind!r}")

    @property
    def cue(self) -> str:
        """The kind of cue that the network knows it by: points are a scribble."""
        return "scribble" if self.kind == "points" else self.kind

    def drawn(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        """The annotation as `diffup.episodes.cues.cue_weights` reads it, [H, W]: 0 background, 1 the class, 2 unknown.

        Raises:
            UserError: it does not fit an image of `size`, shows nothing of the class, holds other values, or is a file
                that can't be read.
        """
        drawn = _drawn(self.annotation, self.kind, size)
        if not (drawn == FOREGROUND).any():
            raise UserError(f"the {self.kind} of a support is empty: it marks no pixel of the class")
        return drawn


@dataclass(frozen=True)
class Text:
    """The class by name.

    Attributes:
        name: of the class, as it is put into the checkpoint's prompts ("a photo of a {}.").
        others: names of what else may be in the image; the class is contrasted with these.

    Raises:
        UserError: an empty name, `name` among `others`, or no texts.
    """

    name: str
    others: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.others, str):
            raise UserError(f"Text.others is a list of names; write others=({self.others!r},)")
        if not isinstance(self.others, Iterable):
            raise UserError(f"Text.others is a list of names, not {_what(self.others)}")
        object.__setattr__(self, "others", tuple(self.others))
        for place, name in (("name", self.name), *((f"others[{i}]", other) for i, other in enumerate(self.others))):
            if not isinstance(name, str):
                raise UserError(f"Text.{place} is a name, not {_what(name)}")
        if not all(name.strip() for name in (self.name, *self.others)):
            raise UserError("a text cue has an empty name")
        if self.name in self.others:
            raise UserError(f"a text cue names {self.name!r} as the class and among the others")


Cue = Support | Text


def labelled(
    images: Sequence[AnyImage], masks: Sequence[ArrayLike | str | Path | None]
) -> list[tuple[NDArray[np.uint8], NDArray[np.bool_] | None]]:
    """Images with the masks [H, W] of what they show, or None.

    Raises:
        UserError: something that is no image, or a mask that doesn't fit; the message names its place.
    """
    pairs: list[tuple[NDArray[np.uint8], NDArray[np.bool_] | None]] = []
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        pixels = to_rgb(image, f"images[{i}]")
        try:
            drawn = None if mask is None else _drawn(mask, "mask", (pixels.shape[0], pixels.shape[1]))
        except UserError as error:
            raise UserError(f"masks[{i}]: {error}") from error
        pairs.append((pixels, None if drawn is None else drawn == FOREGROUND))
    return pairs


def check_list(value: object, message: str) -> None:
    """Raise a UserError that says `message` unless `value` is a list, a tuple or another sequence."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise UserError(f"{message} (got a {type(value).__name__})")


def check_names(**arguments: object) -> None:
    """Raise a UserError for an argument that is neither None nor a text, nor a module where it is ``backbone``."""
    for argument, name in arguments.items():
        if name is not None and not isinstance(name, str | nn.Module if argument == "backbone" else str):
            own = " or a torch.nn.Module" if argument == "backbone" else ""
            raise UserError(
                f"{argument} must be a name such as 'resnet50' or 'open_clip:ViT-B-16/openai'{own}, not a "
                f"{type(name).__name__}"
            )


def whole(value: object, argument: str, least: int) -> int:
    """A whole number of at least `least`, also one of NumPy's.

    Raises:
        UserError: anything else; the message names the argument.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise UserError(f"{argument} must be a whole number, not {value!r:.60} ({type(value).__name__})") from None
    if number < least:
        raise UserError(f"{argument} must be {least} or more, not {number}")
    return number


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
        except DAMAGE as error:  # a file that is closed or cut off, or a mode that Pillow can't convert
            raise UserError(f"{place} can't be read ({error}); pass it as an array or the path of its file") from error
    if isinstance(image, str | Path):
        try:
            return read_photo(_path(image), upright=True).pixels
        except UserError as error:
            raise UserError(f"{place}, {image}: {error}") from error
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(f"{place} is {what}; an image is a PIL image, a uint8 array [H, W, 3] or a path")
    if not image.size:
        raise UserError(f"{place} has no pixel: its shape is {image.shape}")
    return image


def _drawn(annotation: ArrayLike | str | Path, kind: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """An annotation as 0, 1, 2, [H, W]; see `Support.drawn`."""
    if isinstance(annotation, str | Path):
        annotation = _drawn_file(annotation, kind)
    if kind == "box":
        return _boxes(annotation, size)
    return _points(annotation, size) if kind == "points" else _pixels(annotation, kind, size)


def _drawn_file(path: str | Path, kind: str) -> NDArray[np.uint8]:
    """A mask or scribble from its file."""
    if kind in ("box", "points"):
        meant = "a box is four numbers x0, y0, x1, y1" if kind == "box" else "a point is two numbers x, y"
        raise UserError(f"{meant}, not the path {str(path)!r}")
    try:
        return read_drawn(_path(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _path(path: str | Path) -> Path:
    """A path with ``~`` replaced.

    Raises:
        UserError: there is no such home; the message does not name the path.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"can't be read ({error}); write the path without ~") from error


def _what(value: object) -> str:
    return f"{value!r:.60} ({type(value).__name__})"


def _numbers(annotation: object, what: str) -> NDArray[Any]:
    """An annotation as an array of numbers or truth values."""
    try:
        found = np.asarray(annotation)
        if isinstance(annotation, Image.Image) and annotation.mode == "P":
            found = black_first(found, palette_of(annotation))
    except (TypeError, ValueError, RuntimeError) as error:  # ragged rows, a tensor on a GPU or with gradients
        raise UserError(f"{what} can't be read as one array ({error}); pass a NumPy array of numbers") from error
    if found.dtype.kind not in "biuf":
        raise UserError(f"{what} holds {found.dtype} values; pass numbers, not texts or objects")
    return found


def _pixels(annotation: ArrayLike, kind: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A mask or strokes as 0, 1, 2."""
    drawn = _numbers(annotation, f"the {kind}")
    if drawn.shape != size:
        raise UserError(
            f"the {kind} has shape {drawn.shape}, but its image is {size[0]} × {size[1]} (H × W)"
            f"{_shape_hint(drawn.shape, size)}"
        )
    allowed = [BACKGROUND, FOREGROUND, UNKNOWN] if kind == "mask" else [BACKGROUND, FOREGROUND]
    if drawn.dtype != np.bool_ and not np.isin(drawn, allowed).all():
        strange = np.setdiff1d(drawn, allowed)[:4].tolist()
        raise UserError(
            f"the {kind} holds values {', '.join(map(str, strange))}; it takes a bool array, or the numbers "
            f"{', '.join(map(str, allowed))} (for a picture of 0 and 255 pass it as: picture > 0, for labels as: "
            f"labels == the class's number, for probabilities as: probabilities > 0.5)"
        )
    if kind == "scribble":
        return np.where(drawn == FOREGROUND, np.uint8(FOREGROUND), np.uint8(UNKNOWN))
    return drawn.astype(np.uint8)


def _shape_hint(shape: tuple[int, ...], size: tuple[int, int]) -> str:
    """What probably happened to an annotation whose shape is not its image's (H, W)."""
    if shape == size[::-1]:
        return "; it looks transposed: pass its .T, or rotate it if the image is stored rotated (EXIF)"
    if len(shape) == 3 and tuple(side for side in shape if side != 1) == size:
        return "; take the axis of length one away with .squeeze()"
    if len(shape) == 3 and shape[:2] == size:
        return "; it is a colour picture: pass one value for each pixel, such as (picture == colour).all(-1)"
    if len(shape) == 2:
        return "; annotate the image at its own size, or resize the annotation by nearest neighbour"
    return "; pass one value for each pixel, [H, W]"


def _boxes(annotation: ArrayLike, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Boxes filled, [H, W]."""
    boxes = _numbers(annotation, "boxes")
    if not boxes.size:
        raise UserError("boxes are rows of four numbers x0, y0, x1, y1; there is no box")
    boxes = boxes[None] if boxes.ndim == 1 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype == np.bool_:
        raise UserError(f"boxes are rows of four numbers x0, y0, x1, y1; got {boxes.dtype} of shape {boxes.shape}")
    drawn = np.zeros(size, np.uint8)
    for x0, y0, x1, y1 in boxes.astype(np.float64):
        box = f"box ({x0:g}, {y0:g}, {x1:g}, {y1:g})"
        if not np.isfinite([x0, y0, x1, y1]).all():
            raise UserError(f"boxes are rows of four numbers x0, y0, x1, y1; {box} has one that is not finite")
        if _in_fractions((x0, y0, x1, y1), boxes.dtype, size):
            raise UserError(
                f"{box} looks like fractions of the image, and covers less than a pixel or one pixel if it is in "
                f"pixels; multiply x by the width, {size[1]}, and y by the height, {size[0]}"
            )
        left, top = max(int(np.floor(x0)), 0), max(int(np.floor(y0)), 0)
        right, bottom = min(int(np.ceil(x1)), size[1]), min(int(np.ceil(y1)), size[0])
        if right <= left or bottom <= top:
            turned = x1 <= x0 or y1 <= y0
            remedy = (
                "; write x0 < x1 and y0 < y1 in pixels (for x, y, width, height pass x, y, x + width, y + height)"
                if turned
                else ": all of it is outside; is it of another image, or of the image at another size?"
            )
            raise UserError(f"{box} covers nothing of its image, which is {size[1]} wide and {size[0]} high{remedy}")
        drawn[top:bottom, left:right] = FOREGROUND
    return drawn


def _in_fractions(box: tuple[float, float, float, float], dtype: np.dtype[Any], size: tuple[int, int]) -> bool:
    """Whether a box that is not empty is surely meant in fractions of its image.

    Written as floats, (0., 0., 1., 1.) is the whole image; written as integers, it is the first pixel.
    """
    x0, y0, x1, y1 = box
    near = all(abs(value) <= FRACTIONS for value in box) and max(size) > FRACTIONS and x1 > x0 and y1 > y0
    return near and ((x1 - x0) * (y1 - y0) < 1 or dtype.kind == "f")


def _points(annotation: ArrayLike, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Points as discs, [H, W]: 1 inside, 2 (unknown) elsewhere."""
    points = _numbers(annotation, "points")
    points = points[None] if points.ndim == 1 else points
    if points.ndim != 2 or points.shape[1] != 2 or points.dtype == np.bool_ or not points.size:
        raise UserError(f"points are rows of two numbers x, y; got {points.dtype} of shape {points.shape}")
    height, width = size
    radius = max(POINT_RADIUS * (height * width) ** 0.5, 0.5)
    rows, columns = np.arange(height)[:, None] + 0.5, np.arange(width) + 0.5
    drawn = np.full(size, UNKNOWN, np.uint8)
    for x, y in points.astype(np.float64):
        if not (0 <= x < width and 0 <= y < height):  # true for NaN as well
            raise UserError(
                f"point ({x:g}, {y:g}) is not in its image, which is {width} wide and {height} high; points are x, y "
                "in pixels"
            )
        if points.dtype.kind == "f" and points.max() <= 1 < max(size):
            raise UserError(
                f"point ({x:g}, {y:g}) looks like fractions of the image; multiply x by the width, {width}, and y by "
                f"the height, {height}"
            )
        drawn[(columns - np.floor(x) - 0.5) ** 2 + (rows - np.floor(y) - 0.5) ** 2 <= radius**2] = FOREGROUND
    return drawn
