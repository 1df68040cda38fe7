"""UAPF, uncertainty-aware prior fusion: any number and mix of cues becomes one mean and one variance map.

Letters: B batch · K cues · S stages · P prior maps · h w feature grid. The paper fixes the outputs (mean, variance);
the precision-weighted form below is ours:

    mean     = Σ_k w_k μ_k,                     w_k = e^{-s_k} / Σ_j e^{-s_j}
    variance = 1 / Σ_k e^{-s_k} + Σ_k w_k (μ_k - mean)²

Stages are read by one shared network and pooled symmetrically (mean and spread), so that no weight is tied to "the
stage that is best on the training backbone".
"""

from __future__ import annotations

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from diffup.baft import MAPS, min_max
from diffup.config import CUES

LOG_VARIANCE_RANGE = (-6.0, 2.0)
EDGE = 0.02  # probabilities are kept in [EDGE, 1 - EDGE] before a logit


def logit(probability: Tensor) -> Tensor:
    """Logit of a probability clamped away from 0 and 1."""
    return torch.logit(probability.clamp(EDGE, 1 - EDGE))


class UAPF(nn.Module):
    """Uncertainty-aware prior fusion (paper section III-C2), permutation-invariant in the cues.

    With untrained output layers it is the plain mean of the priors: learning starts from the baseline to beat.
    """

    def __init__(self, width: int = 32, learned: bool = True) -> None:
        super().__init__()
        self.learned = learned
        if not learned:
            return
        self.read_stage = nn.Sequential(nn.Conv2d(MAPS, width, 3, padding=1), nn.GELU())
        self.cue_embedding = nn.Embedding(len(CUES), width)
        self.mix = nn.Sequential(
            nn.Conv2d(2 * width + 2, width, 3, padding=1),
            nn.GroupNorm(4, width),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
        )
        self.out = nn.Conv2d(width, 2, 1)
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            assert self.out.bias is not None
            self.out.bias.copy_(torch.tensor([0.0, -2.0]))

    def forward(self, prior_BKSPhw: Tensor, kind_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse K ≥ 1 cues.

        Args:
            prior_BKSPhw: BAFT's maps in [0, 1].
            kind_BK: index of each cue's kind in `diffup.config.CUES`.

        Returns:
            mean [B, h, w] in [0, 1] and variance [B, h, w] > 0.
        """
        batch, cues = kind_BK.shape
        base_BKhw = min_max(reduce(prior_BKSPhw, "b k s p h w -> b k h w", "mean"))
        if not self.learned:
            mean = min_max(base_BKhw.mean(1))
            spread = prior_BKSPhw.flatten(1, 3).var(dim=1, unbiased=False)
            return mean, spread + 1e-3
        others_BKhw = (base_BKhw.sum(1, keepdim=True) - base_BKhw) / max(cues - 1, 1) if cues > 1 else base_BKhw
        read = self.read_stage(rearrange(prior_BKSPhw, "b k s p h w -> (b k s) p h w"))
        read = rearrange(read, "(bk s) c h w -> bk s c h w", bk=batch * cues)
        pooled = torch.cat([read.mean(1), read.std(1, unbiased=False)], dim=1)
        pooled[:, : self.cue_embedding.embedding_dim] += self.cue_embedding(kind_BK.reshape(-1))[:, :, None, None]
        agreement = torch.stack([base_BKhw, base_BKhw - others_BKhw], dim=2).flatten(0, 1)
        shift, log_variance = self.out(self.mix(torch.cat([pooled, agreement], dim=1))).unbind(1)
        value_BKhw = torch.sigmoid(logit(base_BKhw) + rearrange(shift, "(b k) h w -> b k h w", k=cues))
        log_variance = rearrange(log_variance.clamp(*LOG_VARIANCE_RANGE), "(b k) h w -> b k h w", k=cues)
        precision = torch.exp(-log_variance)
        weight = precision / precision.sum(1, keepdim=True)
        mean = (weight * value_BKhw).sum(1)
        disagreement = (weight * (value_BKhw - mean[:, None]) ** 2).sum(1)
        return mean, 1 / precision.sum(1) + disagreement
