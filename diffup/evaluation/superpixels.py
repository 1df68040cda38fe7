"""Superpixels of photographs at their original size, and logits that are averaged within them ("snap").

A map from a coarse grid has no sharp edges; an image has. The logit at full resolution is replaced by the mean of
itself and of its averages within the superpixels of three segmentations, of the image alone: no label is read. The rule
is ours, the segmentations are scikit-image's: Felzenszwalb and Huttenlocher (IJCV 2004) at each of `SCALES`, and SLIC
(Achanta et al., TPAMI 2012).

Letters: H W size of the image in pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffup.lru import ByteLRU
from diffup.models.regions import averaged

SCALES = (100, 400)  # of felzenszwalb; larger: fewer, larger superpixels
SLIC_SEGMENTS = 300  # about so many superpixels of an image
LIMIT_BYTES = 256 << 20  # of superpixels that are kept

Labels = tuple[NDArray[np.integer], ...]


def segmentations(image_HW3: NDArray[np.uint8]) -> Labels:
    """The superpixels of an RGB image: felzenszwalb at each of `SCALES`, then SLIC; each [H, W], from 0."""
    from skimage.segmentation import felzenszwalb, slic  # takes half a second to import

    made = [felzenszwalb(image_HW3, scale=scale) for scale in SCALES]
    made.append(slic(image_HW3, n_segments=SLIC_SEGMENTS, start_label=0))
    return tuple(labels.astype(np.min_scalar_type(int(labels.max()))) for labels in made)


def snapped(logit_HW: Tensor, superpixels: Labels) -> Tensor:
    """The mean of a logit and of its averages within each of an image's segmentations, [H, W], on the CPU.

    Args:
        logit_HW: at the image's original size.
        superpixels: of the image, see `segmentations`.

    Raises:
        ValueError: logit and superpixels are of different sizes.
    """
    values = logit_HW.double().cpu().numpy()
    for labels in superpixels:
        if labels.shape != values.shape:
            raise ValueError(f"the logit is {values.shape} and the image {labels.shape}; upsample it to the image's")
    means = [averaged(values, labels) for labels in superpixels]
    return torch.from_numpy(np.mean([values, *means], axis=0)).to(logit_HW.dtype)


class Superpixels:
    """Superpixels by image id, made on first use and kept up to some bytes.

    Args:
        read: an image [H, W, 3] by its id.
        limit_bytes: of what is kept.
    """

    def __init__(self, read: Callable[[str], NDArray[np.uint8]], *, limit_bytes: int = LIMIT_BYTES) -> None:
        self.read = read
        self._kept: ByteLRU[str, Labels] = ByteLRU(limit_bytes, lambda kept: sum(labels.nbytes for labels in kept))

    def get(self, image_id: str) -> Labels:
        """Those of one image."""
        if (known := self._kept.get(image_id)) is not None:
            return known
        return self._kept.put(image_id, segmentations(self.read(image_id)))
