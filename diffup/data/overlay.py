"""A mask over its photograph: a light tint and a contour, in a colour that the picture does not have.

Letters: H W size of the image in pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Colour = tuple[int, int, int]

# Saturated and far from each other, also for colour-blind readers; the first wins a tie.
COLOURS: tuple[Colour, ...] = ((0, 150, 255), (255, 140, 0), (255, 0, 200), (0, 210, 110), (255, 230, 0))
CONTOUR = 0.006  # width of the contour as a share of the shorter side
THINNEST = 2  # pixels
HALO: Colour = (255, 255, 255)  # on both sides of the contour, so that it is seen on its own colour as well
SAMPLE = 64  # side in pixels that the colours of a picture are looked at
ALIKE = 10  # percentile of the distances between picture and colour that counts: the part that is most alike


def overlay(
    image_HW3: NDArray[np.uint8], mask_HW: NDArray[np.bool_], alpha: float = 0.35, colour: Colour | None = None
) -> Image.Image:
    """The picture with the mask tinted and outlined.

    Args:
        image_HW3: RGB.
        mask_HW: what is tinted.
        alpha: share of the colour inside the mask, in [0, 1].
        colour: RGB; None: `distinct_colour` of the picture.
    """
    colour = distinct_colour(image_HW3) if colour is None else colour
    width = contour_width((mask_HW.shape[0], mask_HW.shape[1]))
    mask = Image.fromarray(mask_HW * np.uint8(255))
    drawn = Image.fromarray(image_HW3).copy()
    drawn.paste(colour, mask=mask.point([round(alpha * value) for value in range(256)]))
    drawn.paste(HALO, mask=_border(mask, width / 2 + max(1, width // 3)))
    drawn.paste(colour, mask=_border(mask, width / 2))
    return drawn


def contour_width(size: tuple[int, int]) -> int:
    """Width in pixels of the contour on an image of `size` (H, W)."""
    return max(THINNEST, round(CONTOUR * min(size)))


def distinct_colour(image_HW3: NDArray[np.uint8]) -> Colour:
    """The one of `COLOURS` that is farthest, in Lab, from the colours of the picture that are most like it."""
    from skimage.color import rgb2lab

    small = Image.fromarray(image_HW3).resize((SAMPLE, SAMPLE), Image.Resampling.BOX)
    picture = rgb2lab(np.asarray(small)).reshape(-1, 1, 3)
    candidates = rgb2lab(np.asarray(COLOURS, np.uint8)[None])[0]
    distances = np.linalg.norm(picture - candidates, axis=-1)
    return COLOURS[int(np.percentile(distances, ALIKE, axis=0).argmax())]


def _border(mask: Image.Image, reach: float) -> Image.Image:
    """Where both sides of the mask are within `reach` pixels; the border of the image is no border."""
    return mask.filter(ImageFilter.BoxBlur(reach)).point([0, *[255] * 254, 0])
