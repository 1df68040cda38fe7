"""The bootstrap: it agrees with brute force, pairs, clusters, and is the same every time."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffup.evaluation.metrics import fb_iou, miou
from diffup.evaluation.stats import (
    EpisodeCounts,
    Estimate,
    Scores,
    align,
    average,
    bootstrap,
    holm,
    multiplicities,
    per_class,
)

SEED = 3


def made_up(
    episodes: int = 60, *, classes: int = 3, pool: int = 8, gain: float = 0.0, own: int = 0, noise: float = 0.05
) -> EpisodeCounts:
    """Counts of a cell whose queries depend on the episode alone; an image is as hard for every cell."""
    rng = np.random.default_rng(5)
    class_id = np.arange(episodes) % classes
    image = rng.integers(pool, size=episodes)
    hard = rng.normal(0.5, 0.15, size=(classes, pool))[class_id, image]
    union = rng.integers(500, 4000, size=(classes, pool))[class_id, image]
    iou = np.clip(hard + gain + np.random.default_rng(own).normal(0, noise, episodes), 0.01, 0.99)
    inter = (union * iou).astype(int)
    query = np.array([f"{c}/{i}" for c, i in zip(class_id, image)])
    counts = np.stack([inter, union, 10_000 - union, 10_000 - inter], axis=1)
    return EpisodeCounts(np.arange(episodes), class_id, query, counts)


def brute_force(cell: EpisodeCounts, resamples: int, seed: int, stream: int, *, clustered: bool = True) -> np.ndarray:
    """mIoU and FB-IoU of each resample, by collecting its episodes one by one."""
    classes = sorted(set(cell.class_id.tolist()))
    ids: list[list[int]] = [[] for _ in range(resamples)]
    rows: list[list[np.ndarray]] = [[] for _ in range(resamples)]
    for class_id in classes:
        units: dict[str | int, list[int]] = {}
        for i in np.flatnonzero(cell.class_id == class_id).tolist():
            units.setdefault(str(cell.query[i]) if clustered else i, []).append(i)
        times = multiplicities(len(units), resamples, np.random.default_rng([seed, stream, class_id]))
        for b in range(resamples):
            for often, name in zip(times[b], sorted(units)):
                rows[b] += [cell.counts[i] for i in units[name]] * int(often)
                ids[b] += [class_id] * len(units[name]) * int(often)
    tables = [np.array(row) for row in rows]
    return np.array([(miou(i, t[:, 0], t[:, 1], classes), fb_iou(*t.T)) for i, t in zip(ids, tables)])


@pytest.mark.parametrize("clustered", [True, False])
def test_draws_are_those_of_brute_force(clustered: bool) -> None:
    """Multiplicities times summed counts give the figure of each resample, and the value that of all episodes."""
    cell = made_up()
    scores = bootstrap([cell], resamples=40, seed=SEED, stream=2, clustered=clustered)[0]
    expected = brute_force(cell, 40, SEED, 2, clustered=clustered)
    np.testing.assert_allclose(scores.miou.draws, expected[:, 0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(scores.fb_iou.draws, expected[:, 1], rtol=0, atol=1e-9)
    inter, union, inter_bg, union_bg = cell.counts.T
    assert scores.miou.value == pytest.approx(miou(cell.class_id, inter, union, [0, 1, 2]))
    assert scores.fb_iou.value == pytest.approx(fb_iou(inter, union, inter_bg, union_bg))


def test_multiplicities_are_draws_with_replacement() -> None:
    """Each resample has as many units as there are, and each unit one on average."""
    times = multiplicities(7, 4000, np.random.default_rng(0))
    assert times.shape == (4000, 7)
    assert (times.sum(axis=1) == 7).all()
    np.testing.assert_allclose(times.mean(axis=0), 1, atol=0.1)
    np.testing.assert_allclose(times.var(axis=0), 6 / 7, atol=0.1)


def test_one_call_for_many_cells_is_many_calls() -> None:
    """Cells share their resamples, so together or apart, in any order, the draws are the same to the last bit."""
    cells = [made_up(own=own, gain=0.02 * own) for own in range(4)]
    together = bootstrap(cells, resamples=200, seed=SEED)
    for cell, scores in zip(cells, together):
        alone = bootstrap([cell], resamples=200, seed=SEED)[0]
        assert (alone.miou.draws == scores.miou.draws).all()
        assert alone.miou.value == scores.miou.value


def test_seed_and_stream_decide() -> None:
    """The same seed gives the same interval; another seed, or another fold's stream, other draws."""
    cell = made_up()
    first, again = (bootstrap([cell], resamples=100, seed=1)[0].miou for _ in range(2))
    assert (first.draws == again.draws).all()
    assert (first.draws != bootstrap([cell], resamples=100, seed=2)[0].miou.draws).any()
    assert (first.draws != bootstrap([cell], resamples=100, seed=1, stream=1)[0].miou.draws).any()


