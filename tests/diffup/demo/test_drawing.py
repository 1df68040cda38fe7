"""Strokes of the page become annotations, pixel by pixel; anything else that arrives is refused in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffup.demo.drawing import LARGE, MASK_TOOLS, TOOLS, Stroke, annotations_of, read_strokes
from diffup.errors import UserError
from diffup.support import Support
from tests.helpers.fuzzing import junk

SIZE = (20, 30)
IMAGE = np.zeros((*SIZE, 3), np.uint8)


def stroke(tool: str, *points: tuple[float, float], size: float = 4) -> Stroke:
    return Stroke(tool, size, points)


def test_a_box_covers_every_pixel_it_touches_and_ends_at_the_border() -> None:
    drawn = annotations_of([stroke("box", (10.5, 3.2), (4.1, 8.0)), stroke("box", (-5, -5), (99, 2.5))], SIZE)
    assert drawn["box"].tolist() == [[4, 3, 11, 8], [0, 0, 30, 3]]
    assert set(drawn) == {"box"}


def test_a_box_outside_the_picture_is_none() -> None:
    assert annotations_of([stroke("box", (40, 3), (50, 9))], SIZE) == {}
    assert annotations_of([stroke("box", (4, 3), (4, 9))], SIZE) == {}


def test_an_outline_is_filled() -> None:
    mask = annotations_of([stroke("outline", (5, 5), (15, 5), (15, 12), (5, 12))], SIZE)["mask"]
    assert mask.dtype == np.bool_ and mask.shape == SIZE
    assert mask[6:11, 6:14].all()
    assert not mask[:4].any() and not mask[14:].any() and not mask[:, :4].any() and not mask[:, 17:].any()


def test_an_outline_of_two_points_is_none() -> None:
    assert annotations_of([stroke("outline", (5, 5), (15, 5))], SIZE) == {}


def test_brush_and_eraser_act_in_their_order() -> None:
    paint, rub = stroke("brush", (3, 10), (27, 10), size=6), stroke("eraser", (15, 10), size=8)
    painted, rubbed = annotations_of([paint], SIZE)["mask"], annotations_of([paint, rub], SIZE)["mask"]
    assert painted[10, 15] and not rubbed[10, 15]
    assert rubbed[10, 5] and rubbed[10, 25]
    assert (annotations_of([rub, paint], SIZE)["mask"] == painted).all()


def test_the_pen_has_its_width() -> None:
    line = annotations_of([stroke("scribble", (3, 10), (27, 10), size=5)], SIZE)["scribble"]
    assert line[:, 15].sum() == 5
    dot = annotations_of([stroke("scribble", (15, 10), size=1)], SIZE)["scribble"]
    assert 1 <= dot.sum() <= 4 and dot[9:11, 14:16].any()


def test_a_mask_that_is_erased_is_no_cue() -> None:
    assert annotations_of([stroke("brush", (5, 5)), stroke("eraser", (5, 5), size=30)], SIZE) == {}


def test_every_kind_is_one_that_a_support_takes() -> None:
    square = ((5.0, 5.0), (15.0, 5.0), (15.0, 12.0))
    drawn = annotations_of([stroke("outline", *square), stroke("scribble", *square), stroke("box", *square[::2])], SIZE)
    assert list(drawn) == ["mask", "scribble", "box"]
    for kind, annotation in drawn.items():
        assert (Support(IMAGE, annotation, kind).drawn(SIZE) == 1).any()


def test_a_box_in_the_corner_is_not_taken_for_fractions() -> None:
    (box,) = annotations_of([stroke("box", (0, 0), (1.2, 1.4))], SIZE)["box"].tolist()
    assert (Support(IMAGE, [box], "box").drawn(SIZE) == 1).sum() == 4


def test_what_the_page_sends_is_read() -> None:
    sent = [{"tool": "scribble", "size": 3, "points": [[1, 2.5], [3, 4]]}]
    assert read_strokes(sent) == (Stroke("scribble", 3.0, ((1.0, 2.5), (3.0, 4.0))),)
    assert read_strokes([]) == ()


@pytest.mark.parametrize(
    "sent",
    [
        None, "scribble", 3, {}, [None], [[]], [{"tool": "laser", "points": [[1, 1]]}], [{"tool": "box", "points": []}],
        [{"tool": "box", "points": [[1, 1]]}], [{"tool": "brush", "size": 0, "points": [[1, 1]]}],
        [{"tool": "brush", "size": 1e9, "points": [[1, 1]]}], [{"tool": "brush", "points": [[1, float("nan")]]}],
        [{"tool": "brush", "points": [[1, 10**400]]}], [{"tool": "brush", "points": [[True, 1]]}],
        [{"tool": "brush", "points": "12"}], [{"tool": "brush", "points": [[1, 2, 3]]}], [{}] * 2000,
    ],
)  # fmt: skip
def test_other_things_are_refused(sent: Any) -> None:
    with pytest.raises(UserError, match="draw it again"):
        read_strokes(sent)


@given(st.lists(st.fixed_dictionaries({}, optional={"tool": st.sampled_from(TOOLS) | junk, "size": junk,
                                                    "points": junk | st.lists(junk, max_size=3)})) | junk)  # fmt: skip
def test_whatever_is_sent_is_read_or_refused(sent: Any) -> None:
    try:
        strokes = read_strokes(sent)
    except UserError:
        return
    drawn = annotations_of(strokes, SIZE)
    assert set(drawn) <= {"mask", "scribble", "box"}


numbers = st.floats(-LARGE, LARGE, exclude_min=True, exclude_max=True)


@given(st.sampled_from(TOOLS), st.floats(0.01, 4000), st.lists(st.tuples(numbers, numbers), min_size=2, max_size=2))
def test_strokes_far_outside_are_drawn_without_harm(tool: str, size: float, points: list[tuple[float, float]]) -> None:
    drawn = annotations_of(read_strokes([{"tool": tool, "size": size, "points": points}]), SIZE)
    assert all(found.any() for found in drawn.values())
    assert not (tool in MASK_TOOLS and "box" in drawn)
