"""How well a model's own estimates of quality hold: rank correlation, AUROC and calibration error, with intervals.

Everything comes from the episode table (`diffup.evaluation.evaluate.evaluate`): one true and one predicted IoU an
episode, and histograms of pixels. A weighting says how often each episode occurs: all ones for the figure itself, the
clustered resamples of `diffup.evaluation.stats` for its bootstrap, so that all figures of a cell share their resamples
and can be subtracted.

Letters: N episodes · W weightings · L levels of a histogram · G distinct values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from diffup.errors import UserError
from diffup.evaluation.metrics import STD_BINS, episode_ious
from diffup.evaluation.stats import EpisodeCounts, Estimate, Floats, episode_multiplicities, join

BINS = 10  # of a calibration error
HISTOGRAMS = (
    "prob_count", "prob_positive", "prob_sum", "std_count", "std_wrong", "margin_count", "margin_wrong",
)  # fmt: skip
NEEDED = ("episode", "predicted_iou", "fg_probability", *HISTOGRAMS)


@dataclass(frozen=True, eq=False)
class Quality:
    """What the episodes of one run say of the model's estimates.

    Attributes:
        true_iou, predicted_iou, fg_probability: [N]; the last is the mean probability of the predicted foreground, the
            rival of the predicted IoU.
        histograms: [N, L] each, by the names in `HISTOGRAMS`.
        weights: [1 + B, N]: ones, then the resamples.
    """

    true_iou: Floats
    predicted_iou: Floats
    fg_probability: Floats
    histograms: dict[str, Floats]
    weights: Floats

    def total(self, name: str) -> Floats:
        """A histogram summed over the episodes of each weighting, [1 + B, L]."""
        return self.weights @ self.histograms[name]


def read_quality(
    root: Path, keys: Sequence[str], counts: Sequence[EpisodeCounts], *, resamples: int, seed: int, stream: int
) -> Quality:
    """Read one run: the cells `keys`, one per episode seed, with their counts.

    Raises:
        UserError: a table lacks columns (made by an earlier version), is of other episodes, or has no predicted IoU.
    """
    tables = []
    for key, known in zip(keys, counts, strict=True):
        path = root / key / "episodes.parquet"
        table = pd.read_parquet(path)
        missing = [name for name in NEEDED if name not in table.columns]
        if missing:
            raise UserError(
                f"{path} has no column {missing[0]!r}: it was made by an earlier version. Run the grid again with "
                f"--force other-code"
            )
        if len(table) and len(table["std_count"].iloc[0]) != STD_BINS:
            raise UserError(
                f"{path} has {len(table['std_count'].iloc[0])} bins of standard deviation, this version {STD_BINS}: it "
                f"was made by another version. Run the grid again with --force other-code"
            )
        table = table.sort_values("episode")
        if not np.array_equal(table["episode"].to_numpy(), known.episode):
            raise UserError(f"{path} is not of the episodes that result.json names; run the grid again")
        if table["predicted_iou"].isna().any():
            raise UserError(f"{path} has episodes without a predicted IoU: the method makes no such estimate")
        tables.append(table)
    whole = pd.concat(tables, ignore_index=True)
    # Of several episode seeds only class and query matter here; ids need to ascend.
    episodes = join(counts, np.arange(len(whole)))
    drawn = episode_multiplicities(episodes, resamples=resamples, seed=seed, stream=stream)
    return Quality(
        true_iou=episode_ious(episodes.counts[:, 0], episodes.counts[:, 1]),
        predicted_iou=whole["predicted_iou"].to_numpy(np.float64),
        fg_probability=whole["fg_probability"].to_numpy(np.float64),
        histograms={name: np.stack(whole[name].to_list()).astype(np.float64) for name in HISTOGRAMS},
        weights=np.concatenate([np.ones((1, len(whole))), drawn]),
    )


def estimates(quality: Quality, *, threshold: float, sample: str) -> dict[str, Estimate]:
    """All figures of a run, by name.

    Args:
        quality: the run.
        threshold: of its masks.
        sample: what was resampled (see `Estimate`).

    Returns:
        ``rank_iou`` and ``rank_probability``: Spearman's rho of true IoU with predicted IoU and with the mean
        foreground probability; ``iou_bias``: mean predicted minus mean true IoU; ``iou_error``: expected calibration
        error of the predicted IoU; ``auroc_std``, ``auroc_prior`` and ``auroc_own``: AUROC for the mask's wrong pixels
        of UAPF's standard deviation, of the prior mean's and of the model's own |p - 1/2|, over the pixels of all
        episodes (the last only at a threshold of 1/2, else nan); ``within_std`` and ``within_prior``: the same inside
        each episode, averaged; ``probability_error``: expected calibration error of the probabilities.
    """
    weights, histograms = quality.weights, quality.histograms
    gap = quality.predicted_iou - quality.true_iou
    margins = {
        "std": (histograms["std_count"], histograms["std_wrong"]),
        # A small margin is the sign of a wrong pixel.
        "prior": (histograms["margin_count"][:, ::-1], histograms["margin_wrong"][:, ::-1]),
    }
    own = _own_margin(histograms["prob_count"], histograms["prob_positive"])
    figures = {
        "rank_iou": spearman(quality.predicted_iou, quality.true_iou, weights),
        "rank_probability": spearman(quality.fg_probability, quality.true_iou, weights),
        "iou_bias": ratio(weights @ gap, weights.sum(axis=1)),
        "iou_error": iou_error(quality.predicted_iou, quality.true_iou, weights),
        "probability_error": probability_error(quality),
        "auroc_own": auroc(weights @ own[0], weights @ own[1]) if threshold == 0.5 else np.full(len(weights), np.nan),
    }
    for name, (count, wrong) in margins.items():
        figures[f"auroc_{name}"] = auroc(weights @ count, weights @ wrong)
        figures[f"within_{name}"] = _mean_of_known(auroc(count, wrong), weights)
    return {name: Estimate(float(values[0]), values[1:], sample) for name, values in figures.items()}


def spearman(x_N: ArrayLike, y_N: ArrayLike, weights_WN: Floats) -> Floats:
    """Spearman's rank correlation, ties at their mean rank, where episode n occurs ``weights[w, n]`` times; [W].

    nan where one side is constant.
    """
    a, b = _ranks(np.asarray(x_N), weights_WN), _ranks(np.asarray(y_N), weights_WN)
    total = weights_WN.sum(axis=1, keepdims=True)
    a = a - (weights_WN * a).sum(axis=1, keepdims=True) / total
    b = b - (weights_WN * b).sum(axis=1, keepdims=True) / total
    covariance = (weights_WN * a * b).sum(axis=1)
    scale = np.sqrt((weights_WN * a * a).sum(axis=1) * (weights_WN * b * b).sum(axis=1))
    return ratio(covariance, scale)


def _ranks(values_N: NDArray[np.generic], weights_WN: Floats) -> Floats:
    """[W, N] mean rank of each episode (up to a constant) among the episodes of each weighting."""
    _, group = np.unique(values_N, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    weight_WG = np.add.reduceat(weights_WN[:, order], starts, axis=1)
    ranks: Floats = np.cumsum(weight_WG, axis=1) - weight_WG / 2
    return ranks[:, group]


def auroc(count_WL: Floats, wrong_WL: Floats) -> Floats:
    """Chance that a wrong pixel has a higher level than a right one, equal levels counting half; [W].

    nan where there is no wrong or no right pixel.
    """
    right_WL = count_WL - wrong_WL
    below = np.cumsum(right_WL, axis=1) - right_WL / 2
    pairs = wrong_WL.sum(axis=1) * right_WL.sum(axis=1)
    return ratio((wrong_WL * below).sum(axis=1), pairs)


def probability_error(quality: Quality) -> Floats:
    """Expected calibration error of the probabilities: mean over pixels of |share of foreground - mean probability| of
    the pixel's bin, `BINS` bins; one per weighting."""
    count, positive, total = (merged(quality.total(name), BINS) for name in ("prob_count", "prob_positive", "prob_sum"))
    return ratio(np.abs(positive - total).sum(axis=1), count.sum(axis=1))