def width(estimate: Estimate) -> float:
    """Width of the interval."""
    low, high = estimate.interval()
    return high - low


def test_paired_is_narrower_than_unpaired() -> None:
    """Most of the spread is of images, which both cells share; it cancels in the paired difference only."""
    first, second = bootstrap([made_up(240, gain=0.05), made_up(240, own=1)], resamples=1000)
    other = bootstrap([made_up(240, own=1)], resamples=1000, stream=9)[0]
    unpaired = first.miou.draws - other.miou.draws
    low, high = np.quantile(unpaired, [0.025, 0.975])
    assert width(first.miou.minus(second.miou)) < 0.5 * (high - low)
    assert first.miou.minus(second.miou).interval()[0] > 0


def test_clustered_is_wider_where_images_repeat() -> None:
    """24 images asked ten times each are not 240 images."""
    cell = made_up(240, pool=8)
    clustered, single = (bootstrap([cell], resamples=1000, clustered=c)[0].miou for c in (True, False))
    assert width(clustered) > 1.5 * width(single)


def test_clustering_is_nothing_where_every_image_is_asked_once() -> None:
    """Then query images are episodes."""
    cell = made_up(40)
    cell = EpisodeCounts(cell.episode, cell.class_id, np.array([f"{i:03d}" for i in range(40)]), cell.counts)
    clustered, single = (bootstrap([cell], resamples=100, clustered=c)[0].miou for c in (True, False))
    assert (clustered.draws == single.draws).all()


def test_other_samples_are_not_subtracted() -> None:
    """A difference over other episodes would not be paired."""
    long, short = bootstrap([made_up(60)])[0], bootstrap([made_up(45)])[0]
    with pytest.raises(ValueError, match="same resampled episodes"):
        long.miou.minus(short.miou)
    with pytest.raises(ValueError, match="same episodes"):
        bootstrap([made_up(60), made_up(45)])


def test_align_takes_the_common_episodes() -> None:
    """A manifest of fewer episodes is the beginning of the longer one."""
    long, short = align(made_up(60), made_up(45, own=1))
    assert long.sample == short.sample
    assert len(long) == 45
    apart = made_up(60)
    strange = EpisodeCounts(apart.episode, apart.class_id, np.roll(apart.query, 1), apart.counts)
    with pytest.raises(ValueError, match="different manifests: episode 0 asks for class 0 in"):
        align(apart, strange)
    with pytest.raises(ValueError, match="no episode in common"):
        align(apart.take(np.arange(5)), apart.take(np.arange(5, 9)))


def test_average_of_folds() -> None:
    """The mean of folds varies as the mean of independent figures, and keeps what it was made from."""
    folds = [bootstrap([made_up(own=fold)], resamples=2000, stream=fold)[0].miou for fold in range(4)]
    mean = average(folds)
    assert mean.value == pytest.approx(np.mean([fold.value for fold in folds]))
    assert np.std(mean.draws) == pytest.approx(np.mean([np.std(fold.draws) for fold in folds]) / 2, rel=0.1)
    assert average([folds[0], folds[0]]).sample == folds[0].sample
    assert mean.sample != folds[0].sample


def test_an_empty_union_has_no_interval() -> None:
    """A class that is nowhere has no IoU, and then neither has the mean."""
    cell = made_up()
    counts = cell.counts.copy()
    counts[cell.class_id == 1, :2] = 0
    scores: Scores = bootstrap([EpisodeCounts(cell.episode, cell.class_id, cell.query, counts)], resamples=50)[0]
    assert np.isnan(scores.miou.value)
    assert np.isnan(scores.miou.interval()).all()
    assert np.isfinite(scores.fb_iou.interval()).all()


@pytest.mark.parametrize(
    ("counts", "message"),
    [([[5, 4, 1, 1]], "no intersection larger"), ([[-1, 4, 1, 1]], "0 or more"), ([[1, 2, 3]], r"\[1, 4\]")],
)
def test_impossible_counts_are_refused(counts: list[list[int]], message: str) -> None:
    """Damaged tables do not become figures."""
    with pytest.raises(ValueError, match=message):
        EpisodeCounts(np.array([0]), np.array([0]), np.array(["a"]), np.array(counts))
    with pytest.raises(ValueError, match="ascending"):
        EpisodeCounts(np.array([1, 0]), np.array([0, 0]), np.array(["a", "b"]), np.ones((2, 4), int))


