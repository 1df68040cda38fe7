"""BAFT, the backbone-agnostic feature transform: features of any backbone to prior maps of fixed number and meaning.

Letters: B batch · K cues · S stages · P prior maps per cue and stage · C channels · N class names · h w feature grid ·
L = h·w positions. Nothing that leaves this file depends on a backbone's channel count: every output is a single-channel
map on the query grid. The first `MAPS` are stretched to [0, 1], the `EVIDENCE` after them are log-odds
(`diffup.models.evidence`).

The paper (arXiv 2407.16182) names BAFT and its purpose; its equations are not public. The maps are ours, built from:
PFENet (max-cosine, arXiv 2008.01449), prototype matching (PANet, arXiv 1908.06391) and PGMA-Net (assembling the support
mask by affinity, propagating by self-affinity, arXiv 2308.07539).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import normalize

from diffup.config import EVIDENCE_MAPS, PRIOR_MAPS, map_indices
from diffup.models.evidence import Bank, Negatives, bank_evidence, self_ratio, support_evidence, text_log_odds

MAPS, EVIDENCE = len(PRIOR_MAPS), len(EVIDENCE_MAPS)

SOFT = 0.5  # temperature of the soft assembled map on z-scored affinities; the sharp one's is half of it
PROPAGATE = 0.6
BOX_ROUNDS, BOX_TEMPERATURE = 2, 0.25
TEXT_SHARP, TEXT_SOFT = 0.02, 0.1  # temperatures on image-text cosines
EPS = 1e-6
SHARES = slice(PRIOR_MAPS.index("assembled_sharp"), PRIOR_MAPS.index("propagated_assembled_sharp") + 1)
EDGE = 0.02  # of a probability before its logit
DEEP = 2  # stages whose log-odds go into a cue's value, the deepest
CPU_BYTES, GPU_BYTES = 2 << 20, 256 << 20  # for the affinities that are held at a time


def min_max(maps: Tensor) -> Tensor:
    """Stretch each map to [0, 1] over its last two dimensions; a constant map becomes 0.5.

    Rank normalisation was measured to lose 9-14 mIoU against this.
    """
    low = maps.amin(dim=(-2, -1), keepdim=True)
    span = maps.amax(dim=(-2, -1), keepdim=True) - low
    return torch.where(span > EPS, (maps - low) / span.clamp_min(EPS), 0.5)


def _standardise(affinity_BLM: Tensor, temperature: float) -> Tensor:
    """Subtract the mean over the last two dimensions and divide by the deviation times a temperature, in place:
    backbones differ most in the spread of their cosines."""
    affinity_BLM.sub_(affinity_BLM.mean((-2, -1), keepdim=True))
    free = affinity_BLM.shape[-2] * affinity_BLM.shape[-1] - 1
    std = torch.linalg.vector_norm(affinity_BLM, dim=(-2, -1), keepdim=True).div_(free**0.5)
    return affinity_BLM.div_(std.clamp_min_(EPS).mul_(temperature))


def _cosines(one_BLC: Tensor, other_BMC: Tensor) -> Tensor:
    """Products of L2-normalised features, [B, L, M] in float32.

    TF32 holds all that float16 does, so that with float16 features a GPU's tensor cores lose nothing.
    """
    exact = one_BLC.is_cuda and one_BLC.dtype == other_BMC.dtype == torch.float16
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = before or exact
        one = one_BLC.float()
        return torch.bmm(one, (one if other_BMC is one_BLC else other_BMC.float()).mT)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def self_affinity(features_BLC: Tensor) -> Tensor:
    """Row-stochastic affinity of an image's positions, [B, L, L], from L2-normalised features."""
    return _standardise(_cosines(features_BLC, features_BLC), PROPAGATE).softmax(dim=-1)


def self_affinities(stages: list[Tensor]) -> list[Tensor]:
    """`self_affinity` of S stages [B, C, h, w]."""
    return [self_affinity(positions(stage)) for stage in stages]


def positions(stage: Tensor) -> Tensor:
    """[..., C, h, w] as [..., L, C]."""
    return stage.flatten(-2).mT


def propagate(affinity_BLL: Tensor, maps_BXL: Tensor) -> Tensor:
    """Average each map over the positions that look alike, [B, X, L]."""
    return maps_BXL @ affinity_BLL.transpose(1, 2)


def _stack(maps_BXL: Tensor, affinity_BLL: Tensor, height: int) -> Tensor:
    return torch.cat([maps_BXL, propagate(affinity_BLL, maps_BXL)], dim=1).unflatten(-1, (height, -1))


