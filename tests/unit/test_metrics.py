"""Counts and the figures made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffup.metrics import counts, fb_iou, miou, per_class_iou

Pixels = list[tuple[bool, int]]
pixels = st.lists(st.tuples(st.booleans(), st.sampled_from([0, 1, 255])), min_size=1, max_size=60)
episodes = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50)),
    min_size=1,
    max_size=30,
)


def planes(values: Pixels) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """Prediction and truth of one row."""
    prediction, truth = zip(*values)
    return np.array([prediction], dtype=bool), np.array([truth], dtype=np.uint8)


def test_counts_of_a_small_example() -> None:
    prediction = np.array([[1, 1, 0, 0], [1, 0, 0, 1]], dtype=bool)
    truth = np.array([[1, 0, 1, 0], [255, 255, 0, 1]], dtype=np.uint8)
    # Without the void: hits 2, false alarms 1, misses 1, correct background 2.
    assert counts(prediction, truth) == (2, 4, 2, 4)


@given(pixels)
def test_counts_agree_with_sets(values: Pixels) -> None:
    valid = [(p, t == 1) for p, t in values if t != 255]
    expected = (
        sum(p and t for p, t in valid),
        sum(p or t for p, t in valid),
        sum(not p and not t for p, t in valid),
        sum(not p or not t for p, t in valid),
    )
    assert counts(*planes(values)) == expected


@given(pixels, pixels)
def test_counts_of_parts_add_up(left: Pixels, right: Pixels) -> None:
    """So tiles, shards and workers may be merged in any way."""
    whole = counts(*planes(left + right))
    assert whole == tuple(a + b for a, b in zip(counts(*planes(left)), counts(*planes(right))))


@given(pixels)
def test_swapping_foreground_and_background_swaps_the_counts(values: Pixels) -> None:
    swapped = [(not p, t if t == 255 else 1 - t) for p, t in values]
    inter_fg, union_fg, inter_bg, union_bg = counts(*planes(values))
    assert counts(*planes(swapped)) == (inter_bg, union_bg, inter_fg, union_fg)


@given(pixels)
def test_void_pixels_never_count(values: Pixels) -> None:
    flipped = [(p != (t == 255), t) for p, t in values]
    assert counts(*planes(values)) == counts(*planes(flipped))


def test_counts_refuse_what_they_cannot_mean() -> None:
    truth = np.zeros((2, 2), np.uint8)
    with pytest.raises(ValueError, match="resize the prediction"):
        counts(np.zeros((2, 3), bool), truth)
    with pytest.raises(ValueError, match="threshold it first"):
        counts(np.zeros((2, 2), np.float32), truth)
    with pytest.raises(ValueError, match=r"\[7\]"):
        counts(np.zeros((2, 2), bool), np.array([[0, 7], [1, 255]], np.uint8))


def test_miou_sums_before_it_divides() -> None:
    """Class 0: (1+9)/(10+10) = 50 %, not the mean of 10 % and 90 %; class 1: 25 %."""
    ids, inter, union = [0, 1, 0], [1, 1, 9], [10, 4, 10]
    assert per_class_iou(ids, inter, union, [0, 1]) == {0: 50.0, 1: 25.0}
    assert miou(ids, inter, union, [0, 1]) == 37.5
    # Unequal weights: the mean of the episodes' own IoUs would be another figure.
    assert miou([0, 0], [1, 90], [10, 100], [0]) == pytest.approx(100 * 91 / 110)


@given(episodes, st.randoms())
def test_figures_do_not_depend_on_the_order_of_episodes(rows: list[tuple[int, ...]], random: object) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    a, b = np.array(rows).T, np.array(shuffled).T
    np.testing.assert_equal(miou(a[0], a[1], a[2], [0, 1, 2]), miou(b[0], b[1], b[2], [0, 1, 2]))
    np.testing.assert_equal(fb_iou(*a[1:]), fb_iou(*b[1:]))


@given(episodes)
def test_one_row_a_class_gives_the_same_figures(rows: list[tuple[int, ...]]) -> None:
    """Counts may be merged per class beforehand."""
    table = np.array(rows)
    merged = np.array([[c, *table[table[:, 0] == c, 1:].sum(axis=0)] for c in np.unique(table[:, 0])])
    present = merged[:, 0].tolist()
    ids, inter, union = table.T[:3]
    merged_ids, merged_inter, merged_union = merged.T[:3]
    np.testing.assert_equal(miou(ids, inter, union, present), miou(merged_ids, merged_inter, merged_union, present))
    np.testing.assert_equal(fb_iou(*table.T[1:]), fb_iou(*merged.T[1:]))


def test_a_class_that_was_never_sampled_makes_the_mean_undefined() -> None:
    assert math.isnan(per_class_iou([0], [1], [2], [0, 1])[1])
    assert math.isnan(miou([0], [1], [2], [0, 1]))
    assert math.isnan(miou([], [], [], []))


def test_an_empty_union_is_undefined_and_not_zero() -> None:
    assert math.isnan(miou([0], [0], [0], [0]))
    assert math.isnan(fb_iou([0], [0], [5], [5]))
    assert math.isnan(fb_iou([], [], [], []))


def test_a_class_outside_the_fold_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[5\]"):
        miou([0, 5], [1, 1], [2, 2], [0, 1])
    with pytest.raises(ValueError, match="one row per episode"):
        miou([0, 0], [1], [2, 2], [0])


def test_fb_iou_pools_over_classes() -> None:
    assert fb_iou([1, 3], [4, 4], [8, 8], [10, 10]) == pytest.approx((50 + 80) / 2)
    assert fb_iou([4], [4], [6], [6]) == 100


# Against an implementation of its own, in float64 and from confusion matrices


def confusion(prediction: NDArray[np.bool_], truth: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Pixels by (truth, prediction), float64 [2, 2], without those of 255."""
    table = np.zeros((2, 2))
    for t in (0, 1):
        for p in (0, 1):
            table[t, p] = np.where((truth == t) & (prediction == bool(p)), 1.0, 0.0).sum()
    return table