@st.composite
def cells(draw: st.DrawFn) -> EpisodeCounts:
    """Any small cell with a positive union everywhere."""
    n = draw(st.integers(1, 12))
    integers = st.integers(0, 50)
    inter = np.array(draw(st.lists(integers, min_size=n, max_size=n)))
    more = np.array(draw(st.lists(st.integers(1, 50), min_size=n, max_size=n)))
    class_id = np.array(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    query = np.array(draw(st.lists(st.sampled_from("abcd"), min_size=n, max_size=n)))
    return EpisodeCounts(np.arange(n), class_id, query, np.stack([inter, inter + more, more, inter + more], axis=1))


@settings(max_examples=60, deadline=None)
@given(cells())
def test_properties_of_any_cell(cell: EpisodeCounts) -> None:
    """Draws are percentages, the interval is ordered, and a cell does not differ from itself."""
    scores = bootstrap([cell, cell], resamples=30)
    for estimate in (scores[0].miou, scores[0].fb_iou):
        assert ((estimate.draws >= 0) & (estimate.draws <= 100 + 1e-9)).all()
        low, high = estimate.interval()
        assert low <= high
    nothing = scores[0].miou.minus(scores[1].miou)
    assert nothing.value == 0
    assert nothing.interval() == (0, 0)


@settings(max_examples=30, deadline=None)
@given(cells(), st.integers(2, 5))
def test_scale_of_pixels_does_not_matter(cell: EpisodeCounts, factor: int) -> None:
    """IoU has no unit."""
    larger = EpisodeCounts(cell.episode, cell.class_id, cell.query, cell.counts * factor)
    one, two = bootstrap([cell, larger], resamples=20)
    np.testing.assert_allclose(one.miou.draws, two.miou.draws, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(cells(), st.randoms(use_true_random=False))
def test_order_of_classes_and_images_is_theirs(cell: EpisodeCounts, random: object) -> None:
    """Renaming episodes in another order changes no draw: resamples belong to images."""
    order = np.arange(len(cell))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = EpisodeCounts(cell.episode, cell.class_id[order], cell.query[order], cell.counts[order])
    one, two = bootstrap([cell], resamples=20)[0], bootstrap([shuffled], resamples=20)[0]
    assert (one.miou.draws == two.miou.draws).all()
    assert (one.fb_iou.draws == two.fb_iou.draws).all()


def test_a_hundred_cells_take_seconds() -> None:
    """2000 resamples of 1000 episodes in 5 classes; far below the limit, which allows for a busy machine."""
    grid = [made_up(1000, classes=5, pool=60, own=own) for own in range(100)]
    start = time.perf_counter()
    assert len(bootstrap(grid, resamples=2000)) == 100
    assert time.perf_counter() - start < 10


def test_holm_by_hand() -> None:
    """The example of a textbook: .01, .02, .03, .04 of four tests; an undefined one does not count."""
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    adjusted = holm([0.02, float("nan"), 0.03])
    assert adjusted[0] == pytest.approx(0.04) and np.isnan(adjusted[1]) and adjusted[2] == pytest.approx(0.04)
    assert holm([]) == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_stepping_down_rejects(p_values: list[float]) -> None:
    """Brute force: go up from the smallest, and stop at the first that is not below level over what is left."""
    rejected = set()
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[i] * (len(p_values) - rank) >= 0.05:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(holm(p_values)) if p < 0.05} == rejected


def test_p_value_goes_with_the_interval() -> None:
    draws = np.arange(-19, 981, dtype=float)  # 19 below 0, one at 0
    assert Estimate(480.0, draws, "x").p_value() == pytest.approx(2 * 21 / 1001)
    assert Estimate(0.0, np.zeros(100), "x").p_value() == 1.0
    assert 0 < Estimate(1.0, np.ones(100), "x").p_value() < 0.02
    assert np.isnan(Estimate(float("nan"), draws, "x").p_value())


@example(seed=1144191, resamples=2, shift=0.0)  # a figure of exactly 0
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 400), st.floats(0, 60))
def test_small_p_values_have_no_floor_and_large_ones_are_shares(seed: int, resamples: int, shift: float) -> None:
    """With ten draws beyond 0 the share counts; with fewer the p-value goes on falling as the figure grows."""
    draws = np.random.default_rng(seed).normal(shift, 1, resamples)
    estimate = Estimate(shift, draws, "x")
    beyond = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    p = estimate.p_value()
    assert estimate.least_p <= p <= 1
    if beyond >= 10:
        assert p == min(1.0, max(2 * (beyond + 1) / (resamples + 1), estimate.least_p))
    else:
        assert Estimate(shift + 1, draws + 1, "x").p_value() <= p
    if shift > 8 and resamples >= 50:
        assert p < 1e-6


