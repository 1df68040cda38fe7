"""The one reader of label images: PNG files whose values are exactly those that were drawn, else refused.

`read_labels` gives the labels of an index mask (0 background, then classes), `read_binary` the one class of a
black-and-white mask. Refused are files of a lossy format under a PNG's name, colour, transparency, and values that
can't be meant. Grey PNGs of 1, 2 and 4 bits give their true values, which Pillow would multiply.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffup.data.images import TURNS, has_16_bits, open_picture
from diffup.errors import UserError

MASK_SUFFIX = ".png"  # in any case
LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")
DEPTH, COLOUR_TYPE = 24, 25  # places of a PNG's bit depth and colour type (IHDR, its first chunk)
GREY = 0
STEPS = {2: 85, 4: 17}  # what Pillow multiplies grey values of so many bits by
FOREGROUND = 127  # pixels of a black-and-white mask above this are the class
MIDDLE = (32, 223)  # between them a pixel is neither black nor white
MOST_GREY, MOST_LEVELS = 0.25, 32  # share of such pixels, and number of values, from which it is a photograph
MOST_LABELS, MOST_EDGES = 8, 0.2  # more values on fewer pixels are the soft edges of one class, not labels
MOST_COLOUR = 0.1  # share of the pixels that are bright in some channel, but not in all, from which it is a colour map
FEWEST_SMEARED = 3  # labels of a mask that are nowhere larger than an edge
HALF = (100, 160)  # greys between them are the unknown part of a trimap, not a label
BLACK, VOID_COLOUR = (0, 0, 0), (224, 224, 192)  # colours of background and void in VOC's palette

ADVICE = "save it with the class white (255) and all else black (0)"

Colour = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Labels:
    """A label image that was read.

    Attributes:
        values: uint8 [H, W].
        checksum: crc32 of the file's bytes.
        palette: label → colour, as far as the file has a palette.
    """

    values: NDArray[np.uint8]
    checksum: int
    palette: Mapping[int, Colour] = field(default_factory=dict)


def read_labels(path: Path, *, upright: bool = False) -> Labels:
    """The labels of a palette or grey PNG, as they are stored, or turned as the file's EXIF orientation asks.

    Raises:
        UserError: missing, damaged, no PNG, colour, or labels above 255; the message does not name the file.
    """
    image, content = _open(path, upright)
    if image.mode not in ("P", "L", "1") and not _is_deep(image):
        raise UserError(
            f"mask is refused: mode {image.mode}; labels need a palette or an 8-bit grey PNG. Save it as one, with the "
            "label of each pixel as its value"
        )
    values = np.asarray(image)
    if _is_deep(image) and int(values.max(initial=0)) > 255:
        raise UserError(f"mask is refused: 16-bit labels up to {int(values.max())}; labels are 0-255")
    step = STEPS.get(content[DEPTH], 1) if content[COLOUR_TYPE] == GREY else 1
    return Labels((values // step).astype(np.uint8), zlib.crc32(content), palette_of(image))


def palette_of(image: Image.Image) -> dict[int, Colour]:
    """Label → colour; empty without a palette."""
    stated = (image.getpalette("RGB") or []) if image.mode == "P" else []
    return dict(enumerate(zip(stated[::3], stated[1::3], stated[2::3])))


def read_binary(path: Path, *, upright: bool = False) -> Labels:
    """A black-and-white mask: 1 where it is above 127 (of 255), 0 elsewhere.

    Raises:
        UserError: missing, damaged, no PNG, coloured or transparent, mostly grey, or dark without being black (0/1
            masks); the message does not name the file.
    """
    image, content = _open(path, upright)
    if _is_deep(image):
        channels = np.asarray(image).astype(np.int64)[:, :, None]
        if 0 < int(channels.max(initial=0)) <= 255:
            raise UserError(
                f"mask is refused: it has 16 bits, in which white is 65535, but its largest value is {channels.max()}; "
                "save it with 8 bits, the class white (255) and all else black (0)"
            )
        channels >>= 8
    else:
        clear = "A" in image.getbands() or "transparency" in image.info
        if clear and int(np.asarray(image.convert("RGBA"))[:, :, 3].min(initial=255)) < 255:
            raise UserError(
                "mask is refused: it is partly transparent, whose meaning can't be known; save it in "
                "black and white, without an alpha channel"
            )
        channels = np.asarray(image.convert("RGB")).astype(np.int64)
        if has_16_bits(image, content) and not channels.any():  # the lower 8 bits, which Pillow leaves out, may hold it
            raise UserError(
                "mask is refused: it has 16 bits a channel and is black in the upper 8; save it with 8 bits"
            )
    white = channels > FOREGROUND
    anywhere, everywhere = white.any(axis=2), white.all(axis=2)
    grey = ((channels > MIDDLE[0]) & (channels < MIDDLE[1])).all(axis=2)
    if int((anywhere & ~everywhere).sum()) > MOST_COLOUR * int(anywhere.sum()):
        raise UserError(f"mask is refused: it is coloured; {ADVICE}")
    top = int(channels.max(initial=0))
    if 0 < top <= FOREGROUND:
        raise UserError(
            f"mask is refused: its largest value is {top}, and only pixels above {FOREGROUND} are the class; {ADVICE}"
        )
    if float(grey.mean()) > MOST_GREY and len(np.unique(channels)) > MOST_LEVELS:
        raise UserError(
            f"mask is refused: {100 * float(grey.mean()):.0f} % of its pixels are neither black nor white, as in a "
            f"photograph; {ADVICE}"
        )
    return Labels((channels.mean(axis=2) > FOREGROUND).astype(np.uint8), zlib.crc32(content))


def read_drawn(path: Path) -> NDArray[np.uint8]:
    """A mask or scribble of one class, as a person draws it: 0 background, 1 the class, 2 unknown; [H, W].

    Of 0 and another value that is the class, whatever it is (1, 38, 255), and of two colours of a palette the one that
    isn't black. 0, 1 and 2 are taken as they are. Beside a larger label, 255 is void, and background as in a data set's
    supports. Grey edges are cut at 127. It is turned upright, as its picture is.

    Raises:
        UserError: as for `read_binary`, or several labels, of which any may be the class; the message does not name
            the file.
    """
    try:
        labels = read_labels(path, upright=True)
    except UserError as error:
        if "labels need a palette" not in str(error):
            raise
        return read_binary(path, upright=True).values
    values = black_first(labels.values, labels.palette)
    found = [int(v) for v in np.unique(values)]
    if found[-1] <= 2 and found not in ([0, 2], [1, 2]):  # 0 and 2 are a label's
        return values
    alone = len(found) == 1 or (len(found) == 2 and found[0] == 0)
    thin = len(found) == 3 and found[::2] == [0, 255] and not labels.palette and not _solid(values == found[1])
    if alone or (not thin and _beside_void(values, found, bool(labels.palette))):
        return np.where(values == found[min(len(found) - 1, 1)], np.uint8(1), np.uint8(0))
    edges = float(((values != found[0]) & (values != found[-1])).mean())
    soft = found[0] == 0 and found[-1] == 255 and found[-2] > FOREGROUND and len(found) > 3
    if thin or ((soft or len(found) > MOST_LABELS) and edges < MOST_EDGES):
        return read_binary(path, upright=True).values
    raise UserError(
        f"mask is refused: it holds the labels {', '.join(map(str, found[:5]))}, of which one is the class; pass that "
        "one's pixels as an array"
    )


def black_first(values_HW: NDArray[np.uint8], palette: Mapping[int, Colour]) -> NDArray[np.uint8]:
    """Labels as they are; or, where a program has sorted the palette so that black is no longer 0, 1 for what isn't.

    Raises:
        UserError: it was sorted and there are more than two labels; the message does not name the file.
    """
    used = [int(label) for label in np.unique(values_HW)]
    black = [label for label in used if palette.get(label) == BLACK]
    if len(black) != 1 or black == [0]:
        return values_HW
    if len(used) == 2:
        return np.where(values_HW == black[0], np.uint8(0), np.uint8(1))
    if used[0] == 0:
        raise UserError(f"mask is refused: {sorted_palette(palette[0], black[0])}")
    return values_HW


def sorted_palette(colour: Colour, black: int) -> str:
    """What is wrong with a mask whose background isn't label 0."""
    return (
        f"label 0, the background, has the colour {colour}, and label {black} is black: the program that wrote it has "
        "sorted its palette, and labels are no longer what was drawn. Save it with black as label 0"
    )


