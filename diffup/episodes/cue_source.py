"""Cue weights of supports and ground truth of queries on grids, from a data set's masks, cached up to a limit."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from diffup.config import CueConfig
from diffup.data.dataset import Dataset
from diffup.episodes.annotations import annotate
from diffup.episodes.cues import cue_weights
from diffup.episodes.parts import Part
from diffup.episodes.protocols import nearest
from diffup.errors import UserError
from diffup.lru import ByteLRU, nbytes

ANNOTATION_SEED = 0
LIMIT_BYTES = 256 << 20  # of weights, and of truths; COCO's would be gigabytes


class CueSource:
    """Annotations and truths of one data set under one `CueConfig`.

    A support's annotation is a function of (data set, image, class, kind) alone, so every backbone, shot count and
    method sees the same box or scribble.

    Args:
        dataset: what is annotated.
        config: how.
        limit_bytes: of the weights that are kept, of the truths, and of the labels; those used least recently are made
            again.
    """

    def __init__(self, dataset: Dataset, config: CueConfig, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self.dataset, self.config = dataset, config
        self._weights: ByteLRU[tuple[str, int, str, int], Tensor] = ByteLRU(
            limit_bytes, lambda tensor: nbytes([tensor])
        )
        self._truths: ByteLRU[tuple[str, int, int], tuple[Tensor, Tensor]] = ByteLRU(limit_bytes, nbytes)
        self._labels: ByteLRU[tuple[str, int, tuple[int, int]], NDArray[np.uint8]] = ByteLRU(
            limit_bytes, lambda label: label.nbytes
        )

    def annotation(self, image_id: str, class_index: int, kind: str, part: Part | None = None) -> NDArray[np.uint8]:
        """The annotation drawn for a support, or a part of it, [H, W]: 0 background, 1 foreground, 2 unknown."""
        mask = self.dataset.mask(image_id, class_index)
        return annotate(
            part.of(mask) if part else mask,
            kind,
            seed_parts=(self.dataset.name, image_id, class_index, ANNOTATION_SEED),
            boxes=self.config.boxes,
            scribble_width=self.config.scribble_width,
        )

    def weights(self, image_id: str, class_index: int, kind: str, grid: int, part: Part | None = None) -> Tensor:
        """Foreground and background weights of a support, or a part of it, on a grid of side `grid`, [2, h, w].

        Raises:
            UserError: the support does not show the class; the image is named.
        """
        key = (image_id, class_index, kind, grid)
        if part is None and (known := self._weights.get(key)) is not None:
            return known
        try:
            made = cue_weights(self.annotation(image_id, class_index, kind, part), kind, grid)
            return made if part else self._weights.put(key, made)
        except UserError as error:
            name = self.dataset.classes[class_index]
            raise UserError(f"{self.dataset.name}, image {image_id}, class {name!r}: {error}") from error

    def label(self, image_id: str, class_index: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """A query's mask at the size (H, W) that predictions are scored at: 0 background, 1 foreground, 255 ignored."""
        key = (image_id, class_index, size)
        if (known := self._labels.get(key)) is not None:
            return known
        return self._labels.put(key, nearest(self.dataset.mask(image_id, class_index), size))

    def truth(self, image_id: str, class_index: int, grid: int, part: Part | None = None) -> tuple[Tensor, Tensor]:
        """A query's mask for a loss: share of foreground among valid pixels, and share of valid pixels, [R, R] each."""
        key = (image_id, class_index, grid)
        if part is None and (known := self._truths.get(key)) is not None:
            return known
        mask = self.dataset.mask(image_id, class_index)
        pixels = torch.from_numpy(part.of(mask) if part else mask)
        planes = torch.stack([pixels == 1, pixels != 255]).float()
        foreground, valid = F.adaptive_avg_pool2d(planes[None], grid)[0]
        made = ((foreground / valid.clamp_min(1e-6)).clamp(0, 1), valid.clone())
        return made if part else self._truths.put(key, made)