def test_the_tail_is_near_the_share_that_many_draws_give() -> None:
    """At the same figure: estimated from 200 draws, counted from 200,000."""
    for shift in (1.5, 2.0, 2.5, 3.0):
        many = np.random.default_rng(1).normal(shift, 1, 200_000)
        counted = Estimate(shift, many, "x").p_value()
        few = np.median([Estimate(shift, part, "x").p_value() for part in many.reshape(1000, 200)])
        assert counted / 1.5 < few < 1.5 * counted, (shift, counted, few)


@pytest.mark.parametrize(("resamples", "comparisons"), [(100, 3), (50, 10), (2000, 51), (200, 5000)])
def test_holm_tells_large_differences_apart_whatever_their_number(resamples: int, comparisons: int) -> None:
    """50 points; a p-value counted from so few resamples would be too large for so many comparisons."""
    best = made_up()
    counts = best.counts.copy()
    counts[:, 0] = np.minimum(counts[:, 0], counts[:, 1] // 100)
    worse = EpisodeCounts(best.episode, best.class_id, best.query, counts)
    one, two = bootstrap([best, worse], resamples=resamples)
    gap = one.miou.minus(two.miou)
    assert gap.value > 40 and 2 / (resamples + 1) * comparisons > 0.05
    assert max(holm([gap.p_value()] * comparisons)) < 0.05


def test_few_images_allow_no_small_p_value() -> None:
    """One image a class has no spread; two images of one class allow 1/2, as a sign-flip test of them does."""
    for images, least in ((1, 1.0), (2, 0.5), (6, 2.0**-5)):
        query = np.array([f"image {i}" for i in range(images)])
        pair = [
            EpisodeCounts(np.arange(images), np.zeros(images, int), query, np.tile([hits, 10, 5, 6], (images, 1)))
            for hits in (9, 1)
        ]
        one, two = bootstrap(pair, resamples=500)
        gap = one.miou.minus(two.miou)
        assert gap.value == pytest.approx(80) and gap.p_value() == gap.least_p == least


def test_freedom_counts_images_beyond_the_first_of_a_class() -> None:
    """Folds add up, training seeds share theirs, a difference keeps it."""
    cell = made_up()
    images = sum(len(set(cell.query[cell.class_id == c])) - 1 for c in set(cell.class_id.tolist()))
    first, second = (bootstrap([cell], resamples=20, stream=fold)[0].miou for fold in (0, 1))
    assert first.freedom == images and first.minus(first).freedom == images
    assert average([first, first]).freedom == images and average([first, second]).freedom == 2 * images


def test_p_values_are_small_as_often_as_they_say() -> None:
    """Two methods of one quality, 100 resamples: levels that a count could not reach either."""
    from benchmarks.coverage import false_alarms

    found = false_alarms(800, 150, 100, seed=1)
    assert 0.03 < found[0.05] < 0.09
    assert 0.004 < found[0.01] < 0.03
    assert found[0.001] < 0.01


def test_classes_share_the_resamples_of_their_mean() -> None:
    cells = [made_up(), made_up(own=1)]
    whole = bootstrap(cells, resamples=100, seed=SEED)
    for scores, classes in zip(whole, per_class(cells, resamples=100, seed=SEED)):
        np.testing.assert_allclose(np.mean([c.draws for c in classes.values()], axis=0), scores.miou.draws)
        assert np.mean([c.value for c in classes.values()]) == pytest.approx(scores.miou.value)


def test_the_interval_is_numpys() -> None:
    for size in (1, 2, 7, 1000):
        draws = np.random.default_rng(size).normal(50, 3, size)
        expected = np.quantile(draws, [0.025, 0.975])
        np.testing.assert_allclose(Estimate(50.0, draws, "x").interval(), expected, rtol=1e-12)


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """500 simulations of 1000 episodes from pools of 25 to 60 images a class; of single episodes they would not."""
    from benchmarks.coverage import coverage

    found = coverage(500, 1000, 400, seed=1)
    for name in ("mIoU", "FB-IoU", "paired difference"):
        share, _ = found[name]["clustered"]
        assert 0.92 <= share <= 0.98, (name, share)
    assert found["mIoU"]["single episodes"][0] < 0.75
    assert found["paired difference"]["clustered"][1] < 0.5 * found["mIoU"]["clustered"][1]