def _solid(shown_HW: NDArray[np.bool_]) -> bool:
    """Whether it holds 3 by 3 pixels anywhere, which the soft edges of a shape don't."""
    if min(shown_HW.shape) < 3:
        return bool(shown_HW.all())
    return bool(np.lib.stride_tricks.sliding_window_view(shown_HW, (3, 3)).all(axis=(2, 3)).any())


def _beside_void(values_HW: NDArray[np.uint8], found: list[int], coloured: bool) -> bool:
    """Whether labels are 0, a class, and 255 for void: a palette tells, in grey the class is the larger of both."""
    if len(found) != 3 or found[0] != 0 or found[1] > FOREGROUND or found[2] != 255:
        return False
    larger = int((values_HW == found[1]).sum()) >= int((values_HW == 255).sum())
    return coloured or (larger and not HALF[0] <= found[1] <= HALF[1])


def smeared(values_HW: NDArray[np.uint8]) -> bool:
    """Whether several labels are nowhere as large as 3 by 3 pixels, as interpolation or JPEG leaves them."""
    inner = values_HW[1:-1, 1:-1]
    solid = np.ones(inner.shape, np.bool_)
    height, width = inner.shape
    for row in range(3):
        for column in range(3):
            solid &= values_HW[row : row + height, column : column + width] == inner
    here, whole = np.bincount(values_HW.reshape(-1), minlength=256), np.bincount(inner[solid], minlength=256)
    return int(((here > 0) & (whole == 0)).sum()) >= FEWEST_SMEARED