def iou_error(predicted_N: Floats, true_N: Floats, weights_WN: Floats) -> Floats:
    """Expected calibration error of the predicted IoU over episodes, `BINS` bins; one per weighting."""
    inside = levels(predicted_N, BINS)[:, None] == np.arange(BINS)
    gaps = weights_WN @ (inside * (predicted_N - true_N)[:, None])
    return ratio(np.abs(gaps).sum(axis=1), weights_WN.sum(axis=1))


def levels(values_N: Floats, bins: int) -> NDArray[np.int64]:
    """The bin, of `bins` of equal width over [0, 1], that each value falls into."""
    return np.clip((values_N * bins).astype(np.int64), 0, bins - 1)


def merged(histogram_WL: Floats, bins: int) -> Floats:
    """A histogram with neighbouring levels put together, [W, bins]; L must be a multiple of `bins`."""
    fewer: Floats = histogram_WL.reshape(len(histogram_WL), bins, -1).sum(axis=2)
    return fewer


def _own_margin(count_NL: Floats, positive_NL: Floats) -> tuple[Floats, Floats]:
    """Pixels and wrong pixels by falling |p - 1/2|, from the histogram over p of a mask thresholded at 1/2."""
    half = count_NL.shape[1] // 2
    count = count_NL[:, :half] + count_NL[:, : half - 1 : -1]
    wrong = positive_NL[:, :half] + (count_NL - positive_NL)[:, : half - 1 : -1]
    return count, wrong


def _mean_of_known(values_N: Floats, weights_WN: Floats) -> Floats:
    known = ~np.isnan(values_N)
    total = weights_WN[:, known].sum(axis=1)
    return ratio(weights_WN[:, known] @ values_N[known], total)


def ratio(top: Floats, bottom: Floats) -> Floats:
    """top / bottom, nan where the bottom is 0."""
    found: Floats = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)
    return found
