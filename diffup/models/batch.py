"""Containers of tensors: features of an image; episodes as BAFT reads them; episodes as the trained part reads them.

Letters: B batch · K cues · S stages · P prior maps · C channels · D image-text dimensions · N class names ·
h w feature grid · R side of the RGB image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffup.models.evidence import Bank


@dataclass(frozen=True)
class Features:
    """What one image is to the rest of the method.

    Attributes:
        stages: three tensors [C, h, w], L2-normalised over C, rounded to the feature dtype.
        text: dense image-text embedding [D, h, w], or None where no text is read.
        rgb: low-resolution image [3, R, R] in [0, 1].
        size: height and width of the original image in pixels.
        made_by: `diffup.evaluation.encode.Encoder.identity` of what encoded the image.
    """

    stages: tuple[Tensor, ...]
    text: Tensor | None
    rgb: Tensor
    size: tuple[int, int]
    made_by: str = ""

    def nbytes(self) -> int:
        """Bytes of the tensors."""
        tensors = [*self.stages, self.rgb] + ([] if self.text is None else [self.text])
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def to(self, device: str | torch.device) -> Features:
        """The same on a device."""
        stages, text = tuple(stage.to(device) for stage in self.stages), self.text
        return replace(self, stages=stages, text=None if text is None else text.to(device), rgb=self.rgb.to(device))


@dataclass(frozen=True)
class Episodes:
    """Episodes as features and cues, all with the same K visual cues and with or without text.

    Attributes:
        query, supports: features of B queries and of B lists of K supports.
        weights_BK2hw: foreground and background weight of each support position (`diffup.episodes.cues`); K may be 0.
        kinds: the K cue kinds of each episode.
        names: text embeddings [N, D] of the class names the user gave, or None without a text cue.
        targets: index of each episode's class in `names`.
        device: where priors are computed.
        bank, allowed_BN, drop: see `diffup.models.evidence.Negatives`.
    """

    query: list[Features]
    supports: list[list[Features]]
    weights_BK2hw: Tensor
    kinds: list[tuple[str, ...]]
    names: Tensor | None = None
    targets: Tensor | None = None
    device: str = "cpu"
    bank: Bank | None = None
    allowed_BN: Tensor | None = None
    drop: float = 0.0


@dataclass(frozen=True)
class Batch:
    """Episodes as prior maps: all that the trained part reads.

    Attributes:
        prior_BKSPhw: BAFT's maps in [0, 1] (`diffup.config.PRIOR_MAPS`); a text cue comes last.
        odds_BKSEhw: the log-odds beside them (`diffup.config.EVIDENCE_MAPS`).
        kind_BK: index of each cue's kind in `diffup.config.CUES`.
        rgb_B3RR: the queries at low resolution, in [0, 1].
    """

    prior_BKSPhw: Tensor
    odds_BKSEhw: Tensor
    kind_BK: Tensor
    rgb_B3RR: Tensor
