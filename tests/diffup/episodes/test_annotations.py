"""Boxes and scribbles from masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from diffup.data.dataset import open_dataset
from diffup.episodes.annotations import annotate
from diffup.episodes.protocols import get_protocol

PARTS = ("toy", "image", 3, 0)
masks = arrays(
    np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.sampled_from([0, 1, 255])
).filter(lambda mask: bool((mask == 1).any()))


def disc(size: int, radius: float) -> NDArray[np.uint8]:
    """A disc in the middle of a square."""
    y, x = np.mgrid[:size, :size] - size // 2
    return (y**2 + x**2 < radius**2).astype(np.uint8)


def large_components(mask: NDArray[np.uint8]) -> tuple[NDArray[np.int32], set[int]]:
    """Labels of the components, and which of them hold 1 % of the class (all, if none does)."""
    labels, number = ndimage.label(mask == 1, structure=np.ones((3, 3)))
    areas = np.bincount(labels.reshape(-1))[1:]
    large = {i + 1 for i in range(number) if areas[i] >= 0.01 * areas.sum()}
    return labels, large or set(range(1, number + 1))


def test_mask_takes_void_as_background() -> None:
    mask = np.array([[0, 1, 255]], np.uint8)
    assert annotate(mask, "mask", seed_parts=PARTS).tolist() == [[0, 1, 0]]


def test_boxes_are_tight_filled_and_inclusive() -> None:
    mask = np.zeros((10, 12), np.uint8)
    mask[2, 3:6] = mask[2:5, 3] = 1  # an angle from (2, 3) to (4, 5)
    mask[8, 9:11] = 1
    box = annotate(mask, "box", seed_parts=PARTS)
    expected = np.zeros_like(mask)
    expected[2:5, 3:6] = expected[8, 9:11] = 1
    assert (box == expected).all()
    whole = annotate(mask, "box", seed_parts=PARTS, boxes="whole")
    expected[2:9, 3:11] = 1
    assert (whole == expected).all()


def test_one_pixel_is_its_own_box_and_scribble() -> None:
    mask = np.zeros((5, 5), np.uint8)
    mask[4, 0] = 1
    assert (annotate(mask, "box", seed_parts=PARTS) == mask).all()
    assert ((annotate(mask, "scribble", seed_parts=PARTS) == 1) == (mask == 1)).all()


def test_components_that_touch_at_a_corner_are_one() -> None:
    mask = np.eye(6, dtype=np.uint8)
    assert annotate(mask, "box", seed_parts=PARTS).all()


def test_specks_get_no_annotation_unless_there_is_nothing_else() -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[:20, :20] = 1  # 400 pixels
    mask[30, 30:33] = 1  # 3 of 403: below 1 %
    mask[36, 30:35] = 1  # 5 of 408: above
    box, scribble = (annotate(mask, kind, seed_parts=PARTS) for kind in ("box", "scribble"))
    assert not box[30, 30:33].any() and box[36, 30:35].all()
    assert (scribble[30] == 2).all() and (scribble[36, 30:35] == 1).any()
    dust = np.zeros((60, 60), np.uint8)
    dust[::3, ::3] = 1  # 400 specks of 0.25 %
    assert (annotate(dust, "box", seed_parts=PARTS) == dust).all()


@given(masks, st.sampled_from([0.02, 0.08, 0.3]))
@settings(max_examples=150, deadline=None)
def test_scribbles_stay_inside_and_reach_every_large_component(mask: NDArray[np.uint8], width: float) -> None:
    scribble = annotate(mask, "scribble", seed_parts=PARTS, scribble_width=width)
    assert set(np.unique(scribble)) <= {1, 2}
    ink = scribble == 1
    assert not ink[mask != 1].any()
    labels, large = large_components(mask)
    assert set(np.unique(labels[ink]).tolist()) == large


@given(masks)
@settings(max_examples=100, deadline=None)
def test_boxes_hold_what_they_annotate(mask: NDArray[np.uint8]) -> None:
    whole = annotate(mask, "box", seed_parts=PARTS, boxes="whole") == 1
    parts = annotate(mask, "box", seed_parts=PARTS) == 1
    assert whole[mask == 1].all() and whole[parts].all()
    labels, large = large_components(mask)
    assert parts[np.isin(labels, list(large))].all()
    rows, columns = np.nonzero(mask == 1)
    assert whole.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


def test_a_scribble_depends_on_what_it_is_of_and_nothing_else() -> None:
    mask = disc(60, 20)
    first = annotate(mask, "scribble", seed_parts=PARTS)
    np.random.seed(7)
    annotate(disc(30, 9), "scribble", seed_parts=("other", "image", 0, 0))
    assert (annotate(mask, "scribble", seed_parts=PARTS) == first).all()
    for other in (("x", "image", 3, 0), ("toy", "x", 3, 0), ("toy", "image", 4, 0), ("toy", "image", 3, 1)):
        assert (annotate(mask, "scribble", seed_parts=other) != first).any()


def test_a_scribble_does_not_depend_on_what_surrounds_the_object() -> None:
    mask = disc(60, 20)
    shifted = np.zeros((90, 120), np.uint8)
    shifted[25:85, 13:73] = mask
    scribble = annotate(shifted, "scribble", seed_parts=PARTS)
    assert (scribble[25:85, 13:73] == annotate(mask, "scribble", seed_parts=PARTS)).all()


def test_a_stroke_runs_along_the_object() -> None:
    """On a bar of 200 x 20 the stroke covers most of its length, about √4000 · 0.08 = 5 px wide, near its axis."""
    bar = np.zeros((60, 220), np.uint8)
    bar[20:40, 10:210] = 1
    rows, columns = np.nonzero(annotate(bar, "scribble", seed_parts=PARTS) == 1)
    assert 120 < np.ptp(columns) <= 200
    assert 3 < len(rows) / np.ptp(columns) < 8
    assert abs(rows.mean() - 29.5) < 3


def test_round_objects_get_a_stroke_and_not_a_dot() -> None:
    spans = []
    for seed in range(8):
        rows, columns = np.nonzero(annotate(disc(80, 30), "scribble", seed_parts=("toy", "i", 0, seed)) == 1)
        spans.append(np.hypot(np.ptp(rows), np.ptp(columns)))
    assert min(spans) > 25


def test_ink_grows_with_the_width() -> None:
    shares = [
        (annotate(disc(120, 50), "scribble", seed_parts=PARTS, scribble_width=width) == 1).sum()
        for width in (0.04, 0.16)
    ]
    assert 2.5 < shares[1] / shares[0] < 5.5


@pytest.mark.parametrize("kind", ["mask", "box", "scribble"])
def test_an_empty_mask_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="no pixel of the class"):
        annotate(np.full((4, 4), 255, np.uint8), kind, seed_parts=PARTS)


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="'text'"):
        annotate(disc(9, 3), "text", seed_parts=PARTS)
    with pytest.raises(ValueError, match="'all'"):
        annotate(disc(9, 3), "box", seed_parts=PARTS, boxes="all")


def test_ink_on_photographs_is_what_the_documentation_says(shared_data: Path, tmp_path: Path) -> None:
    """Median share of the mask on MSRC-v2: 0.12 (every fourth pair here)."""
    dataset = open_dataset(shared_data / "msrc15" / "dataset.json", cache_dir=tmp_path)
    pairs = [(i, c) for c in range(15) for i in dataset.eligible(c, get_protocol("paired"))]
    shares = []
    for image_id, c in pairs[::4]:
        mask = dataset.mask(image_id, c)
        ink = annotate(mask, "scribble", seed_parts=(dataset.name, image_id, c, 0)) == 1
        shares.append(ink.sum() / (mask == 1).sum())
    assert len(pairs) == 562
    assert np.median(shares) == pytest.approx(0.12, abs=0.015)
