"""What is painted can be seen: contours and strokes of some width at any size, colours that no picture has, scales."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from diffup.evaluation.drawing import (
    ANNOTATION,
    DARK,
    HEAT,
    LEAST_STROKE,
    LINE,
    PREDICTION,
    SIDE,
    TRUTH,
    coloured,
    fitted,
    heat,
    painted,
    strokes,
)

BUSY = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)  # has every colour


def square(height: int = 60, width: int = 90) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height // 2, width // 4 : width // 2] = True
    return mask


def has(image: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (image == np.asarray(colour)).all(axis=-1)
    return found


@pytest.mark.parametrize("side", [80, 160, 320])
@pytest.mark.parametrize("height", [40, 200, 1500])
def test_a_stroke_of_one_pixel_is_wide_enough_at_any_size(height: int, side: int) -> None:
    """Whatever is drawn is made of squares of the least width, and covers where the stroke runs."""
    drawn = np.zeros((height, height), bool)
    line = np.arange(height // 5, 4 * height // 5)
    drawn[line, line // 2] = True
    seen = strokes(drawn, (side, side))
    opened = ndimage.binary_opening(seen, np.ones((LEAST_STROKE, LEAST_STROKE)))
    assert (opened == seen).all() and seen.any()
    rows, columns = np.nonzero(drawn)
    assert seen[rows * side // height, columns * side // height].all()
    assert ndimage.label(seen, np.ones((3, 3)))[1] == 1, "the stroke has gaps"


def test_a_wide_stroke_is_not_made_wider() -> None:
    mask = square(320, 320)
    assert (strokes(mask, (320, 320)) == mask).all()


@pytest.mark.parametrize("side", [106, 160, 320])
def test_a_contour_is_as_wide_on_a_thumbnail_and_has_a_dark_casing(side: int) -> None:
    image = np.asarray(painted(BUSY, square(), ANNOTATION, side=side, kind="box"))
    line = has(image, ANNOTATION)
    runs = ndimage.binary_opening(line, np.ones((LINE, LINE)))
    assert runs.sum() > 0.9 * line.sum()
    around = ndimage.binary_dilation(line, np.ones((3, 3))) & ~line
    outer = ndimage.binary_fill_holes(line)
    assert has(image, DARK)[around & ~outer].mean() > 0.95


def test_a_box_is_an_outline_and_a_mask_is_tinted_inside() -> None:
    plain = np.full((60, 90, 3), 100, np.uint8)
    box, mask = (np.asarray(painted(plain, square(), ANNOTATION, kind=kind)) for kind in ("box", "mask"))
    middle = (int(22 / 60 * box.shape[0]), int(33 / 90 * box.shape[1]))
    assert tuple(box[middle]) == (100, 100, 100)
    assert 0 < abs(mask[middle].astype(int) - 100).max() < 100, "light, so that what is annotated can be seen"


@pytest.mark.parametrize("colour", [PREDICTION, TRUTH])
def test_the_colour_of_a_mask_is_not_among_those_of_the_picture(colour: tuple[int, int, int]) -> None:
    """A picture with all colours is painted in grey, so that the mask is the only thing with a hue."""
    image = np.asarray(painted(BUSY, square(), colour, grey=True)).astype(int)
    hue = np.ptp(image, axis=2) > 20
    inside = np.asarray(ndimage.zoom(square().astype(float), np.array(image.shape[:2]) / (60, 90), order=1)) > 0.5
    assert hue[inside].mean() > 0.99
    assert not hue[~ndimage.binary_dilation(inside, np.ones((9, 9)))].any()


def test_pictures_keep_their_proportions() -> None:
    assert fitted(90, 60) == (SIDE, round(SIDE * 60 / 90)) and fitted(1, 4000, 100) == (1, 100)
    assert heat(np.zeros((8, 8)), (60, 90)).size == fitted(90, 60) == painted(BUSY, square(), TRUTH).size


def test_maps_have_round_scales_and_brightness_follows_the_value() -> None:
    """The same value has the same colour in maps of the same scale, which is the next round number."""
    values = np.zeros((8, 8), np.float32)
    values[:, 4:] = 0.3
    image = np.asarray(heat(values, (64, 64)))
    assert np.abs(image[10, -10].astype(int) - coloured(np.array(0.3 / 0.5, np.float32))).max() <= 1
    assert tuple(image[10, 10]) == tuple(HEAT[0].astype(int))
    scale = [coloured(np.linspace(0, 1, 50)).astype(float) @ (0.299, 0.587, 0.114)]
    assert (np.diff(scale) > 0).all(), "not monotone in grey print"
    corner = image[-SIDE // 8 :, : SIDE // 2].astype(int)
    assert (np.abs(corner - HEAT[-1].astype(int)).sum(axis=2) < 20).any(), "no bar up to the brightest colour"


@pytest.mark.parametrize("values", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.full((4, 4), 7.0)])
def test_odd_maps_are_drawn(values: NDArray[np.float64]) -> None:
    assert heat(values, (10, 20)).size == fitted(20, 10)
