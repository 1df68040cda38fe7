"""Counts and the figures made of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffup.evaluation.metrics import counts, fb_iou, labels, miou, per_class_iou, undefined

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


# The same figures, written down once more in float64


def independent(
    predictions: list[NDArray[np.bool_]], truths: list[NDArray[np.uint8]], classes: list[int], asked: list[int]
) -> tuple[float, float]:
    """mIoU and FB-IoU in percent by their definitions, without any of our functions."""
    ious, pooled = [], np.zeros((2, 2))
    for c in asked:
        sums = np.zeros((2, 2))  # foreground and background by intersection and union
        for prediction, truth, class_index in zip(predictions, truths, classes):
            if class_index != c:
                continue
            known = truth != 255
            for side, value in enumerate((1.0, 0.0)):
                p = (prediction.astype(np.float64) == value) & known
                t = (truth.astype(np.float64) == value) & known
                sums[side] += np.array([np.float64((p & t).sum()), np.float64((p | t).sum())])
        ious.append(np.divide(*sums[0]) if sums[0, 1] else np.nan)
        pooled += sums
    sides = [np.divide(*pooled[side]) if pooled[side, 1] else np.nan for side in (0, 1)]
    return 100 * float(np.mean(ious)), 100 * float(np.mean(sides))


@st.composite
def masks(draw: st.DrawFn) -> tuple[list[NDArray[np.bool_]], list[NDArray[np.uint8]], list[int]]:
    """Random predictions and truths with void, of random sizes, some empty, full or void all over."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    predictions, truths, classes = [], [], []
    for _ in range(draw(st.integers(1, 12))):
        size = tuple(rng.integers(1, 40, 2))
        share = rng.dirichlet([0.5, 0.5, 0.3])
        truths.append(rng.choice(np.array([0, 1, 255], np.uint8), size, p=share))
        predictions.append(rng.random(size) < rng.choice([0.0, 0.2, 0.5, 1.0]))
        classes.append(int(rng.integers(3)))
    return predictions, truths, classes


def figures(rows: NDArray[np.int64], classes: list[int], asked: list[int]) -> tuple[float, float]:
    return miou(classes, rows[:, 0], rows[:, 1], asked), fb_iou(*rows.T)


@given(masks(), st.randoms())
@settings(max_examples=300, deadline=None)
def test_figures_equal_an_independent_float64_implementation_and_shards_merge_exactly(
    drawn: tuple[list[NDArray[np.bool_]], list[NDArray[np.uint8]], list[int]], random: Any
) -> None:
    predictions, truths, classes = drawn
    asked = sorted(set(classes))
    rows = np.array([counts(p, t) for p, t in zip(predictions, truths)], dtype=np.int64)
    ours, theirs = figures(rows, classes, asked), independent(predictions, truths, classes, asked)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, equal_nan=True)
    order = list(range(len(classes)))
    random.shuffle(order)
    cut = random.randint(0, len(order))
    # Two shards in any order, then each class's rows summed to one row a shard: the very same figures.
    parts = [
        [(c, rows[[i for i in shard if classes[i] == c]].sum(0)) for c in asked if any(classes[i] == c for i in shard)]
        for shard in (order[:cut], order[cut:])
    ]
    merged = [row for part in parts for row in part]
    again = figures(np.array([row for _, row in merged]), [c for c, _ in merged], asked)
    np.testing.assert_array_equal(again, ours)


@pytest.mark.parametrize(
    ("prediction", "truth", "iou"),
    [
        ("empty", "empty", math.nan),  # no union: undefined, for the class and so for the mean
        ("full", "empty", 0.0),
        ("empty", "full", 0.0),
        ("full", "void", math.nan),  # everything ignored
        ("full", "full", 100.0),
    ],
)
def test_edge_cases(prediction: str, truth: str, iou: float) -> None:
    labels = np.full((3, 5), {"empty": 0, "full": 1, "void": 255}[truth], np.uint8)
    inter, union, inter_bg, union_bg = counts(np.full((3, 5), prediction == "full"), labels)
    np.testing.assert_equal(miou([4], [inter], [union], [4]), iou)
    background = math.nan if not union_bg else 100 * inter_bg / union_bg
    np.testing.assert_equal(fb_iou([inter], [union], [inter_bg], [union_bg]), (iou + background) / 2)


@given(st.lists(st.tuples(st.integers(0, 2), *[st.integers(0, 2)] * 4), max_size=12))
def test_what_is_undefined_has_a_reason_and_nothing_else_has(rows: list[tuple[int, ...]]) -> None:
    """As nan says, whatever the episodes: classes never sampled, nothing to find or found, no background."""
    table = np.array(rows, dtype=np.int64).reshape(-1, 5)
    classes = {0: "wren", 1: "heron", 2: "wren"}
    found = undefined(table[:, 0], table[:, 1:], classes)
    mean = miou(table[:, 0], table[:, 1], table[:, 2], list(classes))
    assert ("miou" in found) == math.isnan(mean)
    assert ("fb_iou" in found) == math.isnan(fb_iou(*table[:, 1:].T))
    for c, name in ((0, "wren (class 0)"), (1, "heron"), (2, "wren (class 2)")):
        lacks = math.isnan(per_class_iou(table[:, 0], table[:, 1], table[:, 2], list(classes))[c])
        assert (name in found.get("miou", "")) == lacks


def test_reasons_name_ten_classes_at_most_and_count_them() -> None:
    found = undefined([0], [[1, 2, 3, 4]], {c: f"c{c:02d}" for c in range(20)})
    assert found["miou"].startswith("no episode of c01, c02,") and "c10 and 9 more (19 of 20 classes)" in found["miou"]
    assert undefined([], np.zeros((0, 4)), {}) == {
        "miou": "no class to report",
        "fb_iou": undefined([], [], {})["fb_iou"],
    }


@given(st.dictionaries(st.integers(0, 9), st.sampled_from(["wren", "heron"])))
def test_labels_tell_classes_apart(names: dict[int, str]) -> None:
    made = labels(names)
    assert set(made) == set(names) and len(set(made.values())) == len(names)
    assert all(made[c] == name for c, name in names.items() if list(names.values()).count(name) == 1)
