"""Predictions at the size that they are scored at, and their counts, on the device that the maps are on.

On a GPU a batch is upsampled and counted as a whole, padded to its largest size, and only counts leave the device; on a
CPU, whose caches are small, an episode at a time.

Letters: B batch · X maps of an episode · R side of a map's grid · H W size that is scored at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from diffup.evaluation.metrics import IGNORE, MARGIN_BINS, PROB_BINS, STD_BINS, STD_RANGE

IGNORED, OUTSIDE = 2, 3  # of a truth, beside 0 background and 1 foreground
SIDES = 8  # four truths, predicted background or foreground


@dataclass(frozen=True)
class Prediction:
    """One segmented episode at the size that the protocol scores at, its query's original size under ``paired``.

    Attributes:
        probability, variance: [H, W]; variance is None for training-free methods.
        predicted_iou: DQM's estimate, nan for training-free methods.
        prior: the prior mean of the same priors, [H, W] in [0, 1]: the rival of `variance` as a sign of wrong pixels;
            None for training-free methods.
    """

    probability: Tensor
    variance: Tensor | None
    predicted_iou: float
    prior: Tensor | None = None


@dataclass(frozen=True)
class Predicted:
    """Predictions of some episodes, padded to the largest size among them.

    Attributes:
        maps_BXHW: probability; of trained models also variance and prior mean, as in `Prediction`.
        sizes: height and width of each episode.
        iou_B: predicted IoU.
    """

    maps_BXHW: Tensor
    sizes: Sequence[tuple[int, int]]
    iou_B: Tensor

    @classmethod
    def of(cls, prediction: Prediction) -> Predicted:
        """A single one."""
        maps = [prediction.probability]
        if prediction.variance is not None and prediction.prior is not None:
            maps += [prediction.variance, prediction.prior]
        size = (maps[0].shape[0], maps[0].shape[1])
        return cls(torch.stack(maps)[None], [size], torch.tensor([prediction.predicted_iou]))

    def __iter__(self) -> Iterator[Prediction]:
        """Each on the CPU."""
        for maps_XHW, (height, width), iou in zip(self.maps_BXHW.cpu(), self.sizes, self.iou_B.tolist(), strict=True):
            probability, *others = maps_XHW[:, :height, :width]
            variance, prior = others or (None, None)
            yield Prediction(probability, variance, iou, prior)


@lru_cache(maxsize=256)
def _weights(size: int, grid: int) -> Tensor:
    """Bilinear interpolation from `grid` to `size` points as a matrix [size, grid], edges repeated."""
    place = ((torch.arange(size, dtype=torch.float64) + 0.5) * grid / size - 0.5).clamp(0, grid - 1)
    distance = (place[:, None] - torch.arange(grid)).abs()
    return (1 - distance).clamp_min(0).float()


def upsampled(maps_BXRR: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Maps at sizes (H, W) of their own, bilinear, padded to the largest, [B, X, H, W]."""
    sides = []
    for axis in (0, 1):
        lengths, grid = [size[axis] for size in sizes], maps_BXRR.shape[axis - 2]
        different = sorted(set(lengths))
        if len(different) == 1:
            sides.append(_weights(different[0], grid).to(maps_BXRR.device))
            continue
        rows = [F.pad(_weights(length, grid), (0, 0, 0, different[-1] - length)) for length in different]
        owners = torch.tensor([different.index(length) for length in lengths])
        sides.append(torch.stack(rows).to(maps_BXRR.device)[owners.to(maps_BXRR.device), None])
    return sides[0] @ maps_BXRR @ sides[1].mT


def upsample(map_RR: Tensor, size: tuple[int, int]) -> Tensor:
    """A map at another size (H, W), bilinear."""
    return upsampled(map_RR[None, None], [size])[0, 0]


