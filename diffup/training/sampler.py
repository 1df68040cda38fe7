"""Training episodes: drawn from base classes, made into prior maps, and distorted as other backbones might.

Every step draws its own episodes, cue kinds, K and distortions from a generator seeded by (seed, fold, step), so a
resumed run is the same run. Novel classes of the fold are background here.

Letters: B batch · K cues · S stages · P prior maps · h w feature grid · R side of the decoder grid.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from diffup.config import VISUAL_CUES, ModelConfig, TrainConfig
from diffup.episodes.cue_source import CueSource
from diffup.episodes.parts import Part
from diffup.errors import UserError
from diffup.evaluation.bank import GivenBank
from diffup.evaluation.encode import FeatureCache
from diffup.models.baft import chosen_maps, min_max
from diffup.models.batch import Batch, Episodes, Features
from diffup.models.diffup import priors
from diffup.models.uapf import ODDS
from diffup.models.uqdd import query_infos
from diffup.training.draw_cache import Keep, afresh

TEXT_STEPS = 2  # a step has text with this many times the share of text among `TrainConfig.cue_weights`
SIZES = 10  # classes of object sizes that are balanced
TEXT_ONLY_SHARE = 0.25  # of the steps that have a text cue


@dataclass(frozen=True)
class Drawn(Batch):
    """A step's episodes before distortion, with their truth and the seed [1] of the rest of the step's randomness."""

    truth_BRR: Tensor
    valid_BRR: Tensor
    seed_1: Tensor


@dataclass(frozen=True)
class Step:
    """What a training step, or a share of one, reads: all tensors but `feed_back` have the episodes as first dimension.

    Attributes:
        prior_BKSPhw: the maps that the model reads, distorted.
        odds_BKSEhw: the log-odds beside them, distorted.
        kind_BK: index of each cue's kind.
        infos_BXRR: query infos.
        truth_BRR, valid_BRR: share of foreground among valid pixels, and share of valid pixels.
        noise_BRR: noise that sampling would start from.
        fresh_BRR, t_B: noise and times of x_t.
        feed_back: whether a first prediction is fed back.
    """

    prior_BKSPhw: Tensor
    odds_BKSEhw: Tensor
    kind_BK: Tensor
    infos_BXRR: Tensor
    truth_BRR: Tensor
    valid_BRR: Tensor
    noise_BRR: Tensor
    fresh_BRR: Tensor
    t_B: Tensor
    feed_back: bool

    def __len__(self) -> int:
        return len(self.kind_BK)

    def __getitem__(self, rows: slice) -> Step:
        return self._each(lambda tensor: tensor[rows].clone())

    def to(self, device: torch.device) -> Step:
        """The same on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Step:
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        changed: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **changed)


def flip_features(features: Features) -> Features:
    """The features mirrored left to right, as a stand-in for encoding the mirrored image."""
    return dataclasses.replace(
        features,
        stages=tuple(stage.flip(-1) for stage in features.stages),
        text=None if features.text is None else features.text.flip(-1),
        rgb=features.rgb.flip(-1),
    )


def mirrored(drawn: Drawn) -> Drawn:
    """The same episodes with their queries mirrored left to right."""
    maps = ("prior_BKSPhw", "odds_BKSEhw", "rgb_B3RR", "truth_BRR", "valid_BRR")
    return dataclasses.replace(drawn, **{name: getattr(drawn, name).flip(-1) for name in maps})


def virtual_backbone(prior_BKSPhw: Tensor, truth_B1hw: Tensor, generator: torch.Generator) -> Tensor:
    """Distort prior maps as another backbone might: gamma, contrast, blur, noise, stage drop, sharpening.

    Sharpening moves an episode's maps towards its blurred ground truth, so that the decoder meets priors better than
    the training backbone's; it is applied to a third of the episodes and is training-only.
    """
    batch, cues, stages, maps = prior_BKSPhw.shape[:4]

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    out = prior_BKSPhw
    blurred = F.avg_pool2d(truth_B1hw, 5, stride=1, padding=2, count_include_pad=False)[:, None, None]
    strength = uniform(batch, 1, 1, 1, 1, 1, high=0.6) * (uniform(batch, 1, 1, 1, 1, 1) < 1 / 3)
    out = out + strength * (blurred - out)
    gamma = torch.exp(uniform(batch, 1, stages, maps, 1, 1, low=-0.5, high=0.5))
    out = out.clamp(0, 1) ** gamma
    noise = torch.randn(batch, cues, stages, maps, *prior_BKSPhw.shape[-2:], generator=generator)
    out = out + uniform(batch, 1, stages, 1, 1, 1, high=0.12) * noise
    if bool(uniform(1) < 0.3):
        flat = out.flatten(1, 3)
        out = F.avg_pool2d(flat, 3, stride=1, padding=1, count_include_pad=False).view_as(out)
    drop = uniform(batch, 1, stages, 1, 1, 1) < 0.15
    out = torch.where(drop & ~drop.all(2, keepdim=True), out.mean(dim=(2, 3), keepdim=True), out)
    return min_max(out)