def settle_boxes(supports: list[Tensor], weights_BK2hw: Tensor, boxed_BK: Tensor) -> Tensor:
    """Separate object from background inside boxes, by the support's own features.

    A position inside a box looks like the box's contents or like what surrounds it: the difference of its cosines to
    both prototypes, averaged over look-alike positions, standardised, summed over stages, and made a share by a
    sigmoid; then once more with the better prototypes. Foreground shares shrink, what they lose is background. On
    msrc15, folds 0 and 1 (ResNet-50, 120 episodes), the prior mean from boxes rose from 42.3 and 61.0 to 47.1 and 65.4.

    Args:
        supports: S stages [B, K, C, h, w], L2-normalised over C.
        weights_BK2hw: foreground and background weight of each position in [0, 1].
        boxed_BK: which cues are boxes, on the CPU; others come back unchanged.

    Returns:
        The weights, [B, K, 2, h, w].
    """
    if not bool(boxed_BK.any()):
        return weights_BK2hw
    inside_NL, outside_NL = weights_BK2hw[boxed_BK].flatten(2).unbind(1)
    stages = [positions(stage)[boxed_BK] for stage in supports]
    alike = [self_affinity(features_NLC) for features_NLC in stages]
    fg_NL, bg_NL = inside_NL, outside_NL
    for _ in range(BOX_ROUNDS):
        evidence_NL = torch.zeros_like(fg_NL)
        for features_NLC, affinity_NLL in zip(stages, alike, strict=True):
            sides = torch.stack([fg_NL, bg_NL], dim=1)
            prototypes = normalize(sides @ features_NLC / sides.sum(-1, keepdim=True).clamp_min(EPS), dim=-1)
            to_fg, to_bg = (features_NLC @ prototypes.transpose(1, 2)).unbind(-1)
            contrast_NL = propagate(affinity_NLL, (to_fg - to_bg)[:, None])[:, 0]
            evidence_NL = evidence_NL + contrast_NL / contrast_NL.std(-1, keepdim=True).clamp_min(EPS) / len(stages)
        share_NL = torch.sigmoid(evidence_NL / BOX_TEMPERATURE)
        fg_NL, bg_NL = inside_NL * share_NL, outside_NL + inside_NL * (1 - share_NL)
    settled = weights_BK2hw.clone()
    settled[boxed_BK] = torch.stack([fg_NL, bg_NL], dim=1).view_as(settled[boxed_BK])
    return settled


def visual_priors(
    query: list[Tensor], alike: list[Tensor], supports: list[Tensor], annotations: Sequence[Tensor],
    negatives: Negatives | None = None,
) -> list[Tensor]:  # fmt: skip
    """Prior maps of K visual cues, for one or more ways to annotate the same supports.

    Masks, boxes and scribbles differ only in their two weight maps: what is neither foreground nor background is
    unknown and has no vote. Both sides are balanced to equal mass, so that a thin scribble is not outvoted. The
    affinities of a pair of images, the costly part, are computed once for all annotations. On a CPU the maps of a
    single pair (B = K = 1) do not depend on how many annotations there are, to the byte.

    Args:
        query: S stages [B, C, h, w], L2-normalised over C, float32 or (on a GPU) float16.
        alike: the query's `self_affinity` at each stage, [B, L, L].
        supports: S stages [B, K, C, h, w], as `query`.
        annotations: foreground and background weight of each support position in [0, 1], [B, K, 2, h, w] each.
        negatives: the queries' answers to a bank of images; without one, evidence is from the supports alone.

    Returns:
        [B, K, S, P, h, w] for each annotation, P = `MAPS` in [0, 1] and `EVIDENCE` log-odds.
    """
    shots, height = annotations[0].shape[1], annotations[0].shape[-2]
    balanced = [_balanced(*weights.flatten(3).unbind(2)) for weights in annotations]
    found: list[list[Tensor]] = [[] for _ in annotations]
    told: list[list[Tensor]] = [[] for _ in annotations]
    bank = None if negatives is None else negatives.bank
    for stage, (query_BChw, affinity_BLL, support_BKChw) in enumerate(zip(query, alike, supports, strict=True)):
        matched = _match(positions(query_BChw), positions(support_BKChw), balanced, bank, stage)
        for (maps_BKPL, densities), stages, dense in zip(matched, found, told, strict=True):
            both = _stack(maps_BKPL.flatten(1, 2), affinity_BLL, height)
            stages.append(rearrange(both, "b (r k p) h w -> b k (r p) h w", r=2, k=shots))
            dense.append(densities)
    made, affinity_BLL = [], _mean(alike)
    for stages, dense, (sides, _) in zip(found, told, balanced, strict=True):
        maps = torch.stack(stages, dim=2)
        if negatives is None:  # a share's logit is the log-odds of its two densities
            sharp, soft, _, _, spread = torch.logit(maps[:, :, :, SHARES].flatten(-2), EDGE).unbind(3)
            odds = support_evidence(sharp, soft, spread)
        else:
            kept = negatives.kept(supports, sides)
            odds = bank_evidence(torch.stack(dense, dim=2), alike, negatives, kept)
        made.append(with_evidence(min_max(maps), odds, affinity_BLL))
    return made


