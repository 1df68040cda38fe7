"""How masks, annotations and maps are painted: contours that show on any picture, visible strokes, maps with scales.

A tile is a square of `SIDE` pixels; a panel is a row of tiles below a line of text. Everything is painted at the size
at which it is seen, so lines are as wide on a thumbnail as on a photograph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIDE, GAP, HEAD = 320, 8, 40  # pixels: of a tile, between tiles, of the line of text above them
LAYOUTS = ((SIDE, GAP, HEAD), (160, 4, 16))  # of panels: today's, and that of earlier versions
FONT, LEAST_FONT = 28, 21  # pixels, of the text above a tile
LEAST_STROKE = 4  # pixels: width of a scribble at the least
LINE, CASING = 4, 1  # pixels: width of a contour, and of the dark line outside it
# Distinct for colour-blind readers, and unlike a picture that is painted in grey.
ANNOTATION, PREDICTION, TRUTH = (255, 176, 0), (30, 150, 255), (255, 60, 160)
DARK = (20, 20, 20)
TINTS = {"mask": 0.3, "box": 0.0, "scribble": 1.0}  # share of the colour inside an annotation
TINT = 0.4  # of the colour inside a prediction or a truth
# Black, violet, red, orange, pale yellow: brighter is more, also in grey print.
HEAT = np.array([(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)], np.float32)
SCALES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

Mask = NDArray[np.bool_]
Colour = tuple[int, int, int]


def fitted(width: int, height: int, side: int = SIDE) -> tuple[int, int]:
    """Width and height of a picture that fills a square tile as far as its shape allows."""
    scale = side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def tile(image: Image.Image, side: int = SIDE) -> Image.Image:
    """A picture that is at most a tile, on a white square: at its top, below the text of a panel."""
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, 0))
    return square


def painted(
    image_HW3: NDArray[np.uint8], mask_HW: Mask, colour: Colour, *, side: int = SIDE, kind: str = "", grey: bool = False
) -> Image.Image:
    """An image with a mask: its contour with a dark casing, and a light tint inside; `side` pixels long.

    Args:
        image_HW3: the picture, RGB.
        mask_HW: what is painted, of any size.
        colour: of the contour and the tint.
        side: length of the longer side of what is returned.
        kind: of an annotation, ``mask``, ``box`` (its outline alone) or ``scribble`` (its strokes, filled, at least
            `LEAST_STROKE` pixels wide); ``""``: a prediction or a truth.
        grey: paint the picture in grey, so that the mask's colour is not among its own.
    """
    size = fitted(image_HW3.shape[1], image_HW3.shape[0], side)
    picture = Image.fromarray(image_HW3).resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(picture.convert("L").convert("RGB") if grey else picture).astype(np.float32)
    if grey:
        pixels = 0.75 * pixels + 40  # neither black nor white, where the casing or the paper would be lost
    inside = strokes(mask_HW, size) if kind == "scribble" else resized_mask(mask_HW, size)
    share = TINTS.get(kind, TINT)
    pixels[inside] = (1 - share) * pixels[inside] + share * np.asarray(colour, np.float32)
    line = np.zeros_like(inside) if kind == "scribble" else _grown(inside, LINE // 2) & ~_shrunk(inside, LINE // 2)
    pixels[line] = colour
    pixels[_grown(inside | line, CASING) & ~(inside | line)] = DARK
    return Image.fromarray(pixels.astype(np.uint8))


def resized_mask(mask_HW: Mask, size: tuple[int, int]) -> Mask:
    """A mask at another (width, height), its edges smooth."""
    image = Image.fromarray(mask_HW.astype(np.uint8) * 255)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR)) > 127


def strokes(mask_HW: Mask, size: tuple[int, int]) -> Mask:
    """Strokes at another (width, height): no pixel is lost, and each is part of a square of `LEAST_STROKE` pixels."""
    rows, columns = np.nonzero(mask_HW)
    drawn: Mask = np.zeros((size[1], size[0]), bool)
    tall, wide = size[1] / mask_HW.shape[0], size[0] / mask_HW.shape[1]
    for dy in range(math.ceil(tall)):  # every pixel covers as many as it does when enlarged
        for dx in range(math.ceil(wide)):
            y = np.minimum((rows * tall + dy).astype(int), size[1] - 1)
            drawn[y, np.minimum((columns * wide + dx).astype(int), size[0] - 1)] = True
    thin = drawn & ~_grown(_shrunk(drawn, LEAST_STROKE // 2), LEAST_STROKE // 2)
    grown: Mask = drawn | _grown(thin, LEAST_STROKE // 2)
    return grown


def _filtered(mask_HW: Mask, kind: Callable[[int], ImageFilter.Filter], radius: int) -> Mask:
    image = Image.fromarray(mask_HW.astype(np.uint8) * 255)
    return np.asarray(image.filter(kind(2 * radius + 1))) > 127


def _grown(mask_HW: Mask, radius: int) -> Mask:
    return _filtered(mask_HW, ImageFilter.MaxFilter, radius)


def _shrunk(mask_HW: Mask, radius: int) -> Mask:
    return _filtered(mask_HW, ImageFilter.MinFilter, radius)


def heat(map_HW: NDArray[np.floating[Any]], shape: tuple[int, int], *, side: int = SIDE) -> Image.Image:
    """A map of values from 0, with its scale: black is 0, the brightest is the number beside the bar.

    Args:
        map_HW: values; nan counts as 0.
        shape: height and width of the picture that it belongs to, whose proportions it gets.
        side: length of the longer side of what is returned.
    """
    values = np.nan_to_num(np.asarray(map_HW, np.float32)).clip(0)
    most = float(values.max())
    top = next((scale for scale in SCALES if most <= scale * 1.001), most)
    size = fitted(shape[1], shape[0], side)
    smooth = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))
    image = Image.fromarray(coloured(smooth / top))
    _draw_scale(image, top)
    return image


def coloured(share: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Values in [0, 1] as colours of `HEAT`, uint8 [..., 3]."""
    place = np.clip(share, 0, 1) * (len(HEAT) - 1)
    low = np.minimum(place.astype(int), len(HEAT) - 2)
    part = (place - low)[..., None]
    return ((1 - part) * HEAT[low] + part * HEAT[low + 1]).astype(np.uint8)


