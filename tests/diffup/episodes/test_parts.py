"""Parts of objects: what is kept, what becomes background, and that trainings without them are unchanged."""

from __future__ import annotations

import numpy as np
import pytest

from diffup.episodes.parts import SHARES, Part


def two_objects() -> np.ndarray:
    mask = np.zeros((20, 12), np.uint8)
    mask[2:12, 1:4] = 1  # 10 rows
    mask[6:10, 7:10] = 1  # 4 rows
    mask[0, :] = 255
    return mask


def test_each_object_is_cut_by_its_own_height() -> None:
    mask = two_objects()
    upper, lower = Part(0.5, True).of(mask), Part(0.5, False).of(mask)
    assert np.flatnonzero((upper[:, 1:4] == 1).any(1)).tolist() == [2, 3, 4, 5, 6]
    assert np.flatnonzero((upper[:, 7:10] == 1).any(1)).tolist() == [6, 7]
    assert ((upper == 1) ^ (lower == 1))[mask == 1].all() and not (upper == 1)[mask != 1].any()
    assert (upper == 255).tolist() == (mask == 255).tolist() == (lower == 255).tolist()
    assert (mask == two_objects()).all()


@pytest.mark.parametrize("upper", [True, False])
@pytest.mark.parametrize("share", SHARES)
def test_a_single_row_is_left(share: float, upper: bool) -> None:
    mask = np.zeros((3, 3), np.uint8)
    mask[1, 1] = 1
    assert (Part(share, upper).of(mask) == mask).all()
    none = np.zeros((3, 3), np.uint8)
    assert (Part(share, upper).of(none) == none).all()


def test_interlocked_objects_are_cut_apart() -> None:
    """Boxes overlap, objects don't: each loses rows of its own alone."""
    mask = np.zeros((12, 12), np.uint8)
    mask[0:10, 0] = mask[9, 0:8] = 1  # an L
    mask[0:4, 4:8] = 1  # a block inside its box
    kept = Part(0.5, False).of(mask)
    assert np.flatnonzero((kept[:, 4:8] == 1).all(1)).tolist() == [2, 3, 9]
    assert np.flatnonzero(kept[:, 0] == 1).tolist() == [5, 6, 7, 8, 9]
