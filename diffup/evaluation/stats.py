"""Bootstrap intervals of mIoU and FB-IoU, and of differences between cells of one manifest.

Episodes are resampled within their class (mIoU sums intersections and unions per class before it divides) and by query
image: in a small pool several episodes share an image and are not independent. Cells with the same episodes use the
same resamples, so that a difference is paired: subtract the draws. A resample is a row of multiplicities over query
images; times the images' counts it gives all sums at once. Counts are whole numbers below 2^53, so the sums are exact
in any order of addition.

Letters: N episodes · M query images of one class · B resamples · S cells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from diffup.errors import UserError

RESAMPLES = 2000
LEVEL = 0.95
ALPHA = 0.05  # 1 - LEVEL is a little more in floating point
COUNTED = 10  # draws beyond 0 whose share is a p-value; with fewer, the tail is estimated
COUNTS = ("inter_fg", "union_fg", "inter_bg", "union_bg")
EPISODE_COLUMNS = ("episode", "class_id", "query", *COUNTS)
INTER_FG, UNION_FG, INTER_BG, UNION_BG = range(4)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class EpisodeCounts:
    """What one cell counted, one entry per episode.

    Attributes:
        episode: [N] ids, each once, ascending.
        class_id: [N] class of each episode.
        query: [N] image id of each query, as str.
        counts: [N, 4] pixels: intersection and union of foreground, then of background.
    """

    episode: Ints
    class_id: Ints
    query: NDArray[np.str_]
    counts: Ints

    def __post_init__(self) -> None:
        rows = len(self.episode)
        if self.class_id.shape != (rows,) or self.query.shape != (rows,) or self.counts.shape != (rows, 4):
            raise ValueError(
                f"episode counts need {rows} classes, {rows} queries and [{rows}, 4] counts; got "
                f"{self.class_id.shape}, {self.query.shape}, {self.counts.shape}"
            )
        if rows and not (np.diff(self.episode) > 0).all():
            raise ValueError("episode ids must be ascending, each once")
        if (self.counts < 0).any() or (self.counts[:, 0::2] > self.counts[:, 1::2]).any():
            raise ValueError("counts must be 0 or more, and no intersection larger than its union")

    def __len__(self) -> int:
        return len(self.episode)

    @classmethod
    def of(cls, columns: Mapping[str, Any]) -> EpisodeCounts:
        """From the columns `EPISODE_COLUMNS` of an episode table, in any order of rows.

        Raises:
            ValueError: the values are no counts of episodes; also KeyError, a column is missing.
        """
        arrays = {name: np.asarray(columns[name]) for name in EPISODE_COLUMNS}
        integers = {name: values.astype(np.int64) for name, values in arrays.items() if name != "query"}
        order = np.argsort(integers["episode"], kind="stable")
        counts = np.stack([integers[name] for name in COUNTS], axis=1)
        query = arrays["query"].astype(np.str_)
        return cls(integers["episode"][order], integers["class_id"][order], query[order], counts[order])

    def take(self, rows: NDArray[np.intp] | Ints) -> EpisodeCounts:
        """The episodes at these positions."""
        return EpisodeCounts(self.episode[rows], self.class_id[rows], self.query[rows], self.counts[rows])

    @cached_property
    def sample(self) -> str:
        """Hash of the episodes' ids, classes and queries: equal for cells that can be paired as they are."""
        digest = hashlib.sha256(self.episode.tobytes() + self.class_id.tobytes())
        digest.update("\n".join(self.query.tolist()).encode())
        return digest.hexdigest()[:12]


