"""The contact sheet of a data set: images of each class with its mask, to see at a glance whether masks fit."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from diffup.data.dataset import Dataset
from diffup.data.spec import PAIRED, VOID

SIDE, GAP, HEAD = 220, 8, 22  # pixels: of a tile, between tiles, of the line of text above
PER_CLASS, CLASSES, COLUMNS = 2, 24, 6
TINT, WHITE, EDGE = np.array([255, 0, 200]), (255, 255, 255), 3


def contact_sheet(dataset: Dataset) -> Image.Image:
    """The first images in which a class is large enough, of the first `CLASSES` classes.

    The class is tinted within a contour, void is grey.
    """
    tiles = []
    for c in range(min(CLASSES, len(dataset.classes))):
        shown = dataset.eligible(c, PAIRED) or [i for i in dataset.image_ids if c in dataset.areas[i]]
        tiles += [(c, image_id) for image_id in shown[:PER_CLASS]]
    columns = min(COLUMNS, max(1, len(tiles)))
    rows = max(1, -(-len(tiles) // columns))
    sheet = Image.new("RGB", (columns * (SIDE + GAP) + GAP, rows * (SIDE + HEAD + GAP) + GAP), WHITE)
    pen, font = ImageDraw.Draw(sheet), _font(15)
    for place, (class_index, image_id) in enumerate(tiles):
        x, y = GAP + place % columns * (SIDE + GAP), GAP + place // columns * (SIDE + HEAD + GAP)
        pen.text((x, y + 1), _fitted(f"{dataset.classes[class_index]}: {image_id}", pen, font), fill="black", font=font)
        tile = _marked(dataset.image(image_id), dataset.mask(image_id, class_index))
        sheet.paste(tile, (x + (SIDE - tile.width) // 2, y + HEAD + (SIDE - tile.height) // 2))
    return sheet


def _marked(image_HW3: NDArray[np.uint8], mask_HW: NDArray[np.uint8]) -> Image.Image:
    """An image within a square of `SIDE`, its mask in light colour with a contour of `EDGE` pixels."""
    height, width = mask_HW.shape
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    pixels = np.asarray(Image.fromarray(image_HW3).resize(size, Image.Resampling.BILINEAR)).astype(np.float64)
    values = np.asarray(Image.fromarray(mask_HW).resize(size, Image.Resampling.NEAREST))
    inside, grown = values == 1, values == 1
    padded = np.pad(inside, EDGE)
    for dy in range(2 * EDGE + 1):
        for dx in range(2 * EDGE + 1):
            if (dy - EDGE) ** 2 + (dx - EDGE) ** 2 <= EDGE**2:
                grown = grown | padded[dy : dy + size[1], dx : dx + size[0]]
    pixels[inside] = 0.75 * pixels[inside] + 0.25 * TINT
    pixels[values == VOID] = 0.5 * pixels[values == VOID] + 64
    pixels[grown & ~inside] = TINT
    return Image.fromarray(pixels.round().astype(np.uint8))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu, which has most alphabets, where matplotlib is installed; else Pillow's own."""
    spec = find_spec("matplotlib")
    path = Path(spec.origin or "").parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if spec else None
    return ImageFont.truetype(str(path), size) if path and path.is_file() else ImageFont.load_default(size)


def _fitted(text: str, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """A text cut to the width of a tile."""
    if pen.textlength(text, font=font) <= SIDE:
        return text
    while text and pen.textlength(f"{text}…", font=font) > SIDE:
        text = text[:-1]
    return f"{text}…"
