"""DiffUp: BAFT → UAPF → UQDD, from features and cues to a mask with its confidence.

Letters: B batch · K cues · S stages · P prior maps · h w feature grid · R side of the decoder grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffup.config import CUES, ModelConfig, SampleConfig, map_indices
from diffup.models.baft import (
    MAPS,
    chosen_maps,
    positions,
    prototype_contrast,
    self_affinities,
    settle_boxes,
    text_priors,
    visual_priors,
)
from diffup.models.batch import Batch, Episodes
from diffup.models.evidence import Negatives
from diffup.models.insid3 import insid3_mask
from diffup.models.schedule import Schedule
from diffup.models.uapf import UAPF, Fused, logit
from diffup.models.uqdd import UQDD, query_infos

VARIANCE_FLOOR = 1e-4


@dataclass(frozen=True)
class Segmentation:
    """What the model says of a batch, on its decoder grid.

    Attributes:
        logits: of the mask, [B, R, R].
        mean: UAPF's, [B, R, R].
        variance: [B, R, R] > 0. UAPF's; with base ``"evidence"`` p(1 - p) of the mask's probability p, which was
            measured to tell wrong pixels better.
        predicted_iou: DQM's estimate for the mask at 0.5, [B] in [0, 1].
    """

    logits: Tensor
    mean: Tensor
    variance: Tensor
    predicted_iou: Tensor


def _stages(episodes: Episodes) -> tuple[list[Tensor], list[Tensor]]:
    """Stage features in float32: S queries [B, C, h, w] and S supports [B, K, C, h, w] (none at K = 0)."""
    device = episodes.device
    query = [torch.stack(stage).to(device).float() for stage in zip(*(f.stages for f in episodes.query), strict=True)]
    if not episodes.weights_BK2hw.shape[1]:
        return query, []
    per_episode = [list(zip(*(f.stages for f in supports), strict=True)) for supports in episodes.supports]
    stacked = [torch.stack([torch.stack(stages[s]) for stages in per_episode]) for s in range(len(query))]
    return query, [stage.to(device).float() for stage in stacked]


def _settled(episodes: Episodes, supports: list[Tensor]) -> Tensor:
    """The supports' weights, boxes settled by `settle_boxes`."""
    weights = episodes.weights_BK2hw.to(episodes.device)
    boxed = torch.tensor([[kind == "box" for kind in row] for row in episodes.kinds])
    return settle_boxes(supports, weights, boxed)


def priors(episodes: Episodes) -> Batch:
    """BAFT for a batch of episodes.

    Raises:
        ValueError: no cue, or a text cue without targets or text features.
    """
    query, supports = _stages(episodes)
    alike = self_affinities(query)
    parts, kinds = [], []
    if supports:
        negatives = None
        if episodes.bank is not None:
            answers = episodes.bank.answers([positions(stage) for stage in query])
            negatives = Negatives(episodes.bank, answers, episodes.allowed_BN, episodes.drop)
        parts += visual_priors(query, alike, supports, [_settled(episodes, supports)], negatives)
        kinds.append(torch.tensor([[CUES.index(kind) for kind in row] for row in episodes.kinds]))
    if episodes.names is not None:
        if episodes.targets is None or any(f.text is None for f in episodes.query):
            raise ValueError("a text cue needs the episodes' targets and queries encoded with a text model")
        dense = torch.stack([f.text for f in episodes.query if f.text is not None]).to(episodes.device).float()
        similarity = torch.einsum("bdhw,nd->bnhw", dense, episodes.names.to(dense))
        parts.append(text_priors(alike, similarity, episodes.targets.to(episodes.device)))
        kinds.append(torch.full((len(query[0]), 1), CUES.index("text")))
    if not parts:
        raise ValueError("an episode needs at least one cue")
    rgb = torch.stack([features.rgb for features in episodes.query])
    maps = torch.cat(parts, dim=1)
    return Batch(maps[:, :, :, :MAPS].contiguous(), maps[:, :, :, MAPS:], torch.cat(kinds, dim=1), rgb)


@torch.inference_mode()
def prototype(episodes: Episodes) -> Tensor:
    """Probability of the prototype baseline, [B, h, w] in [0, 1]: `prototype_contrast` on the middle stage."""
    query, supports = _stages(episodes)
    assert supports, "it has no text form"
    middle = len(query) // 2
    return prototype_contrast(query[middle], supports[middle], _settled(episodes, supports))


