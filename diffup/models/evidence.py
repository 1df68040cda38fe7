"""Absolute evidence: how much of a query looks like the object at all, which maps stretched to [0, 1] can't say.

Letters: B batch · K cues · S stages · C channels · N images of the bank · M positions of each · L = h·w positions.

A *bank* is a few dozen images from outside the episode, by no label: their positions stand for whatever else there is.
With z the cosine to a position, standardised by mean and deviation of the cosines between different images of the
bank, and f, b the support's foreground and background weights, each of sum 1:

    P⁺ = Σ f e^{z/τ}     P⁻ = Σ b e^{z/τ}     P^B = mean over the bank's positions of e^{z/τ}
    odds = log P⁺ - log(½ P⁻ + ½ P^B)                   (without a bank: log P⁺ - log P⁻)

clamped to ±`LIMIT`, at the temperatures `SHARP` and `SOFT`. *Objectness* needs labelled objects in the bank: log of the
density among them minus that among all else. None of it depends on a backbone's channel count or on the spread of its
cosines. The formulas are ours, not the paper's; docs/method.md has what they gain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SHARP, SOFT = 0.25, 0.5
LIMIT = 3.9  # of log-odds: probabilities of 0.02 and 0.98
TINY = 1e-30
CERTAIN = 1e-6  # a probability is kept this far from 0 and 1 before its logit
BALANCE = 0.25  # share of the log ratio of both sides' masses that `self_ratio` takes off


@dataclass(frozen=True)
class Bank:
    """Positions of images from outside the episode, in one backbone's features.

    Attributes:
        positions: S × [N, M, C], L2-normalised over C, float32.
        object_NM: whether a labelled object is there; all False without labels.
        mean, deviation: of the cosines between positions of different images, at each stage.
    """

    positions: tuple[Tensor, ...]
    object_NM: Tensor
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @staticmethod
    def of(positions: Sequence[Tensor], object_NM: Tensor) -> Bank:
        """A bank of at least two images from its positions, S × [N, M, C]."""
        images = object_NM.shape[0]
        owner = torch.arange(images, device=object_NM.device).repeat_interleave(object_NM.shape[1])
        apart = owner[:, None] != owner
        cosines = [(stage.flatten(0, 1) @ stage.flatten(0, 1).T)[apart] for stage in positions]
        mean, deviation = ([float(value) for value in values] for values in
                           ((c.mean() for c in cosines), (c.std().clamp_min(1e-6) for c in cosines)))  # fmt: skip
        return Bank(tuple(positions), object_NM, tuple(mean), tuple(deviation))

    def __len__(self) -> int:
        return len(self.object_NM)

    def weights(self, cosines: Tensor, stage: int) -> Tensor:
        """e^{z/τ} of cosines at τ = `SOFT`, in place; its square is that at `SHARP`."""
        return cosines.sub_(self.mean[stage]).mul_(1 / (self.deviation[stage] * SOFT)).clamp_max_(40.0).exp_()

    def answers(self, query: Sequence[Tensor]) -> Tensor:
        """How much of each image of the bank the positions of queries look like.

        Args:
            query: S stages [B, L, C].

        Returns:
            [B, S, 3, L, N], sums of e^{z/τ} over an image's positions: at `SOFT`, at `SHARP`, and at `SOFT` over those
            with a labelled object.
        """
        made = []
        for stage, features_BLC in enumerate(query):
            cosines = features_BLC.float() @ self.positions[stage].flatten(0, 1).T
            weights = self.weights(cosines, stage).unflatten(-1, self.object_NM.shape)
            soft, objects = weights.sum(-1), torch.where(self.object_NM, weights, 0.0).sum(-1)
            made.append(torch.stack([soft, weights.square_().sum(-1), objects], dim=1))
        return torch.stack(made, dim=1)

    def nearness(self, stage: int, prototypes_PC: Tensor) -> Tensor:
        """How well each image's best position answers a foreground prototype, [P, N]."""
        return (prototypes_PC @ self.positions[stage].flatten(0, 1).T / self.deviation[stage]).unflatten(
            -1, self.object_NM.shape
        ).amax(-1)  # fmt: skip


@dataclass(frozen=True)
class Negatives:
    """A bank, and what it has to say in some episodes.

    Attributes:
        bank: itself.
        answers_BS3LN: of the queries (`Bank.answers`).
        allowed_BN: whether an image may count; None: all may. In training, those without the episode's class.
        drop: share of the images that is left out for each cue: those that answer its foreground best. For a bank that
            may show the object that is looked for.
    """

    bank: Bank
    answers_BS3LN: Tensor
    allowed_BN: Tensor | None = None
    drop: float = 0.0

    def of(self, rows: Tensor) -> Negatives:
        """Those of some episodes."""
        allowed = None if self.allowed_BN is None else self.allowed_BN[rows]
        return replace(self, answers_BS3LN=self.answers_BS3LN[rows], allowed_BN=allowed)

    def kept(self, supports: Sequence[Tensor], sides_BK2L: Tensor) -> Tensor:
        """Which images count for each cue, [B, K, N]; supports S × [B, K, C, h, w], weights of sum 1."""
        batch, shots = sides_BK2L.shape[:2]
        allowed_BKN = sides_BK2L.new_ones(batch, shots, len(self.bank))
        if self.allowed_BN is not None:
            allowed_BKN = allowed_BKN * self.allowed_BN[:, None].to(allowed_BKN.device)
        if not self.drop:
            return allowed_BKN
        near_BKN = torch.zeros_like(allowed_BKN)
        for stage, features in enumerate(supports):
            prototype_BKC = (sides_BK2L[:, :, :1] @ features.flatten(3).mT.float()).squeeze(2)
            prototype = torch.nn.functional.normalize(prototype_BKC, dim=-1).flatten(0, 1)
            near_BKN += self.bank.nearness(stage, prototype).view_as(near_BKN)
        near_BKN = near_BKN.masked_fill(allowed_BKN == 0, float("-inf"))
        rank_BKN = near_BKN.argsort(-1, descending=True).argsort(-1)
        count_BK1 = (allowed_BKN.sum(-1, keepdim=True) * self.drop).round()
        return allowed_BKN * (rank_BKN >= count_BK1)


