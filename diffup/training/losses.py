"""The loss of a training step, a mean over episodes: the losses of a step's shares add up to that of the whole.

Letters: B batch · R side of the decoder grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from diffup.models.diffup import DiffUpNet
from diffup.training.sampler import Step

LOSS_WEIGHTS = {"mask": 1.0, "mean": 0.5, "variance": 0.5, "error": 0.3, "iou": 1.0}


def batch_iou(probability_BRR: Tensor, truth_BRR: Tensor, valid_BRR: Tensor) -> Tensor:
    """IoU of each episode, what DQM learns to predict, [B]: as `diffup.evaluation.metrics.episode_ious` has it.

    That is 1 where there was nothing to find and nothing was found.
    """
    predicted, actual = probability_BRR > 0.5, truth_BRR > 0.5
    inside = valid_BRR > 0.5
    both = (predicted & actual & inside).sum((1, 2)).float()
    either = ((predicted | actual) & inside).sum((1, 2)).float()
    return torch.where(either > 0, both / either.clamp_min(1.0), 1.0)


def _weighted_bce(logits_BRR: Tensor, target_BRR: Tensor, valid_BRR: Tensor) -> Tensor:
    loss = F.binary_cross_entropy_with_logits(logits_BRR, target_BRR, reduction="none")
    return _valid_mean(loss, valid_BRR)


def _valid_mean(map_BRR: Tensor, valid_BRR: Tensor) -> Tensor:
    """Mean over an episode's valid pixels, then over episodes: each episode counts the same in whatever batch."""
    return ((map_BRR * valid_BRR).sum((1, 2)) / valid_BRR.sum((1, 2)).clamp_min(1.0)).mean()


def _dice(logits_BRR: Tensor, target_BRR: Tensor, valid_BRR: Tensor) -> Tensor:
    probability = torch.sigmoid(logits_BRR) * valid_BRR
    target = target_BRR * valid_BRR
    overlap = 2 * (probability * target).sum((1, 2)) + 1
    return (1 - overlap / (probability.sum((1, 2)) + target.sum((1, 2)) + 1)).mean()


def step_loss(model: DiffUpNet, step: Step) -> Tensor:
    """Loss of a step, a mean over episodes: mask (BCE + Dice), UAPF's mean and variance, DQM's error map and IoU.

    x_t is built as ``config.schedule`` says; half of the self-aligned steps feed back a first prediction.
    """
    config = model.config
    truth, valid, infos, noise = step.truth_BRR, step.valid_BRR, step.infos_BXRR, step.noise_BRR
    fused = model.fuse(step.prior_BKSPhw, step.odds_BKSEhw, step.kind_BK)
    mean, variance = fused.mean, fused.variance
    ones = torch.ones(len(truth), device=truth.device)
    prior = mean.detach()
    estimate = prior

    def start() -> Tensor:
        return torch.zeros_like(noise) if config.one_step else model.schedule.diffuse(prior, ones, noise, prior)

    x, t = start(), ones
    if step.feed_back:
        with torch.no_grad():
            first, _, _ = model.uqdd(x, t, estimate, fused, infos)
            estimate = torch.sigmoid(first)
    if not config.one_step and config.schedule != "self_aligned":
        t = step.t_B
        x = model.schedule.diffuse(truth, t, step.fresh_BRR, prior)
    elif step.feed_back:
        t = step.t_B
        x = model.schedule.diffuse(estimate, t, step.fresh_BRR, prior)

    logits, error, iou = model.uqdd(x, t, estimate, fused, infos)
    final = torch.sigmoid(logits).detach()
    final_error, final_iou = model.uqdd.quality(model.schedule.encode(final), final, prior, variance.detach())
    terms = {
        "mask": _weighted_bce(logits, truth, valid) + _dice(logits, truth, valid),
        "error": _weighted_bce(error, (estimate - truth).abs(), valid)
        + _weighted_bce(final_error, (final - truth).abs(), valid),
        "iou": F.mse_loss(torch.sigmoid(iou), batch_iou(estimate, truth, valid))
        + F.mse_loss(torch.sigmoid(final_iou), batch_iou(final, truth, valid)),
    }
    if config.uapf:
        clamped = mean.clamp(1e-3, 1 - 1e-3)
        terms["mean"] = _weighted_bce(torch.logit(clamped), truth, valid)
        squared = (mean.detach() - truth) ** 2
        terms["variance"] = _valid_mean(squared / variance + variance.log(), valid) / 2
    return torch.stack([LOSS_WEIGHTS[name] * term for name, term in terms.items()]).sum()
