"""Regions of an image by its own features, and averages of a map within them.

Letters: B batch · S stages · C channels · h w feature grid · L = h·w positions.

Positions are joined by average linkage at the distance 1 - mean cosine over stages, and the tree is cut at several
numbers of regions (`CUTS`). A region mostly holds one object or part, so that a map's average within it is steadier
than its value at a position; no single number of regions is right, so that the averages at all cuts are averaged once
more. The rule is ours, not the paper's (docs/method.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

CUTS = (12, 20, 32, 50, 80)  # numbers of regions
SHARE = 0.5  # of a logit that is averaged within regions


def tree(stages: Sequence[Tensor]) -> NDArray[np.float64]:
    """How an image's positions join: the average linkage of `scipy.cluster.hierarchy`, [L - 1, 4].

    Args:
        stages: S × [C, h, w], L2-normalised over C, of two positions at least.
    """
    flat = [stage.flatten(1).float() for stage in stages]
    cosines = sum((stage.T @ stage for stage in flat[1:]), flat[0].T @ flat[0]) / len(flat)
    distances = (1 - cosines).clamp_min_(0).double().cpu().numpy()
    return np.asarray(linkage(squareform(distances, checks=False), "average"))


def labels_of(joined: NDArray[np.float64], *, regions: int = 0, distance: float = 0.0) -> NDArray[np.int64]:
    """Each position's region, [L], numbered from 0: at most so many regions, or those joined within a distance."""
    threshold, criterion = (regions, "maxclust") if regions else (distance, "distance")
    return np.asarray(fcluster(joined, threshold, criterion), dtype=np.int64) - 1


def averaged(values: NDArray[np.float64], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Values with each replaced by the mean of its region; labels of the same shape, 0 or more. Keeps the total."""
    flat = labels.ravel()
    means = np.bincount(flat, values.ravel()) / np.bincount(flat).clip(1)
    return means[flat].reshape(values.shape)


def region_average(map_hw: Tensor, stages: Sequence[Tensor]) -> Tensor:
    """A map averaged within an image's regions, mean over `CUTS`, [h, w].

    Args:
        map_hw: on the feature grid.
        stages: the image's features, S × [C, h, w], L2-normalised over C.
    """
    joined, values = tree(stages), map_hw.double().cpu().numpy().ravel()
    found = sum((averaged(values, labels_of(joined, regions=cut)) for cut in CUTS), np.zeros_like(values)) / len(CUTS)
    return torch.from_numpy(found).to(map_hw).view_as(map_hw)


def with_regions(logits_Bhw: Tensor, queries: Sequence[Sequence[Tensor]]) -> Tensor:
    """Logits with `SHARE` of each averaged within its query's regions, [B, h, w].

    Args:
        logits_Bhw: of B queries, on the feature grid.
        queries: their features, B × S × [C, h, w], L2-normalised over C.
    """
    averages = torch.stack([region_average(*each) for each in zip(logits_Bhw, queries, strict=True)])
    return torch.lerp(logits_Bhw, averages, SHARE)