@dataclass(frozen=True, eq=False)
class Estimate:
    """A figure with its bootstrap distribution.

    Attributes:
        value: the figure itself, from all episodes; nan where it is undefined.
        draws: [B] the same figure in each resample.
        sample: what was resampled; only estimates of one sample can be subtracted.
        freedom: degrees of freedom of their spread: query images beyond the first of each class, folds together.
    """

    value: float
    draws: Floats
    sample: str
    freedom: float = float("inf")

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Percentile interval, both ends nan where the figure is undefined."""
        if np.isnan(self.value) or np.isnan(self.draws).any():
            return float("nan"), float("nan")
        ordered = np.sort(self.draws)
        return _quantile(ordered, (1 - level) / 2), _quantile(ordered, (1 + level) / 2)

    def p_value(self) -> float:
        """Two-sided p-value of the figure being 0, at least `least_p`; nan where the figure is undefined.

        Twice the share of draws on the far side of 0, one added to either count (Davison and Hinkley, 1997, ch. 4). A
        share can't be below 2 / (B + 1), however large the figure; so with fewer than `COUNTED` draws there it is the
        tail of Student's t, of the figure over the standard deviation of its draws (Efron and Tibshirani, 1993, ch. 12:
        sums over many images are close to normal). That share and tail meet where few draws are left is the idea of
        Knijnenburg et al., 2009 (Bioinformatics 25, i161).
        """
        if np.isnan(self.value) or np.isnan(self.draws).any():
            return float("nan")
        beyond = min(int((self.draws <= 0).sum()), int((self.draws >= 0).sum()))
        p = 2.0 * (beyond + 1) / (len(self.draws) + 1)
        if beyond < COUNTED and self._freedom:
            spread = float(self.draws.std(ddof=1))
            p = 2.0 * float(stdtr(self._freedom, -abs(self.value) / spread)) if spread else float(not self.value)
        return min(1.0, max(p, self.least_p))

    @property
    def least_p(self) -> float:
        """The smallest p-value that so few images or draws allow: 2^-freedom, that of a sign-flip test of as many."""
        return max(float(2.0**-self._freedom), float(np.finfo(np.float64).tiny))

    @property
    def _freedom(self) -> float:
        return min(self.freedom, len(self.draws) - 1)

    def minus(self, other: Estimate) -> Estimate:
        """The paired difference.

        Raises:
            ValueError: the two do not come from the same resamples.
        """
        if self.sample != other.sample or self.draws.shape != other.draws.shape:
            raise ValueError(
                "a paired difference needs two estimates over the same resampled episodes; align them first"
            )
        freedom = min(self.freedom, other.freedom)
        return Estimate(self.value - other.value, self.draws - other.draws, self.sample, freedom)


@dataclass(frozen=True, eq=False)
class Scores:
    """Both figures of one cell, in percent."""

    miou: Estimate
    fb_iou: Estimate

    def without_miou(self) -> Scores:
        """The same with an undefined mIoU, where the episodes lack a class of the fold: it is no mean over fewer."""
        return replace(self, miou=replace(self.miou, value=float("nan"), draws=np.full_like(self.miou.draws, np.nan)))


def average(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of estimates, draw by draw: of folds (bootstrapped independently) or of training seeds (same resamples).

    Raises:
        ValueError: nothing to average, or different numbers of resamples.
    """
    if not estimates or len({len(estimate.draws) for estimate in estimates}) > 1:
        raise ValueError("average needs one estimate or more, all with the same number of resamples")
    if len(estimates) == 1:
        return estimates[0]
    samples = [estimate.sample for estimate in estimates]
    freedom = {estimate.sample: estimate.freedom for estimate in estimates}
    sample = samples[0] if len(freedom) == 1 else "+".join(samples)
    value = sum(estimate.value for estimate in estimates) / len(estimates)
    total = estimates[0].draws.copy()
    for estimate in estimates[1:]:
        total += estimate.draws
    return Estimate(value, total / len(estimates), sample, sum(freedom.values()))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for being several (Holm, 1979): the chance of one false alarm or more stays below the level.

    Args:
        p_values: of the comparisons; nan ones stay so and don't count.
    """
    known = [i for i, p in enumerate(p_values) if p == p]
    adjusted, largest = [float("nan")] * len(p_values), 0.0
    for rank, i in enumerate(sorted(known, key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(known) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def join(parts: Sequence[EpisodeCounts], episode: Ints) -> EpisodeCounts:
    """The episodes of several cells one after the other, with new ids."""
    return EpisodeCounts(
        episode,
        np.concatenate([part.class_id for part in parts]),
        np.concatenate([part.query for part in parts]),
        np.concatenate([part.counts for part in parts]),
    )


def align(first: EpisodeCounts, second: EpisodeCounts) -> tuple[EpisodeCounts, EpisodeCounts]:
    """The episodes that two cells have in common, for manifests of which one is the beginning of the other.

    Raises:
        UserError: no episode in common, or an episode that asks for another class or query.
    """
    common, a, b = np.intersect1d(first.episode, second.episode, assume_unique=True, return_indices=True)
    one, two = first.take(a), second.take(b)
    if not len(common):
        raise UserError("the two cells have no episode in common, so their difference can't be paired")
    other = (one.class_id != two.class_id) | (one.query != two.query)
    if other.any():
        at = int(np.argmax(other))
        raise UserError(
            f"the two cells come from different manifests: episode {common[at]} asks for class {one.class_id[at]} in "
            f"{one.query[at]} in one and for class {two.class_id[at]} in {two.query[at]} in the other"
        )
    return one, two


def bootstrap(
    cells: Sequence[EpisodeCounts],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    stream: int = 0,
    clustered: bool = True,
) -> list[Scores]:
    """mIoU and FB-IoU of cells over the same episodes, with the same resamples.

    Args:
        cells: S cells over the same episodes.
        resamples: B.
        seed: of the resamples.
        stream: makes resamples independent of those of other streams; give each fold its own.
        clustered: resample query images with all their episodes; False resamples single episodes, which gives intervals
            that are too narrow where images are asked repeatedly.

    Raises:
        ValueError: the cells differ in their episodes, or have none.
    """
    if not cells:
        return []
    first = cells[0]
    sample = first.sample
    if any(cell.sample != sample for cell in cells[1:]):
        raise ValueError("bootstrap needs cells over the same episodes; align them or bootstrap them separately")
    if not len(first):
        raise ValueError("bootstrap needs one episode or more")
    counts = np.stack([cell.counts for cell in cells]).transpose(2, 1, 0).astype(np.float64)  # [4, N, S]
    classes = np.unique(first.class_id)
    shape = (len(cells), resamples)
    miou_draws, pooled_draws, totals = np.zeros(shape), np.zeros((4, *shape)), np.empty((4, *shape))
    miou_values, freedom = np.zeros(len(cells)), 0
    for class_id in classes:
        of_class = np.flatnonzero(first.class_id == class_id)
        units = first.query[of_class] if clustered else first.episode[of_class]
        sums = _sums(units, counts[:, of_class])  # [4, M, S]
        rng = np.random.default_rng([seed, stream, int(class_id)])
        times = multiplicities(sums.shape[1], resamples, rng)
        for part, total in zip(sums, totals):
            np.matmul(part.T, times.T, out=total)
        miou_draws += percent(totals[INTER_FG], totals[UNION_FG]) / len(classes)
        pooled_draws += totals
        whole = sums.sum(axis=1)
        freedom += sums.shape[1] - 1
        miou_values += percent(whole[INTER_FG], whole[UNION_FG]) / len(classes)
    identity = f"{sample}:{seed}:{stream}:{clustered}"
    fb_values, fb_draws = _fb(counts.sum(axis=1)), _fb(pooled_draws)
    return [
        Scores(
            Estimate(float(miou_values[s]), miou_draws[s], identity, freedom),
            Estimate(float(fb_values[s]), fb_draws[s], identity, freedom),
        )
        for s in range(len(cells))
    ]


def per_class(
    cells: Sequence[EpisodeCounts], *, resamples: int = RESAMPLES, seed: int = 0, stream: int = 0
) -> list[dict[int, Estimate]]:
    """IoU of each class, in percent, of cells over the same episodes: with the resamples that `bootstrap` draws.

    Raises:
        ValueError: the cells differ in their episodes.
    """
    found: list[dict[int, Estimate]] = [{} for _ in cells]
    for class_id in np.unique(cells[0].class_id) if cells else ():
        parts = [cell.take(np.flatnonzero(cell.class_id == class_id)) for cell in cells]
        for one, scores in zip(found, bootstrap(parts, resamples=resamples, seed=seed, stream=stream)):
            one[int(class_id)] = scores.miou
    return found


def episode_multiplicities(episodes: EpisodeCounts, *, resamples: int, seed: int = 0, stream: int = 0) -> Floats:
    """[B, N] how often each episode occurs in each of the clustered resamples that `bootstrap` draws."""
    drawn = np.zeros((resamples, len(episodes)))
    for class_id in np.unique(episodes.class_id):
        of_class = np.flatnonzero(episodes.class_id == class_id)
        images, image = np.unique(episodes.query[of_class], return_inverse=True)
        rng = np.random.default_rng([seed, stream, int(class_id)])
        drawn[:, of_class] = multiplicities(len(images), resamples, rng)[:, image]
    return drawn


def multiplicities(units: int, resamples: int, rng: np.random.Generator) -> Floats:
    """[B, M] how often each of M units occurs in each resample of M draws with replacement."""
    drawn = rng.integers(units, size=(resamples, units)) + np.arange(resamples)[:, None] * units
    return np.bincount(drawn.ravel(), minlength=resamples * units).reshape(resamples, units).astype(np.float64)


def percent(inter: Floats, union: Floats) -> Floats:
    """100 · I / U; nan where the union is empty, as in `diffup.evaluation.metrics`."""
    if (union > 0).all():
        return 100.0 * (inter / union)
    return 100.0 * np.divide(inter, union, out=np.full_like(inter, np.nan), where=union > 0)


def _quantile(ordered: Floats, share: float) -> float:
    """Of ascending values, linearly between neighbours: numpy's default, without its price for many short arrays."""
    at = share * (len(ordered) - 1)
    below = int(at)
    above = min(below + 1, len(ordered) - 1)
    return float(ordered[below] + (at - below) * (ordered[above] - ordered[below]))


def _fb(totals: Floats) -> Floats:
    """FB-IoU of totals [4, …]."""
    return (percent(totals[INTER_FG], totals[UNION_FG]) + percent(totals[INTER_BG], totals[UNION_BG])) / 2


def _sums(units: NDArray[np.str_] | Ints, counts: Floats) -> Floats:
    """Counts [4, N, S] summed over the episodes of each unit, [4, M, S]."""
    names, unit = np.unique(units, return_inverse=True)
    belongs = np.zeros((len(names), len(unit)))
    belongs[unit, np.arange(len(unit))] = 1.0
    summed: Floats = belongs @ counts
    return summed
