"""UAPF, uncertainty-aware prior fusion: any number and mix of cues becomes one mean and one variance map.

Letters: B batch · K cues · S stages · P prior maps · h w feature grid. The paper fixes the outputs (mean, variance);
the precision-weighted form below is ours:

    m        = Σ_k w_k μ_k,   w_k = e^{-s_k} / Σ_j e^{-s_j}
    mean     = m stretched to [0, 1] (min-max over the map)
    variance = 1 / Σ_k e^{-s_k} + Σ_k w_k (μ_k - m)²

The variance is around m, before stretching: it is in the cues' own units, whatever the contrast of the map.

From absolute evidence (``ModelConfig.base = "evidence"``) nothing is stretched, as how much of the image looks like the
object would be lost again. l_k is a cue's log-odds, and

    mean     = σ(Σ_k w_k l_k)
    variance = p (1 - p) Σ_k w_k e^{s_k} + Σ_k w_k (σ(l_k) - p)²,   p the mean, s_k zero untrained

Maps have a meaning that no backbone changes, so each kind of cue learns one weight a map. Stages have not: they are
read by one shared network and pooled symmetrically (mean and spread), so that no weight is tied to "the stage that is
best on the training backbone".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from diffup.config import CUES, EVIDENCE_MAPS, OBJECTNESS
from diffup.models.baft import MAPS, min_max

LOG_VARIANCE_RANGE = (-6.0, 2.0)
STAGES = 3
ODDS = tuple(
    EVIDENCE_MAPS.index(name) for name in ("odds_sharp", "odds_soft", "propagated_odds")
)  # read stage by stage
SHIFT = 1.0  # of a logit, at most
MAP_SCALE = 10.0  # of the map weights' logits: they learn this much faster than the rest
DOUBT = 0.02  # added to p(1 - p), the variance that a cue starts from
STATISTICS = 4  # see `UAPF._statistics`
EDGE = 0.02  # probabilities are kept in [EDGE, 1 - EDGE] before a logit
Layer = TypeVar("Layer", bound=nn.Module)


def logit(probability: Tensor) -> Tensor:
    """Logit of a probability clamped away from 0 and 1."""
    return torch.logit(probability, EDGE)


def deviation(maps: Tensor, dim: int, correction: int = 0) -> Tensor:
    """`torch.std` over one dimension, which on a CPU is many times slower."""
    norm = torch.linalg.vector_norm(maps - maps.mean(dim, keepdim=True), dim=dim)
    return norm / (maps.shape[dim] - correction) ** 0.5


def zeroed(layer: Layer) -> Layer:
    """A layer whose weight and bias start at zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


@dataclass(frozen=True)
class Fused:
    """What UAPF says of B queries.

    Attributes:
        mean: [B, h, w] in [0, 1]. Stretched to that range with base ``"prior"``.
        variance: [B, h, w] > 0, around the mean before it is stretched (in the plain variant: of all the cues' maps, at
            each position, around their own mean).
        context: what the cues say in detail (`details`), [B, X, h, w]; X = 0 with base ``"prior"``.
    """

    mean: Tensor
    variance: Tensor
    context: Tensor

    def detach(self) -> Fused:
        """The same without gradients."""
        return Fused(self.mean.detach(), self.variance.detach(), self.context.detach())


def cue_logits(odds_BKSEhw: Tensor) -> Tensor:
    """What each cue says untrained, [B, K, h, w]: its evidence in one (`diffup.models.baft.with_evidence`), and, the
    less the more cues there are, what the bank says of objects."""
    refined, objects = (odds_BKSEhw[:, :, :, EVIDENCE_MAPS.index(name)] for name in ("refined", "objectness"))
    return refined[:, :, 0] + OBJECTNESS / odds_BKSEhw.shape[1] * objects.mean(2)