def _draw_scale(image: Image.Image, top: float) -> None:
    """The bar in the lower left corner, from 0 to `top`."""
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(max(9, image.width // 14))
    length, height, left = image.width // 3, max(4, image.width // 28), image.width // 11
    below = image.height - image.width // 32
    bar = coloured(np.broadcast_to(np.linspace(0, 1, length, dtype=np.float32), (height, length)))
    draw.rectangle((left - 1, below - height - 1, left + length, below), outline="white")
    image.paste(Image.fromarray(bar), (left, below - height))
    for x, anchor, text in ((left - 5, "rm", "0"), (left + length + 5, "lm", f"{top:.2g}")):
        draw.text((x, below - height / 2), text, "white", font, anchor, stroke_width=2, stroke_fill="black")


def mosaic(tiles: Sequence[Image.Image]) -> Image.Image:
    """Square pictures as one tile."""
    count = mosaic_side(len(tiles))
    part = SIDE // count
    sheet = Image.new("RGB", (SIDE, SIDE), "white")
    for i, image in enumerate(tiles):
        sheet.paste(image, (i % count * part, i // count * part))
    return sheet


def mosaic_side(count: int) -> int:
    """How many of `count` pictures are in a row of a mosaic."""
    return math.ceil(math.sqrt(count))


def row_of(tiles: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Tiles in a row, each below its name, which is made smaller, then shortened, to its width."""
    sheet = Image.new("RGB", (len(tiles) * (SIDE + GAP) - GAP, SIDE + HEAD), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (name, image) in enumerate(tiles):
        size = FONT
        while size > LEAST_FONT and draw.textlength(name, font=ImageFont.load_default(size)) > SIDE:
            size -= 1
        font = ImageFont.load_default(size)
        while len(name) > 4 and draw.textlength(name, font=font) > SIDE:
            name = name[:-2] + "…"
        draw.text((i * (SIDE + GAP), HEAD - 9), name, "black", font, "ls")
        sheet.paste(image, (i * (SIDE + GAP), HEAD))
    return sheet