def _mean(alike: Sequence[Tensor]) -> Tensor:
    """The mean over stages, without a copy of them all."""
    total = alike[0]
    for affinity in alike[1:]:
        total = total + affinity
    return total / len(alike)


def with_evidence(prior_BKSPhw: Tensor, odds_BKSEL: Tensor, affinity_BLL: Tensor) -> Tensor:
    """Prior maps with the evidence beside them, and at last both in one: their logits' mean, refined.

    The shallowest stage's log-odds are left out of it: on five backbones, folds 0 and 1 of vocmsrc20, that gained 0.9.
    """
    sharp_BKL, soft_BKL = odds_BKSEL[:, :, -DEEP:, :2].mean(2).unbind(2)
    prior_BKL = min_max(prior_BKSPhw.mean(dim=(2, 3))).flatten(2)
    refined_BKL = self_ratio(affinity_BLL, (torch.logit(prior_BKL, EDGE) + sharp_BKL + soft_BKL) / 3)
    refined_BKS1L = refined_BKL[:, :, None, None].expand(-1, -1, odds_BKSEL.shape[2], -1, -1)
    every = torch.cat([odds_BKSEL, refined_BKS1L], dim=3).unflatten(-1, prior_BKSPhw.shape[-2:])
    return torch.cat([prior_BKSPhw, every], dim=3)