def virtual_evidence(prior_BKSPhw: Tensor, odds_BKSEhw: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Distort maps and log-odds as another backbone might: scale, about the middle, and noise, of each map and stage.

    What the mask starts from, the cues' untrained value, stays as it is: with a level that moved, the decoder learned
    how large the objects of its training are.
    """

    def distorted(maps: Tensor, middle: float, noise: float) -> Tensor:
        scale = torch.exp(torch.rand(*maps.shape[:4], 1, 1, generator=generator) * 0.6 - 0.3)
        return (maps - middle) * scale + middle + noise * torch.randn(maps.shape, generator=generator)

    odds = odds_BKSEhw.clone()
    odds[:, :, :, ODDS] = distorted(odds[:, :, :, ODDS], 0.0, 0.24)
    return distorted(prior_BKSPhw, 0.5, 0.1), odds


def size_weights(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of objects by their share of the image: the inverse of how many are about as large, bounded."""
    log = np.log(shares + 0.01)
    counts, edges = np.histogram(log, SIZES)
    found = counts[np.clip(np.digitize(log, edges[1:-1]), 0, SIZES - 1)]
    return np.asarray(1 / np.maximum(found, len(shares) / (6 * SIZES)))


def step_cues(rng: np.random.Generator, config: TrainConfig, with_text: bool) -> tuple[bool, int]:
    """Whether a step's episodes have a text cue, and how many visual ones they have.

    A step has text with probability min(1, 2 w / Σ), w being the weight of text in ``config.cue_weights``: 0.2 by
    default, where w / Σ is 0.1. (Once for a step, while visual cues are drawn one by one, two a step on average.) A
    quarter of these steps have text alone. Otherwise the number of visual cues is drawn from 1 … ``max_shots`` with
    probabilities in proportion to 1 / number.
    """
    text = with_text and rng.random() < config.cue_weights[3] / sum(config.cue_weights) * TEXT_STEPS
    text_only = text and rng.random() < TEXT_ONLY_SHARE
    inverse = 1 / np.arange(1, config.max_shots + 1)
    return bool(text), 0 if text_only else int(rng.choice(config.max_shots, p=inverse / inverse.sum())) + 1


class EpisodeSampler:
    """Training episodes of one fold's base classes, by step.

    Args:
        cues: masks, annotations and names of the data set.
        features: cached features of the training backbone.
        pools: image ids by base class.
        fold: the fold left out.
        seed: training seed.
        model, config: model and training configuration.
        keep: keeps drawn steps for other trainings of the process (`diffup.training.draw_cache.DrawCache.of` a source
            that names data set, classes, features, annotations and bank).
        given: the bank of the fold, of whose images an episode takes those that do not show its class.
    """

    def __init__(
        self, cues: CueSource, features: FeatureCache, pools: dict[int, tuple[str, ...]], fold: int, seed: int,
        model: ModelConfig, config: TrainConfig, keep: Keep = afresh, given: GivenBank | None = None,
    ) -> None:  # fmt: skip
        usable = {c: ids for c, ids in pools.items() if len(ids) >= 2}
        if not usable:
            raise UserError(f"fold {fold}: no base class has two images to make a training episode of")
        self.cues, self.features, self.pools, self.fold, self.seed = cues, features, usable, fold, seed
        self.model, self.config = model, config
        self.keep, self.given = keep, given
        how = (config.episodes, config.max_shots, config.cue_weights, config.flip, config.balance_sizes)
        self.drawn_by = (fold, seed, model.decoder_grid, (*how, config.parts) if config.parts else how)
        self.queries: dict[int, NDArray[np.float64]] = self._balanced() if config.balance_sizes else {}
        self.with_text = features.encoder.text_model is not None and config.cue_weights[3] > 0

    def step(self, step: int) -> Step:
        """All that step `step` reads; trainings that differ in the model alone share its episodes before distortion."""
        again, step = divmod(step, self.config.draws) if self.config.draws else (0, step)
        drawn: Drawn = self.keep((self.drawn_by, step), Drawn, lambda: self._draw(step))
        if again % 2 and self.config.flip:
            drawn = mirrored(drawn)
        generator = torch.Generator().manual_seed(int(drawn.seed_1) + again)
        # Before any distortion, as some mix the maps: what a model doesn't read must not reach it by a detour.
        prior, truth = chosen_maps(drawn.prior_BKSPhw, self.model.prior_maps), drawn.truth_BRR
        odds = drawn.odds_BKSEhw
        with torch.no_grad():
            if self.config.virtual_backbones and self.model.base == "evidence":
                prior, odds = virtual_evidence(prior, odds, generator)
            elif self.config.virtual_backbones:
                grid = prior.shape[-1]
                prior = virtual_backbone(prior, F.adaptive_avg_pool2d(truth[:, None], grid), generator)
            infos = query_infos(F.adaptive_avg_pool2d(drawn.rgb_B3RR, self.model.decoder_grid))
        noise = torch.randn(truth.shape, generator=generator)
        feed_back = not self.model.one_step and bool(torch.rand(1, generator=generator) < 0.5)
        fresh = torch.randn(truth.shape, generator=generator)
        times = torch.rand(len(fresh), generator=generator)
        return Step(prior, odds, drawn.kind_BK, infos, truth, drawn.valid_BRR, noise, fresh, times, feed_back)

    def _balanced(self) -> dict[int, NDArray[np.float64]]:
        """By class, the weight of each of its images as a query."""
        dataset = self.cues.dataset
        pairs = [(c, image) for c, pool in self.pools.items() for image in pool]
        shares = np.array([dataset.areas[image].get(c, 0) / math.prod(dataset.sizes[image]) for c, image in pairs])
        weights = size_weights(shares)
        return {c: weights[[owner == c for owner, _ in pairs]] / len(pool) for c, pool in self.pools.items()}

    def _picked(self, rng: np.random.Generator, classes: list[int], shots: int) -> tuple[int, list[str]]:
        """A class, and images of it: the query and `shots` supports, fewer where it has no more."""
        if not self.queries:
            class_index = classes[int(rng.integers(len(classes)))]
            pool = self.pools[class_index]
            picked = rng.choice(len(pool), size=min(shots, len(pool) - 1) + 1, replace=False)
            return class_index, [pool[int(i)] for i in picked]
        mass = np.array([self.queries[c].sum() for c in classes])
        class_index = classes[int(rng.choice(len(classes), p=mass / mass.sum()))]
        pool, weights = self.pools[class_index], self.queries[class_index]
        query = pool[int(rng.choice(len(pool), p=weights / weights.sum()))]
        others = [image for image in pool if image != query]
        return class_index, [query, *(others[int(i)] for i in rng.permutation(len(others))[:shots])]

    def _draw(self, step: int) -> Drawn:
        rng = np.random.default_rng((self.seed, self.fold, step))
        seed = int(rng.integers(2**62))
        config = self.config
        classes = sorted(self.pools)
        text, shots = step_cues(rng, config, self.with_text)
        visual = np.asarray(config.cue_weights[:3]) / sum(config.cue_weights[:3])
        encoder, names = self.features.encoder, [self.cues.dataset.classes[c] for c in classes]
        grid = encoder.config.feature_grid

        query, supports, weights, kinds, truths, valids, targets = [], [], [], [], [], [], []
        for _ in range(config.episodes):  # a step is drawn whole
            class_index, ids = self._picked(rng, classes, shots)
            ids += [ids[1 + i % max(len(ids) - 1, 1)] for i in range(shots + 1 - len(ids))]  # tiny classes repeat
            flips = rng.random(shots + 1) < (0.5 if config.flip else 0.0)
            row_kinds = tuple(VISUAL_CUES[int(k)] for k in rng.choice(3, size=shots, p=visual))
            found = self.features.get(ids[:1], text=text) + self.features.get(ids[1:], text=False)
            found = [flip_features(f) if flip else f for f, flip in zip(found, flips, strict=True)]
            # Not drawn where there are none: older trainings stay the same. A name means whole objects.
            cut = Part.drawn(rng) if shots and not text and config.parts and rng.random() < config.parts else None
            truth, valid = self.cues.truth(ids[0], class_index, self.model.decoder_grid, cut)
            named = zip(ids[1:], row_kinds, strict=True)
            row = [self.cues.weights(image, class_index, kind, grid, cut) for image, kind in named]
            row = [w.flip(-1) if flip else w for w, flip in zip(row, flips[1:], strict=True)]
            if flips[0]:
                truth, valid = truth.flip(-1), valid.flip(-1)
            query.append(found[0])
            supports.append(found[1:])
            weights.append(torch.stack(row) if row else torch.zeros(0))
            kinds.append(row_kinds)
            truths.append(truth)
            valids.append(valid)
            targets.append(classes.index(class_index))
        episodes = Episodes(
            query=query,
            supports=supports,
            weights_BK2hw=torch.stack(weights) if shots else torch.zeros(len(query), 0, 2, grid, grid),
            kinds=kinds,
            names=encoder.embed_names(names) if text else None,
            targets=torch.tensor(targets),
            device=encoder.device,
            bank=self.given.bank if self.given else None,
            allowed_BN=torch.stack([self.given.without[classes[c]] for c in targets]) if self.given else None,
            drop=self.given.drop if self.given else 0.0,
        )
        with torch.no_grad():
            batch = priors(episodes)
        truth, valid = torch.stack(truths), torch.stack(valids)
        given = (batch.prior_BKSPhw, batch.odds_BKSEhw, batch.kind_BK, batch.rgb_B3RR)
        return Drawn(*given, truth, valid, torch.tensor([seed]))
