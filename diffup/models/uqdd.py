"""UQDD, the unified quality-aware diffusion decoder: a U-Net of 3 encoder, 1 middle and 3 decoder blocks.

Letters: B batch · C channels · H W decoder grid. The paper fixes (Figure 2): diffusion in mask space, one channel; SCM
and DQM modulate all seven blocks; DQM works at error-map level and at IoU level. Layer sizes, and what each modulation
reads, are ours and are written where they are made.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from diffup.config import ModelConfig
from diffup.models.uapf import Fused, logit, zeroed

QUERY_INFOS = 4  # low-resolution RGB and edge strength
GROUPS = 8
TIME_FEATURES = 32
IOU_STATISTICS = 7  # see `QualityHead.forward`


@lru_cache(maxsize=8)
def _frequencies(device: torch.device) -> Tensor:
    return torch.exp(torch.linspace(0, math.log(1000.0), TIME_FEATURES // 2)).to(device)


def time_features(t_B: Tensor) -> Tensor:
    """Sinusoidal features of t in [0, 1], [B, TIME_FEATURES]."""
    angle = t_B[:, None] * _frequencies(t_B.device)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class SCM(nn.Module):
    """Self-conditioned modulation: spatial scale and shift (SPADE, arXiv 1903.07291) of one block.

    Reads UAPF's mean and variance and the backbone-agnostic query infos; with ``config.self_conditioning`` also the
    previous estimate of the mask (arXiv 2208.04202). Starts as the identity.
    """

    def __init__(self, conditions: int, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(conditions, 16, 3, padding=1), nn.GELU())
        self.out = zeroed(nn.Conv2d(16, 2 * channels, 3, padding=1))

    def forward(self, features_BCHW: Tensor, condition_BXHW: Tensor) -> Tensor:
        scale, shift = self.out(self.body(condition_BXHW)).chunk(2, dim=1)
        return torch.addcmul(features_BCHW + shift, features_BCHW, scale)


class QualityHead(nn.Module):
    """DQM's judge: predicts the error map |x̂_0 - x_0| and the IoU of the current estimate x̂_0.

    Reads x_t, the estimate, UAPF's mean and variance. Supervised in training; ground truth is never its input. The IoU
    starts from two that need no learning, the ones to be expected if the error map, or the estimate's own
    probabilities, were right (`expected_iou`); the head (Mask Scoring R-CNN, arXiv 1903.00241) learns what to add, from
    pooled features and the estimate's statistics.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(4, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=2, dilation=2),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=4, dilation=4),
            nn.GELU(),
        )
        self.error = nn.Conv2d(width, 1, 1)
        self.iou = nn.Sequential(nn.Linear(3 * width + IOU_STATISTICS, 32), nn.GELU(), zeroed(nn.Linear(32, 1)))

    def forward(
        self, x_BHW: Tensor, estimate_BHW: Tensor, mean_BHW: Tensor, variance_BHW: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits of the error map [B, H, W] and of the IoU [B]."""
        stacked = torch.stack([x_BHW, estimate_BHW, mean_BHW, variance_BHW.log()], dim=1)
        features = self.body(stacked.contiguous(memory_format=torch.channels_last))
        error_BHW = self.error(features).squeeze(1)
        positions = estimate_BHW[0].numel()
        mask_BHW = (estimate_BHW > 0.5).float()
        maps = [mask_BHW, estimate_BHW, mean_BHW, variance_BHW, torch.sigmoid(error_BHW).detach()]
        weights = torch.stack([torch.ones_like(mask_BHW), mask_BHW, estimate_BHW], dim=1).flatten(2)
        sums = torch.bmm(weights[:, :2], torch.stack(maps, dim=1).flatten(2).mT)  # in all, and inside the mask
        (size, sure, _, _, wrong), (_, sure_in, mean_in, variance_in, wrong_in) = (
            row.unbind(1) for row in sums.unbind(1)
        )
        hits, missed = torch.stack([size - wrong_in, sure_in]), torch.stack([wrong - wrong_in, sure - sure_in])
        by_error, by_itself = logit(expected_iou(size, hits, missed))
        sure_at, mean_at, variance_at = torch.stack([sure_in, mean_in, variance_in]) / size.clamp_min(1.0)
        statistics = [
            sure / positions,
            by_error,
            by_itself,
            logit(sure_at),
            logit(mean_at),
            variance_at.clamp_min(1e-4).log(),
            (size / positions + 1e-3).log(),
        ]
        inside = torch.bmm(features.flatten(2), weights[:, 2:].mT).squeeze(2) / sure.clamp_min(1e-6)[:, None]
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3)), inside, torch.stack(statistics, 1)], dim=1)
        return error_BHW, by_error.lerp(by_itself, 0.5) + self.iou(pooled).squeeze(1)


def expected_iou(size: Tensor, hits: Tensor, missed: Tensor) -> Tensor:
    """IoU of a binary mask to be expected where each pixel is foreground with its probability.

    The ratio of the expectations of intersection and union.

    Args:
        size: pixels of the mask.
        hits, missed: sum of the probabilities inside and outside of it.
    """
    return hits / (size + missed).clamp_min(1.0)


class Block(nn.Module):
    """Residual block with SCM, then DQM at both levels: spatial scale by the error map, FiLM by time and IoU."""

    def __init__(self, inputs: int, outputs: int, conditions: int, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm = nn.GroupNorm(GROUPS, outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.scm = SCM(conditions, outputs) if config.scm else None
        self.error = zeroed(nn.Conv2d(1, 2 * outputs, 3, padding=1)) if config.dqm_error else None
        self.film = zeroed(nn.Linear(TIME_FEATURES + int(config.dqm_iou), 2 * outputs))

    def forward(self, features_BCHW: Tensor, condition: Sizes, error: Sizes, vector_BX: Tensor) -> Tensor:
        hidden = self.norm(self.first(features_BCHW))
        size = hidden.shape[-2:]
        if self.scm is not None:
            hidden = self.scm(hidden, condition[size])
        if self.error is not None:
            scale, shift = self.error(error[size]).chunk(2, dim=1)
            hidden = torch.addcmul(hidden + shift, hidden, scale)
        scale, shift = rearrange(self.film(vector_BX), "b c -> b c 1 1").chunk(2, dim=1)
        hidden = F.gelu(torch.addcmul(hidden + shift, hidden, scale))
        return self.skip(features_BCHW) + self.second(hidden)


class Sizes(dict[torch.Size, Tensor]):
    """Maps [B, X, H, W] at the sizes of the blocks, each averaged once."""

    def __init__(self, maps_BXHW: Tensor) -> None:
        super().__init__({maps_BXHW.shape[-2:]: maps_BXHW})
        self._whole = maps_BXHW

    def __missing__(self, size: torch.Size) -> Tensor:
        self[size] = F.adaptive_avg_pool2d(self._whole, (size[0], size[1]))
        return self[size]


class UQDD(nn.Module):
    """Unified quality-aware diffusion decoder (paper section III-C3): predicts x_0 from x_t and the condition.

    With ``config.residual`` it predicts a correction to the logit of UAPF's mean, starting at zero. Features of the
    evidence, `context` of them, are read once, where the mask comes in.
    """

    def __init__(self, config: ModelConfig, context: int = 0) -> None:
        super().__init__()
        self.config = config
        conditions = 2 + int(config.self_conditioning) + (QUERY_INFOS if config.query_infos else 0)
        w1, w2, w3 = config.width, 2 * config.width, 3 * config.width

        def blocks(*sizes: tuple[int, int]) -> nn.ModuleList:
            return nn.ModuleList(Block(inputs, outputs, conditions, config) for inputs, outputs in sizes)

        self.stem = nn.Conv2d(1 + conditions + context, w1, 3, padding=1)
        self.encoder = blocks((w1, w1), (w1, w2), (w2, w3))
        self.middle = Block(w3, w3, conditions, config)
        self.decoder = blocks((w3 + w3, w3), (w3 + w2, w2), (w2 + w1, w1))
        self.quality = QualityHead()
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, w1), nn.GELU(), zeroed(nn.Conv2d(w1, 1, 3, padding=1)))

    def forward(
        self,
        x_BHW: Tensor,
        t_B: Tensor,
        estimate_BHW: Tensor,
        fused: Fused,
        infos_BXHW: Tensor,
        strength: float = 1.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One denoising evaluation.

        Args:
            x_BHW: noisy mask x_t.
            t_B: time in [0, 1].
            estimate_BHW: previous estimate of the mask in [0, 1] (UAPF's mean at the start); no gradient flows back.
            fused: what UAPF says, on the decoder grid.
            infos_BXHW: see `query_infos`.
            strength: factor of the correction of the mean's logit (of the whole logit without ``config.residual``).

        Returns:
            Logits of the mask [B, H, W]; logits of the error map [B, H, W] and of the IoU [B] *of the estimate*.
        """
        error_BHW, iou_B = self.quality(x_BHW, estimate_BHW, fused.mean, fused.variance)
        maps = [2 * fused.mean - 1, fused.variance.log() / 4]
        if self.config.self_conditioning:
            maps.append(2 * estimate_BHW - 1)
        condition = torch.stack(maps, dim=1)
        if self.config.query_infos:
            condition = torch.cat([condition, infos_BXHW], dim=1)
        condition = condition.contiguous(memory_format=torch.channels_last)
        conditions, error_map = Sizes(condition), Sizes(torch.sigmoid(error_BHW).detach()[:, None])
        vector = time_features(t_B)
        if self.config.dqm_iou:
            vector = torch.cat([vector, torch.sigmoid(iou_B).detach()[:, None]], dim=1)

        hidden = self.stem(torch.cat([x_BHW[:, None], condition, fused.context], dim=1))
        skips = []
        for level, block in enumerate(self.encoder):
            hidden = block(F.avg_pool2d(hidden, 2) if level else hidden, conditions, error_map, vector)
            skips.append(hidden)
        hidden = self.middle(hidden, conditions, error_map, vector)
        for block in self.decoder:
            skip = skips.pop()
            if hidden.shape[-2:] != skip.shape[-2:]:
                hidden = F.interpolate(hidden, size=skip.shape[-2:], mode="nearest")
            hidden = block(torch.cat([hidden, skip], dim=1), conditions, error_map, vector)
        change = self.out(hidden).squeeze(1)
        if not self.config.residual:
            return strength * change, error_BHW, iou_B
        if bound := self.config.bound:
            change = bound * torch.tanh(change / bound)
        logits = logit(fused.mean) + strength * change
        return logits, error_BHW, iou_B


def query_infos(image_B3HW: Tensor) -> Tensor:
    """Backbone-agnostic facts of the query: RGB and edge strength, both standardised per image, [B, 4, H, W]."""
    grey = image_B3HW.mean(1, keepdim=True)
    dx = F.pad(grey[..., 1:] - grey[..., :-1], (0, 1))
    dy = F.pad(grey[..., 1:, :] - grey[..., :-1, :], (0, 0, 0, 1))
    maps = torch.cat([image_B3HW, (dx.square() + dy.square()).sqrt()], dim=1)
    mean, std = maps.mean((2, 3), keepdim=True), maps.std((2, 3), keepdim=True)
    return (maps - mean) / (std + 1e-3)