def details(prior_BKSPhw: Tensor, odds_BKSEhw: Tensor, told_BKhw: Tensor) -> Tensor:
    """All that a cue says, [B, K, X, h, w] with X = P + 4 + len(`ODDS`) · `STAGES`, each about in [-2, 2].

    Prior maps are pooled over the stages, log-odds are not: how far stages differ is what tells a sure position from
    one where they only average out, and a stage has the same relative depth in every backbone.
    """
    refined, objects = (odds_BKSEhw[:, :, :, EVIDENCE_MAPS.index(name)].mean(2) for name in ("refined", "objectness"))
    stretched = logit(min_max(prior_BKSPhw.mean((2, 3))))
    odds = [odds_BKSEhw[:, :, :, ODDS].flatten(2, 3), torch.stack([told_BKhw, refined, stretched, objects], dim=2)]
    return torch.cat([2 * prior_BKSPhw.mean(2) - 1, torch.cat(odds, dim=2) / 2], dim=2)


class UAPF(nn.Module):
    """Uncertainty-aware prior fusion (paper section III-C2), permutation-invariant in the cues.

    It looks at one position at a time and may shift the logit of a cue's untrained value by at most `SHIFT`: with 3 × 3
    layers and a free shift it learned how the training backbone's maps look, and lost 2 mIoU on held-out classes
    against no learned fusion at all. Learning starts from the baseline to beat: the plain mean of a cue's priors, or
    its evidence in one.

    The variance starts at p(1 - p) of a cue's value and learns a factor from features that it does not shape: the
    features serve the mask. Started at a constant with a small loss weight it had stayed one.
    """

    def __init__(self, width: int = 16, learned: bool = True, maps: int = MAPS, base: str = "prior") -> None:
        super().__init__()
        self.learned, self.absolute = learned, base == "evidence"
        self.context = maps + 4 + len(ODDS) * STAGES if self.absolute else 0
        if not learned:
            return
        if not self.absolute:
            self.map_logits = nn.Parameter(torch.zeros(len(CUES), maps))
            self.read_stage = nn.Sequential(nn.Conv2d(maps, width, 1), nn.GELU())
        self.cue_embedding = nn.Embedding(len(CUES), width)
        read = STATISTICS + width + (self.context or width)
        self.mix = nn.Sequential(nn.Conv2d(read, width, 1), nn.GELU(), nn.Conv2d(width, width, 1), nn.GELU())
        self.shift, self.factor = zeroed(nn.Conv2d(width, 1, 1)), zeroed(nn.Conv2d(width, 1, 1))

    def map_weights(self) -> Tensor:
        """Weight of each prior map in a cue's value with base ``"prior"``, [len(CUES), P]; rows add up to 1."""
        return (MAP_SCALE * self.map_logits).softmax(-1)

    def forward(self, prior_BKSPhw: Tensor, odds_BKSEhw: Tensor, kind_BK: Tensor) -> Fused:
        """Fuse K ≥ 1 cues.

        Args:
            prior_BKSPhw: BAFT's maps in [0, 1].
            odds_BKSEhw: its log-odds, which base ``"prior"`` does not read.
            kind_BK: index of each cue's kind in `diffup.config.CUES`.
        """
        return (self._absolute if self.absolute else self._stretched)(prior_BKSPhw, odds_BKSEhw, kind_BK)

    def _stretched(self, prior_BKSPhw: Tensor, odds_BKSEhw: Tensor, kind_BK: Tensor) -> Fused:
        none = prior_BKSPhw[:, 0, 0, :0]
        if not self.learned:
            base_BKhw = min_max(reduce(prior_BKSPhw, "b k s p h w -> b k h w", "mean"))
            return Fused(min_max(base_BKhw.mean(1)), deviation(prior_BKSPhw.flatten(1, 3), 1).square() + 1e-3, none)
        weight_BKPhw = self.map_weights()[kind_BK][..., None, None]
        base_BKhw = min_max((weight_BKPhw * prior_BKSPhw.mean(2)).sum(2))  # a product would be rounded under autocast
        stages = self.read_stage(rearrange(prior_BKSPhw, "b k s p h w -> (b k s) p h w"))
        stages = rearrange(stages, "(b k s) c h w -> b k s c h w", b=len(kind_BK), k=kind_BK.shape[1])
        pooled, spread = (part.flatten(0, 1) for part in (stages.mean(2), deviation(stages, 2)))
        cue_NC11 = self.cue_embedding(kind_BK.reshape(-1))[:, :, None, None]
        shift, factor = self._heads([pooled + cue_NC11, spread], prior_BKSPhw, base_BKhw)
        value_BKhw = torch.sigmoid(logit(base_BKhw) + shift)
        precision = torch.exp(-(doubt(value_BKhw).log() + factor).clamp(*LOG_VARIANCE_RANGE))
        total = precision.sum(1)
        weight = precision / total[:, None]
        mean = (weight * value_BKhw).sum(1)
        disagreement = (weight * (value_BKhw - mean[:, None]) ** 2).sum(1)
        return Fused(min_max(mean), 1 / total + disagreement, none)

    def _absolute(self, prior_BKSPhw: Tensor, odds_BKSEhw: Tensor, kind_BK: Tensor) -> Fused:
        told_BKhw = cue_logits(odds_BKSEhw)
        context = details(prior_BKSPhw, odds_BKSEhw, told_BKhw)
        if not self.learned:
            mean = torch.sigmoid(told_BKhw.mean(1))
            return Fused(mean, doubt(mean), context.mean(1))
        cue_NC11 = self.cue_embedding(kind_BK.reshape(-1))[:, :, None, None]
        read = [context.flatten(0, 1), cue_NC11.expand(-1, -1, *context.shape[-2:])]
        shift, factor = self._heads(read, prior_BKSPhw, torch.sigmoid(told_BKhw))
        told_BKhw = told_BKhw + shift
        factor = factor.clamp(*LOG_VARIANCE_RANGE)
        weight = (-factor).softmax(1)
        mean = torch.sigmoid((weight * told_BKhw).sum(1))
        disagreement = (weight * (torch.sigmoid(told_BKhw) - mean[:, None]) ** 2).sum(1)
        variance = doubt(mean) * (weight * factor.exp()).sum(1) + disagreement
        return Fused(mean, variance, (weight[:, :, None] * context).sum(1))

    def _heads(self, read: list[Tensor], prior_BKSPhw: Tensor, base_BKhw: Tensor) -> tuple[Tensor, Tensor]:
        """The shift of each cue's logit and the logarithm of its variance's factor, [B, K, h, w], from what is read."""
        hidden = self.mix(torch.cat([*read, self._statistics(prior_BKSPhw, base_BKhw)], dim=1))
        shift, factor = (
            rearrange(layer(features), "(b k) 1 h w -> b k h w", k=base_BKhw.shape[1])
            for layer, features in ((self.shift, hidden), (self.factor, hidden.detach()))
        )
        return SHIFT * torch.tanh(shift), factor

    @staticmethod
    def _statistics(prior_BKSPhw: Tensor, base_BKhw: Tensor) -> Tensor:
        """What a cue says and how sure it is: mean, distance to the other cues' mean, margin, spread of the maps."""
        cues = base_BKhw.shape[1]
        others = (base_BKhw.sum(1, keepdim=True) - base_BKhw) / max(cues - 1, 1) if cues > 1 else base_BKhw
        spread = deviation(prior_BKSPhw.flatten(2, 3), 2, correction=1)
        return torch.stack([base_BKhw, base_BKhw - others, (2 * base_BKhw - 1).abs(), spread], dim=2).flatten(0, 1)


def doubt(probability: Tensor) -> Tensor:
    """The variance that a probability starts from, p(1 - p) and a little; no gradient flows back."""
    fixed = probability.detach()
    return fixed * (1 - fixed) + DOUBT
