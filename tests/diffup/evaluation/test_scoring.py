"""Upsampling and counting, of one episode and of a batch of several sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from diffup.evaluation.metrics import counts
from diffup.evaluation.scoring import Predicted, Prediction, score, upsampled

SIZES = [(30, 41), (52, 23), (30, 23), (9, 60)]
GRID = 8


def truths() -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.choice([0, 1, 255], size=size, p=[0.5, 0.4, 0.1]).astype(np.uint8) for size in SIZES]


def batch() -> Predicted:
    """Probability, variance, prior mean."""
    maps = torch.rand(len(SIZES), 3, GRID, GRID, generator=torch.Generator().manual_seed(0))
    return Predicted(upsampled(maps, SIZES), SIZES, torch.tensor([0.1, 0.2, 0.3, 0.4]))


def test_it_is_torchs_bilinear_interpolation() -> None:
    maps = torch.randn(len(SIZES), 2, GRID, GRID, generator=torch.Generator().manual_seed(1))
    found = upsampled(maps, SIZES)
    assert found.shape == (4, 2, 52, 60)
    for one, map_XRR, (height, width) in zip(found, maps, SIZES, strict=True):
        expected = F.interpolate(map_XRR[None], size=(height, width), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(one[:, :height, :width], expected, rtol=0, atol=1e-5)
    smaller = F.interpolate(maps, size=(3, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsampled(maps, [(3, 5)] * 4), smaller, rtol=0, atol=1e-5)


@pytest.mark.parametrize("threshold", [0.5, 0.0])
def test_a_padded_batch_counts_what_each_episode_counts(threshold: float) -> None:
    """At a threshold of 0 the padding would be foreground."""
    whole = score(batch(), truths(), threshold)
    for row, prediction, truth in zip(whole, batch(), truths(), strict=True):
        [alone] = score(Predicted.of(prediction), [truth], threshold)
        assert row.pop("fg_probability") == pytest.approx(alone.pop("fg_probability"))
        assert row.pop("prob_sum") == pytest.approx(alone.pop("prob_sum"), abs=0.011)
        assert row == alone
        mask = prediction.probability.numpy() > threshold
        assert (row["inter_fg"], row["union_fg"], row["inter_bg"], row["union_bg"]) == counts(mask, truth)
        assert sum(row["prob_count"]) == sum(row["std_count"]) == sum(row["margin_count"]) == (truth != 255).sum()
        assert sum(row["std_wrong"]) == sum(row["margin_wrong"]) == (mask[truth != 255] != truth[truth != 255]).sum()


def test_values_at_the_edges_of_bins_are_counted() -> None:
    probability = torch.tensor([[0.0, 1.0, 1.0 + 1e-6, 0.02]])
    [row] = score(Predicted.of(Prediction(probability, None, float("nan"))), [np.zeros((1, 4), np.uint8)], 0.5)
    assert sum(row["prob_count"]) == 4 and row["prob_count"][-1] == 2


@pytest.mark.parametrize(
    ("truth", "why"),
    [(np.zeros((4, 5), np.uint8), "resize the prediction"), (np.full((4, 4), 7, np.uint8), r"truth holds \[7\]")],
)
def test_a_truth_that_does_not_fit_is_refused(truth: NDArray[np.uint8], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        score(Predicted.of(Prediction(torch.zeros(4, 4), None, 0.5)), [truth], 0.5)