def score(predicted: Predicted, truths: Sequence[NDArray[np.uint8]], threshold: float) -> list[dict[str, Any]]:
    """Counts of each episode: intersections, unions and histograms; pixels of 255 are ignored.

    Columns: `diffup.evaluation.evaluate.evaluate`.

    Raises:
        ValueError: a truth of another size than its prediction, or with other values than 0, 1 and 255.
    """
    maps_BXHW = predicted.maps_BXHW
    batch, kinds, height, width = maps_BXHW.shape
    truth_BHW = _categories(truths, predicted.sizes, (height, width)).to(maps_BXHW.device, non_blocking=True)
    probability_BHW = maps_BXHW[:, 0]
    side_BHW = torch.add(probability_BHW > threshold, truth_BHW, alpha=2).int()
    scaled = [(PROB_BINS, probability_BHW * PROB_BINS)]
    if kinds > 1:
        low, high = STD_RANGE
        ratio_BHW = torch.log(maps_BXHW[:, 1].clamp_min(low**2) / low**2)
        scaled.append((STD_BINS, ratio_BHW * (STD_BINS / (2 * math.log(high / low)))))
        scaled.append((MARGIN_BINS, (maps_BXHW[:, 2] - 0.5).abs() * (2 * MARGIN_BINS)))
    tallies = []
    owner_B11 = torch.arange(batch, device=maps_BXHW.device, dtype=torch.int32).view(batch, 1, 1)
    for bins, scaled_BHW in scaled:
        level_BHW = scaled_BHW.int().clamp_(0, bins - 1)
        index = torch.add(side_BHW if batch == 1 else side_BHW + owner_B11 * (bins * SIDES), level_BHW, alpha=SIDES)
        tallies.append(_tally(index, batch * bins * SIDES))
        if len(tallies) == 1:
            tallies.append(_tally(index, batch * bins * SIDES, probability_BHW.double()))
    counted = torch.cat([tally.view(batch, -1).double() for tally in tallies], dim=1).cpu().numpy()
    return [_row(*each) for each in zip(counted, predicted.iou_B.tolist(), strict=True)]


def _row(counted: NDArray[np.float64], predicted_iou: float) -> dict[str, Any]:
    pixels, sums, *others = np.split(counted.reshape(-1, 4, 2), np.cumsum([PROB_BINS, PROB_BINS, STD_BINS])[:3])
    (negatives, false_alarms), (misses, hits), *_ = pixels.sum(0).astype(np.int64).tolist()
    foreground = pixels[:, :OUTSIDE, 1].sum()
    row: dict[str, Any] = {
        "inter_fg": hits,
        "union_fg": hits + misses + false_alarms,
        "inter_bg": negatives,
        "union_bg": negatives + false_alarms + misses,
        "predicted_iou": predicted_iou,
        "fg_probability": float(sums[:, :OUTSIDE, 1].sum() / foreground) if foreground else 0.0,
        "prob_count": pixels[:, :IGNORED].sum((1, 2)).astype(np.int64).tolist(),
        "prob_positive": pixels[:, 1].sum(1).astype(np.int64).tolist(),
        "prob_sum": sums[:, :IGNORED].sum((1, 2)).round(2).tolist(),
    }
    for name, bins, sides in zip(("std", "margin"), (STD_BINS, MARGIN_BINS), others, strict=True):
        whole = sides if len(sides) else np.zeros((bins, 4, 2))
        row[f"{name}_count"] = whole[:, :IGNORED].sum((1, 2)).astype(np.int64).tolist()
        row[f"{name}_wrong"] = (whole[:, 0, 1] + whole[:, 1, 0]).astype(np.int64).tolist()
    return row


def _categories(
    truths: Sequence[NDArray[np.uint8]], sizes: Sequence[tuple[int, int]], largest: tuple[int, int]
) -> Tensor:
    """Truths as 0 background, 1 foreground, `IGNORED`, and `OUTSIDE` where they are padded, uint8 [B, H, W]."""
    padded_BHW = np.full((len(truths), *largest), OUTSIDE, np.uint8)
    for into_HW, truth_HW, size in zip(padded_BHW, truths, sizes, strict=True):
        if truth_HW.shape != size:
            raise ValueError(f"prediction is {size} and truth {truth_HW.shape}; resize the prediction to the truth")
        if ((truth_HW > 1) & (truth_HW != IGNORE)).any():
            strange = np.setdiff1d(truth_HW, [0, 1, IGNORE]).tolist()
            raise ValueError(f"truth holds {strange}; allowed are 0, 1 and {IGNORE}")
        np.minimum(truth_HW, IGNORED, out=into_HW[: size[0], : size[1]])
    return torch.from_numpy(padded_BHW)


def _tally(index: Tensor, size: int, weights: Tensor | None = None) -> Tensor:
    """How often each number below `size` occurs, or the sum of its weights."""
    if index.device.type == "cpu":
        return torch.bincount(index.flatten(), None if weights is None else weights.flatten(), minlength=size)
    # Counting of whole numbers gives the same in any order, and unlike bincount doesn't wait for the device.
    values = torch.ones_like(index) if weights is None else weights
    return torch.zeros(size, dtype=values.dtype, device=index.device).index_add_(0, index.flatten(), values.flatten())