def naive(tables: list[tuple[int, NDArray[np.float64]]], classes: list[int]) -> tuple[float, float]:
    """mIoU and FB-IoU of (class, confusion) episodes, in percent; nan where a union is empty."""

    def iou(table: NDArray[np.float64], label: int) -> float:
        union = table[label].sum() + table[:, label].sum() - table[label, label]
        return 100 * float(table[label, label] / union) if union else math.nan

    sums = [sum((t for c, t in tables if c == wanted), np.zeros((2, 2))) for wanted in classes]
    return float(np.mean([iou(t, 1) for t in sums])), (iou(sum(sums), 1) + iou(sum(sums), 0)) / 2  # type: ignore[arg-type]


@st.composite
def segmented(draw: st.DrawFn) -> list[tuple[int, NDArray[np.bool_], NDArray[np.uint8]]]:
    """Episodes of three classes: class, prediction, truth; some empty, full or ignored."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    made = []
    for _ in range(draw(st.integers(1, 12))):
        size = draw(st.tuples(st.integers(1, 23), st.integers(1, 31)))
        share, void, said = (draw(st.sampled_from([0.0, 0.02, 0.5, 1.0])) for _ in range(3))
        truth = (rng.random(size) < share).astype(np.uint8)
        truth[rng.random(size) < void] = 255
        made.append((draw(st.integers(0, 2)), rng.random(size) < said, truth))
    return made


@given(segmented())
def test_figures_agree_with_confusion_matrices(made: list[tuple[int, NDArray[np.bool_], NDArray[np.uint8]]]) -> None:
    classes = [0, 1, 2]
    table = np.array([(c, *counts(prediction, truth)) for c, prediction, truth in made]).T
    by_hand = naive([(c, confusion(prediction, truth)) for c, prediction, truth in made], classes)
    np.testing.assert_allclose(miou(table[0], table[1], table[2], classes), by_hand[0], rtol=1e-12)
    np.testing.assert_allclose(fb_iou(*table[1:]), by_hand[1], rtol=1e-12)


@given(segmented(), st.randoms(), st.integers(1, 5))
def test_shards_in_any_order_give_the_whole_exactly(
    made: list[tuple[int, NDArray[np.bool_], NDArray[np.uint8]]], random: object, number: int
) -> None:
    """Rows of any partition, joined in any order or summed by class beforehand: the same figure to the last bit."""
    rows = [(c, *counts(prediction, truth)) for c, prediction, truth in made]
    whole = np.array(rows).T
    shards: list[list[tuple[int, ...]]] = [[] for _ in range(number)]
    for row in rows:
        shards[random.randrange(number)].append(row)  # type: ignore[attr-defined]
    random.shuffle(shards)  # type: ignore[attr-defined]
    joined = np.array([row for shard in shards for row in shard]).T
    summed = np.array(
        [(c, *np.sum([r[1:] for r in shard if r[0] == c], axis=0)) for shard in shards for c in {r[0] for r in shard}]
    ).T
    for merged in (joined, summed):
        for classes in ([0, 1, 2], sorted({row[0] for row in rows})):
            np.testing.assert_equal(
                miou(merged[0], merged[1], merged[2], classes), miou(whole[0], whole[1], whole[2], classes)
            )
        np.testing.assert_equal(fb_iou(*merged[1:]), fb_iou(*whole[1:]))


def test_sums_stay_exact_where_floats_would_not() -> None:
    """20,000 COCO images at full size are 6e9 pixels, more than 32 bits hold; beyond 2**53 a float loses units."""
    assert per_class_iou([0] * 3, [2**31, 2**31, 1], [2**32, 1, 2**32], [0])[0] == 100 * (2**32 + 1) / (2**33 + 1)
    assert miou([0, 0, 0], [2**53, 1, -(2**53)], [2, 1, 1], [0]) == 25


FULL, EMPTY, VOID = (np.full((3, 5), value, np.uint8) for value in (1, 0, 255))


@pytest.mark.parametrize(
    ("predicted", "truth", "expected"),
    [
        (False, FULL, (0, 15, 0, 15)),  # nothing predicted: IoU 0
        (True, EMPTY, (0, 15, 0, 15)),  # no such object in the query: every predicted pixel is a false alarm
        (False, EMPTY, (0, 0, 15, 15)),  # rightly nothing: no part in the class's IoU, background complete
        (True, FULL, (15, 15, 0, 0)),
        (True, VOID, (0, 0, 0, 0)),  # everything ignored: no part in any figure
        (False, VOID, (0, 0, 0, 0)),
    ],
)
def test_edge_cases_are_as_documented(predicted: bool, truth: NDArray[np.uint8], expected: tuple[int, ...]) -> None:
    found = counts(np.full((3, 5), predicted), truth)
    assert found == expected
    # Beside an episode of IoU 1/2, an empty union changes nothing, and others count by their pixels.
    both = np.array([(0, *found), (0, 5, 10, 5, 10)]).T
    assert miou(both[0], both[1], both[2], [0]) == 100 * (expected[0] + 5) / (expected[1] + 10)
