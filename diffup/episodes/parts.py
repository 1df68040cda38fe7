"""Parts of objects as training classes: the upper or lower share of each object of a class.

A decoder that has seen whole objects alone fills a support's shirt up to the whole person. Parts that are cut alike
from support and query teach it to stop where the support stops. They are made in training alone, from labels of base
classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from diffup.episodes.annotations import EIGHT

SHARES = (0.3, 0.7)  # of an object's height that a part takes


@dataclass(frozen=True)
class Part:
    """Which part of each object.

    Attributes:
        share: of the object's height.
        upper: whether it is the upper one.
    """

    share: float
    upper: bool

    @staticmethod
    def drawn(rng: np.random.Generator) -> Part:
        """One at random."""
        return Part(float(rng.uniform(*SHARES)), bool(rng.random() < 0.5))

    def of(self, mask_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The mask of the part: the rest of each connected object is background, 255 stays; at least a row is left.

        Args:
            mask_HW: 0 background, 1 the class, 255 void.
        """
        parts, _ = ndimage.label(mask_HW == 1, EIGHT)
        cut = mask_HW.copy()
        for label, place in enumerate(ndimage.find_objects(parts), 1):
            height = place[0].stop - place[0].start
            kept = max(1, round(self.share * height))
            rows = slice(kept, None) if self.upper else slice(0, height - kept)
            inside = cut[place][rows]
            inside[parts[place][rows] == label] = 0
        return cut
