"""A mask drawn over its photograph: seen on any picture, at any size, and nothing else is changed."""

from __future__ import annotations

import numpy as np
import pytest

from diffup.data.overlay import COLOURS, contour_width, distinct_colour, overlay


def disc(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A grey picture and a mask in its middle."""
    y, x = np.ogrid[: size[0], : size[1]]
    mask = np.hypot(y - size[0] / 2, x - size[1] / 2) < min(size) / 4
    return np.full((*size, 3), 120, np.uint8), mask


@pytest.mark.parametrize("colour", COLOURS)
def test_the_colour_is_not_one_of_the_pictures(colour: tuple[int, int, int]) -> None:
    picture = np.full((40, 50, 3), 90, np.uint8)
    picture[5:25, 5:30] = colour  # a quarter of it is enough
    assert distinct_colour(picture) != colour


@pytest.mark.parametrize("size", [(40, 60), (480, 640), (1500, 1000)])
def test_the_contour_has_its_width_at_every_size_and_the_rest_is_as_it_was(size: tuple[int, int]) -> None:
    picture, mask = disc(size)
    drawn = np.asarray(overlay(picture, mask, alpha=0.0, colour=(255, 0, 200)))
    assert drawn.shape == picture.shape
    line = (drawn[size[0] // 2] == (255, 0, 200)).all(-1)  # crosses the contour twice
    width = contour_width(size)
    assert abs(int(line.sum()) - 2 * width) <= 2
    assert width == max(2, round(0.006 * min(size)))
    far = np.hypot(*(np.indices(size) - np.array(size).reshape(2, 1, 1) / 2)) > min(size) / 4 + 3 * width + 3
    assert (drawn[far] == 120).all()


def test_the_tint_is_inside_the_mask_alone() -> None:
    picture, mask = disc((100, 100))
    drawn = np.asarray(overlay(picture, mask, alpha=0.5, colour=(20, 220, 120)))
    assert np.abs(drawn[50, 50].astype(int) - (70, 170, 120)).max() <= 1
    assert (drawn[2, 2] == 120).all()


@pytest.mark.parametrize("filled", [False, True])
def test_a_mask_of_nothing_or_everything_has_no_contour(filled: bool) -> None:
    picture = np.full((50, 70, 3), 120, np.uint8)
    drawn = np.asarray(overlay(picture, np.full((50, 70), filled), alpha=0.0))
    assert (drawn == picture).all()


def test_the_picture_that_was_given_stays_as_it_is() -> None:
    picture, mask = disc((60, 60))
    overlay(picture, mask)
    assert (picture == 120).all()