def log_odds(found: Tensor, other: Tensor) -> Tensor:
    """Log of the ratio of two densities, clamped."""
    return (found.clamp_min(TINY).log() - other.clamp_min(TINY).log()).clamp(-LIMIT, LIMIT)


def bank_evidence(densities_BKS4L: Tensor, alike: Sequence[Tensor], negatives: Negatives, kept_BKN: Tensor) -> Tensor:
    """What a pair says at each stage, `diffup.config.EVIDENCE_MAPS` but for the last.

    Args:
        densities_BKS4L: P⁺ at `SOFT` and at `SHARP`, then P⁻ at both.
        alike: the query's self-affinity at each stage, [B, L, L].
        negatives: the query's answers to a bank.
        kept_BKN: weight of each image of the bank for each cue, 1 or 0.

    Returns:
        [B, K, S, 6, L], log-odds in ±`LIMIT`.
    """
    fg, bg = densities_BKS4L.chunk(2, dim=3)
    shown_NM = negatives.bank.object_NM
    labelled_N, each = shown_NM.sum(1).to(kept_BKN), shown_NM.shape[1]
    counts_BK3 = kept_BKN @ torch.stack([torch.full_like(labelled_N, each), labelled_N, each - labelled_N], dim=1)
    told_BKSXL = torch.einsum("bkn,bsxln->bksxl", kept_BKN, negatives.answers_BS3LN)  # soft, sharp, objects
    every, objects = told_BKSXL[:, :, :, :2], told_BKSXL[:, :, :, 2]
    size, labelled, rest = counts_BK3.clamp_min(1.0)[..., None, None].unbind(2)
    bank = every / size[..., None]
    soft, sharp = log_odds(fg, (bg + bank) / 2).unbind(3)
    inside, over = log_odds(torch.stack([fg[:, :, :, 1], bank[:, :, :, 1]]), bg[:, :, :, 1])
    found = log_odds(objects / labelled, (every[:, :, :, 0] - objects) / rest)
    known = (counts_BK3[..., 1:] > 0).all(-1)[..., None, None]
    objects = torch.where(known, found, 0.0)
    spread = torch.stack([sharp[:, :, stage] @ affinity.mT for stage, affinity in enumerate(alike)], dim=2)
    return torch.stack([sharp, soft, spread, inside, over, objects], dim=3)


def support_evidence(sharp_BKSL: Tensor, soft_BKSL: Tensor, spread_BKSL: Tensor) -> Tensor:
    """The same where there is no bank, [B, K, S, 6, L], from the odds within the support at both temperatures."""
    zero = torch.zeros_like(sharp_BKSL)
    return torch.stack([sharp_BKSL, soft_BKSL, spread_BKSL, sharp_BKSL, zero, zero], dim=3)


def self_ratio(affinity_BLL: Tensor, logits_BKL: Tensor) -> Tensor:
    """Once more with the query's own positions as support: log of what look-alikes say for and against, balanced.

    With p = σ(logits) and a row-stochastic affinity A: log (A p / A (1 - p)) - `BALANCE` log (Σ p / Σ (1 - p)).
    """
    share_BKL = torch.sigmoid(logits_BKL)
    told_BKL = torch.logit(share_BKL @ affinity_BLL.mT, CERTAIN)
    mass_BK1 = torch.logit(share_BKL.mean(-1, keepdim=True), CERTAIN)
    return torch.sub(told_BKL, mass_BK1, alpha=BALANCE).clamp(-LIMIT, LIMIT)


def text_log_odds(similarity_BNL: Tensor, target_B: Tensor, temperature: float) -> Tensor:
    """Log-odds between a class name and the other names at each position, [B, L]; 0 where there is no other name."""
    batch, names, positions = similarity_BNL.shape
    if names < 2:
        return similarity_BNL.new_zeros(batch, positions)
    index = target_B.view(batch, 1, 1).expand(-1, 1, positions)
    scaled = similarity_BNL / temperature
    others = scaled.scatter(1, index, float("-inf")).logsumexp(1) - math.log(names - 1)
    return (scaled.gather(1, index).squeeze(1) - others).clamp(-LIMIT, LIMIT)