@torch.inference_mode()
def insid3(episodes: Episodes) -> Tensor:
    """Masks of INSID3's rule, [B, h, w], 0 or 1 (`diffup.models.insid3`)."""
    query, supports = _stages(episodes)
    assert supports, "it has no text form"
    weights_BK2hw = _settled(episodes, supports)
    masks = [
        insid3_mask([stage[b] for stage in query], [stage[b] for stage in supports], weights)
        for b, weights in enumerate(weights_BK2hw)
    ]
    return torch.stack(masks).float()


class DiffUpNet(nn.Module):
    """The trained part: from prior maps to a mask."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.schedule = Schedule(kind=config.schedule, bit_scale=config.bit_scale)
        self.uapf = UAPF(learned=config.uapf, maps=len(map_indices(config.prior_maps)), base=config.base)
        self.uqdd = UQDD(config, self.uapf.context)

    def fuse(self, prior_BKSPhw: Tensor, odds_BKSEhw: Tensor, kind_BK: Tensor) -> Fused:
        """What UAPF says, on the decoder grid [R, R], from the maps of ``config.prior_maps``."""
        fused = self.uapf(prior_BKSPhw, odds_BKSEhw, kind_BK)
        absolute, size = self.uapf.absolute, (self.config.decoder_grid, self.config.decoder_grid)
        mean = logit(fused.mean) if absolute else fused.mean
        every = torch.cat([mean[:, None], fused.variance[:, None], fused.context], dim=1)
        fine = F.interpolate(every, size=size, mode="bilinear", align_corners=False)
        mean, variance, context = fine[:, 0], fine[:, 1], fine[:, 2:]
        mean = torch.sigmoid(mean) if absolute else mean.clamp(0, 1)
        return Fused(mean, variance.clamp_min(VARIANCE_FLOOR), context)

    def infos(self, rgb_B3HW: Tensor) -> Tensor:
        """Query infos on the decoder grid, [B, 4, R, R], from the queries' low-resolution RGB."""
        return query_infos(F.adaptive_avg_pool2d(rgb_B3HW, self.config.decoder_grid))

    def sample(self, fused: Fused, infos_BXRR: Tensor, noise_BRR: Tensor, sample: SampleConfig) -> Segmentation:
        """DDIM to a mask, as `sample` says (the one-step variant ignores noise and steps).

        From the prior: sampling starts at t = 2·√variance (its mean over the map, at most 1), from the noised mean.
        """
        mean_BRR, variance_BRR = fused.mean, fused.variance
        batch = mean_BRR.shape[0]
        begin_B = torch.ones(batch, device=mean_BRR.device)
        if sample.start == "prior":
            begin_B = (2 * variance_BRR.sqrt().mean((1, 2))).clamp(0.05, 1)
        x = self.schedule.diffuse(mean_BRR, begin_B, noise_BRR, mean_BRR)
        steps = sample.steps
        if self.config.one_step:
            x, begin_B, steps = torch.zeros_like(x), torch.ones_like(begin_B), 1
        estimate = mean_BRR
        t_B = begin_B
        for left in reversed(range(steps)):
            logits, _, _ = self.uqdd(x, t_B, estimate, fused, infos_BXRR, sample.strength)
            estimate = torch.sigmoid(logits)
            if left:
                s_B = left / steps * begin_B
                x, t_B = self.schedule.ddim_step(x, estimate, t_B, s_B, mean_BRR), s_B
        _, iou = self.uqdd.quality(self.schedule.encode(estimate), estimate, mean_BRR, variance_BRR)
        if self.uapf.absolute:
            variance_BRR = (estimate * (1 - estimate)).clamp_min(VARIANCE_FLOOR)
        return Segmentation(logits, mean_BRR, variance_BRR, torch.sigmoid(iou))

    @torch.inference_mode()
    def segment_priors(self, batch: Batch, sample: SampleConfig, noise_BRR: Tensor) -> Segmentation:
        """Segment a batch from its prior maps, on the model's device.

        Args:
            batch: from `priors`, with all maps; those of ``config.prior_maps`` are read.
            sample: DDIM steps, strength and start.
            noise_BRR: standard Gaussian noise, one map per episode, from the episode's own seed.
        """
        self.eval()
        device = next(self.parameters()).device
        read = chosen_maps(batch.prior_BKSPhw, self.config.prior_maps)
        fused = self.fuse(read.to(device), batch.odds_BKSEhw.to(device), batch.kind_BK.to(device))
        infos = self.infos(batch.rgb_B3RR.to(device))
        return self.sample(fused, infos, noise_BRR.to(device), sample)