def palette_faults(
    palettes: Mapping[str, Mapping[int, Colour]], used: Mapping[str, frozenset[int]], void: int | None = 255
) -> tuple[list[str], list[str]]:
    """Compare the palettes of the label images of a data set.

    Args:
        palettes: label → colour by file; files without a palette are left out.
        used: labels that occur, by file.
        void: the label that is neither background nor a class.

    Returns:
        Problems: files that give a label the colour which another label has in most files, or which background and
        void have in VOC's palette, as programs that optimise PNG files leave them. And files whose colours merely
        differ, which may be meant.
    """
    drawn: dict[int, Counter[Colour]] = {}
    stated: dict[int, Counter[Colour]] = {}
    most = max((label for labels in used.values() for label in labels if label != 255), default=0)
    for name in sorted(palettes):
        for label, colour in palettes[name].items():
            if label in used[name]:
                drawn.setdefault(label, Counter())[colour] += 1
            elif label <= most + 1:
                stated.setdefault(label, Counter())[colour] += 1
    usual = {label: (drawn.get(label) or stated[label]).most_common(1)[0][0] for label in {*drawn, *stated}}
    label_of: dict[Colour, list[int]] = {}
    for label, colour in sorted(usual.items()):
        label_of.setdefault(colour, []).append(label)
    moved, other = [], []
    for name in sorted(palettes):
        colours = {label: palettes[name][label] for label in used[name] if label in palettes[name]}
        differing = {label: colour for label, colour in colours.items() if colour != usual[label]}
        telling = len(set(colours.values())) == len(colours)  # a palette of one colour says nothing
        homes = {
            label: label_of[c] for label, c in differing.items() if telling and label not in label_of.get(c, [label])
        }
        black = [label for label, colour in colours.items() if colour == BLACK]
        astray = [label for label, colour in colours.items() if colour == VOID_COLOUR and label != void]
        if 0 in colours and len(black) == 1 and black != [0]:
            moved.append(f"{name}: {sorted_palette(colours[0], black[0])}")
        elif astray:
            moved.append(
                f"{name}: label {astray[0]} has the colour {VOID_COLOUR}, which is that of void in VOC's palette: the "
                f"program that wrote it has sorted its palette. Save it with void as label {void}"
            )
        elif homes:
            label = min(homes)
            moved.append(
                f"{name}: label {label} has the colour {colours[label]}, which is that of label {homes[label][0]} in "
                "other files: the labels of these files don't mean the same. Save all masks with one palette"
            )
        elif differing:
            other.append(name)
    return moved, other


def _open(path: Path, upright: bool) -> tuple[Image.Image, bytes]:
    image, content, orientation = open_picture(path, "mask")
    if image.format != "PNG":
        lossy = ", which changes the values that were drawn" if image.format in LOSSY else ""
        raise UserError(
            f"mask is refused: it is a {image.format} file{lossy}, whatever its name says. Export it as PNG from the "
            "program that it was drawn with"
        )
    if upright and orientation != 1:
        image = image.transpose(TURNS[orientation])
        image.format = "PNG"  # a turned picture has none
    return image, content


def _is_deep(image: Image.Image) -> bool:
    """Whether it is a grey PNG of 16 bits; Pillow before 11 calls its mode I."""
    return image.mode.startswith("I")
