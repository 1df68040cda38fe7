"""What the Python API says of a query."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 0.5


@dataclass(frozen=True, eq=False)
class Result:
    """What DiffUp says of one query, at the query's own size.

    Attributes:
        mask: [H, W] bool, probability > 0.5.
        probability: [H, W] float32 in [0, 1]; with several samples their mean.
        variance: [H, W] float32 > 0: UAPF's, how uncertain the priors leave a pixel; from a checkpoint that reads
            evidence, p (1 - p) of the probability p.
        predicted_iou: DQM's estimate of the mask's IoU in [0, 1]; with several samples their mean.
        spread: [H, W] float32, standard deviation of the probability over samples; None for one sample.
    """

    mask: NDArray[np.bool_]
    probability: NDArray[np.float32]
    variance: NDArray[np.float32]
    predicted_iou: float
    spread: NDArray[np.float32] | None = None