def _match(
    query_BLC: Tensor, support_BKLC: Tensor, balanced: list[tuple[Tensor, Tensor]], bank: Bank | None, stage: int
) -> list[tuple[Tensor, Tensor]]:
    """Max-cosine, contrast to prototypes, sharp and soft assembled maps of pairs, [B, K, 4, L] for each annotation; and
    densities among the support's foreground, soft and sharp, and among its background, [B, K, 4, L].

    The L × L affinities of a few pairs at a time: memory stays bounded at any K, and on a CPU they stay in cache. The
    cosine to a prototype is the weighted mean of the cosines to its positions, divided by the prototype's length.
    """
    batch, shots, places = support_BKLC.shape[:3]
    pairs = batch * shots
    support = support_BKLC.flatten(0, 1)
    votes = [(sides.flatten(0, 1), hollow.flatten(0, 1)) for sides, hollow in balanced]
    found = [sides.new_empty(pairs, 4, places) for sides, _ in votes]
    shares = [sides.new_empty(pairs, 2, 2, places) for sides, _ in votes]
    dense = [sides.new_empty(pairs, 4, places) for sides, _ in votes]
    chunk = max(1, (GPU_BYTES if query_BLC.is_cuda else CPU_BYTES) // (4 * places * places))
    owners = torch.arange(pairs, device=query_BLC.device) // shots
    for start in range(0, pairs, chunk):
        part = slice(start, start + chunk)
        query = query_BLC[part] if shots == 1 else query_BLC[owners[part]]
        cosine = _cosines(query, support[part])
        for maps, (sides, hollow) in zip(found, votes, strict=True):
            maps[part, 0] = (cosine - hollow[part, None]).amax(-1)
            lengths = torch.linalg.vector_norm(sides[part] @ support[part].float(), dim=-1, keepdim=True)
            to_fg, to_bg = ((sides[part] @ cosine.mT) / lengths.clamp_min(EPS)).unbind(1)
            torch.sub(to_fg, to_bg, out=maps[part, 1])
        if bank is not None:
            weights = bank.weights(cosine.clone(), stage)
            for row in (0, 1):
                for densities, (sides, _) in zip(dense, votes, strict=True):
                    densities[part, row::2] = sides[part] @ weights.mT
                weights = weights.square_()
        # exp is the costly part: the sharp weights are the square of the soft ones.
        weights = _standardise(cosine, SOFT).clamp_max_(40.0).exp_()
        for row in (1, 0):
            for told, (sides, _) in zip(shares, votes, strict=True):
                torch.bmm(sides[part], weights.mT, out=told[part, row])
            weights = weights.square_()
    for maps, told in zip(found, shares, strict=True):
        torch.div(told[:, :, 0], told.sum(2).clamp_min_(1e-20), out=maps[:, 2:])
    shape = (batch, shots, 4, places)
    return [(maps.view(shape), densities.view(shape)) for maps, densities in zip(found, dense, strict=True)]


def _balanced(foreground: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides of equal mass [..., 2, L], and what to take off a position's cosine for max-cosine [..., L].

    A position counts for max-cosine if at least half of it, or the best it gets for tiny objects, is foreground.
    """
    foreground = foreground / foreground.sum(-1, keepdim=True).clamp_min(EPS)
    background = background / background.sum(-1, keepdim=True).clamp_min(EPS)
    hollow = 2.0 * (foreground < 0.5 * foreground.amax(-1, keepdim=True).clamp_min(EPS))
    return torch.stack([foreground, background], dim=-2), hollow


def text_priors(alike: list[Tensor], similarity_BNhw: Tensor, target_B: Tensor) -> Tensor:
    """Prior maps of one text cue.

    Args:
        alike: the query's `self_affinity` at each stage of the visual backbone, [B, L, L].
        similarity_BNhw: cosine of each position's image-text embedding to each class name the user gave.
        target_B: index of the episode's class among the N names.

    Returns:
        [B, 1, S, P, h, w], P = `MAPS` in [0, 1] and `EVIDENCE` log-odds: contrast to the mean of the other names,
        margin to the best other name, and two softmax temperatures; the same propagated by each stage's self-affinity;
        then the log-odds between the name and the others.
    """
    similarity_BNL = similarity_BNhw.flatten(2)
    batch, names, _ = similarity_BNL.shape
    index = target_B.view(batch, 1, 1).expand(-1, 1, similarity_BNL.shape[-1])
    target_BL = similarity_BNL.gather(1, index).squeeze(1)
    if names > 1:
        others = similarity_BNL.scatter(1, index, float("-inf"))
        contrast = target_BL - (similarity_BNL.sum(1) - target_BL) / (names - 1)
        margin = target_BL - others.amax(1)
    else:  # a single name has nothing to be contrasted with
        contrast = margin = target_BL
    maps = [contrast, margin]
    for temperature in (TEXT_SHARP, TEXT_SOFT):
        probability = (similarity_BNL / temperature).softmax(dim=1).gather(1, index).squeeze(1)
        maps.append(probability if names > 1 else target_BL)
    maps_BXL = torch.stack(maps, dim=1)
    stages = [_stack(maps_BXL, affinity_BLL, similarity_BNhw.shape[-2]) for affinity_BLL in alike]
    prior = min_max(torch.stack(stages, dim=1)).unsqueeze(1)
    sharp, soft = (text_log_odds(similarity_BNL, target_B, temperature) for temperature in (TEXT_SHARP, TEXT_SOFT))
    spread = torch.stack([propagate(affinity_BLL, sharp[:, None]) for affinity_BLL in alike], dim=2)
    sharp, soft = (odds[:, None, None].expand(-1, 1, len(alike), -1) for odds in (sharp, soft))
    return with_evidence(prior, support_evidence(sharp, soft, spread), _mean(alike))


def chosen_maps(prior_BKSPhw: Tensor, names: str) -> Tensor:
    """The maps of a prior set (`diffup.config.ModelConfig.prior_maps`) out of all, [B, K, S, P', h, w]."""
    indices = map_indices(names)
    return prior_BKSPhw if len(indices) == MAPS else prior_BKSPhw[:, :, :, list(indices)]


def prior_mean(prior_BKSPhw: Tensor) -> Tensor:
    """The untrained fusion to beat: min-max of the mean over cues, stages and maps, [B, h, w]."""
    return min_max(prior_BKSPhw.mean(dim=(1, 2, 3)))


def evidence_logit(odds_BKSEhw: Tensor, objectness: float = 0.0) -> Tensor:
    """The untrained fusion with absolute evidence, [B, h, w]: mean over cues of what each says (`with_evidence`), and a
    share of objectness; above 0 is foreground."""
    refined = odds_BKSEhw[:, :, 0, EVIDENCE_MAPS.index("refined")].mean(1)
    if not objectness:
        return refined
    return refined + objectness * odds_BKSEhw[:, :, :, EVIDENCE_MAPS.index("objectness")].mean((1, 2))


def prototype_contrast(query_BChw: Tensor, support_BKChw: Tensor, weights_BK2hw: Tensor) -> Tensor:
    """The training-free prototype baseline (PANet, arXiv 1908.06391) as a probability, [B, h, w].

    Cosine to the foreground prototype minus cosine to the background prototype (each averaged over the K supports),
    mapped to (1 + difference) / 2 so that the usual decision "difference > 0" is a threshold at 0.5.

    Args:
        query_BChw, support_BKChw: one stage's features, L2-normalised over C.
        weights_BK2hw: foreground and background weights in [0, 1].
    """
    both = weights_BK2hw.transpose(1, 2).contiguous()
    both = both / both.sum(dim=(-2, -1), keepdim=True).clamp_min(EPS)
    prototypes = torch.einsum("btkhw,bkchw->btc", both, support_BKChw)
    to_fg, to_bg = torch.einsum("bchw,btc->tbhw", query_BChw, normalize(prototypes, dim=-1))
    return (1 + to_fg - to_bg) / 2
