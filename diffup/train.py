"""Training UAPF and UQDD on base classes with one frozen backbone.

Every step draws its own episodes, cue kinds, K, distortions and noise from a generator seeded by (seed, fold, step):
a resumed run is the same run, and there is no generator state to lose. A step is drawn whole and its loss is a mean
over episodes, so that micro-batches (`TrainConfig.accumulate`) and processes (`diffup.parallel`) can share it and the
step stays the same but for rounding. Novel classes of the fold are background here; no label of theirs reaches a loss.

Letters: B batch · K cues · S stages · P prior maps · h w feature grid · R side of the decoder grid.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from diffup.baft import min_max
from diffup.config import VISUAL_CUES, ModelConfig, TrainConfig
from diffup.encode import FeatureCache, Features
from diffup.memo import Keep, afresh
from diffup.model import DiffUpNet, Episodes, priors, save_checkpoint
from diffup.parallel import Team
from diffup.supply import CueSource
from diffup.uqdd import query_infos

SAVE_EVERY = 100  # steps between resumable states
WARM_UP = 50
CLIP_NORM = 1.0
TEXT_ONLY_SHARE = 0.25  # of the steps that have a text cue
LOSS_WEIGHTS = {"mask": 1.0, "mean": 0.5, "variance": 0.1, "error": 0.3, "iou": 1.0}
ALONE = Team()
Rows = TypeVar("Rows", "Batch", "Chances")


@dataclass(frozen=True)
class Batch:
    """One training step's input: prior maps, cue kinds, query infos, and the truth on the decoder grid."""

    prior_BKSPhw: Tensor
    kind_BK: Tensor
    infos_BXRR: Tensor
    truth_BRR: Tensor
    valid_BRR: Tensor
    noise_BRR: Tensor


@dataclass(frozen=True)
class Drawn:
    """A step's episodes before distortion: seed of the rest of its randomness [1], priors, kinds, RGB and truth."""

    seed_1: Tensor
    prior_BKSPhw: Tensor
    kind_BK: Tensor
    rgb_B3RR: Tensor
    truth_BRR: Tensor
    valid_BRR: Tensor


@dataclass(frozen=True)
class Chances:
    """What chance decides in a step beside its batch: if a first prediction is fed back; noise and times of x_t."""

    feed_back: bool
    fresh_BRR: Tensor
    t_B: Tensor

    @staticmethod
    def draw(config: ModelConfig, batch: Batch, generator: torch.Generator) -> Chances:
        """For a whole step's batch."""
        feed_back = not config.one_step and bool(torch.rand(1, generator=generator) < 0.5)
        fresh = torch.randn(batch.noise_BRR.shape, generator=generator)
        return Chances(feed_back, fresh, torch.rand(len(fresh), generator=generator))


@dataclass(frozen=True)
class Share:
    """Some of a step's episodes."""

    batch: Batch
    chances: Chances

    def __len__(self) -> int:
        return len(self.batch.kind_BK)

    def __getitem__(self, rows: slice) -> Share:
        return Share(_each(self.batch, lambda t: t[rows].clone()), _each(self.chances, lambda t: t[rows].clone()))

    def to(self, device: torch.device) -> Share:
        """The same on a device."""
        return Share(_each(self.batch, lambda t: t.to(device)), _each(self.chances, lambda t: t.to(device)))


def _each(rows: Rows, change: Callable[[Tensor], Tensor]) -> Rows:
    values = {item.name: getattr(rows, item.name) for item in dataclasses.fields(rows)}
    changed: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
    return dataclasses.replace(rows, **changed)


def flip_features(features: Features) -> Features:
    """The features mirrored left to right, as a stand-in for encoding the mirrored image."""
    return Features(
        stages=tuple(stage.flip(-1) for stage in features.stages),
        text=None if features.text is None else features.text.flip(-1),
        rgb=features.rgb.flip(-1),
        size=features.size,
    )


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


def _iou(probability_BRR: Tensor, truth_BRR: Tensor, valid_BRR: Tensor) -> Tensor:
    predicted, actual = probability_BRR > 0.5, truth_BRR > 0.5
    inside = valid_BRR > 0.5
    both = (predicted & actual & inside).sum((1, 2)).float()
    either = ((predicted | actual) & inside).sum((1, 2)).float()
    return both / either.clamp_min(1.0)


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


def step_loss(model: DiffUpNet, batch: Batch, chances: Chances) -> Tensor:
    """Loss of a batch, a mean over episodes: mask (BCE + Dice), UAPF's mean and variance, DQM's error map and IoU.

    x_t is built as ``config.schedule`` says; half of the self-aligned steps feed back a first prediction.
    """
    config = model.config
    truth, valid = batch.truth_BRR, batch.valid_BRR
    mean, variance = model.fuse(batch.prior_BKSPhw, batch.kind_BK)
    size = truth.shape[0]
    infos, noise = batch.infos_BXRR, batch.noise_BRR
    ones = torch.ones(size, device=truth.device)
    prior = mean.detach()
    estimate = prior

    def start() -> Tensor:
        return torch.zeros_like(noise) if config.one_step else model.schedule.diffuse(prior, ones, noise, prior)

    x, t = start(), ones
    if chances.feed_back:
        with torch.no_grad():
            first, _, _ = model.uqdd(x, t, estimate, mean, variance, infos)
            estimate = torch.sigmoid(first)
    if not config.one_step and config.schedule != "self_aligned":
        t = chances.t_B
        x = model.schedule.diffuse(truth, t, chances.fresh_BRR, prior)
    elif chances.feed_back:
        t = chances.t_B
        x = model.schedule.diffuse(estimate, t, chances.fresh_BRR, prior)

    logits, error, iou = model.uqdd(x, t, estimate, mean, variance, infos)
    final = torch.sigmoid(logits).detach()
    final_error, final_iou = model.uqdd.quality(model.schedule.encode(final), final, prior, variance.detach())
    terms = {
        "mask": _weighted_bce(logits, truth, valid) + _dice(logits, truth, valid),
        "error": _weighted_bce(error, (estimate - truth).abs(), valid)
        + _weighted_bce(final_error, (final - truth).abs(), valid),
        "iou": F.mse_loss(torch.sigmoid(iou), _iou(estimate, truth, valid))
        + F.mse_loss(torch.sigmoid(final_iou), _iou(final, truth, valid)),
    }
    if config.uapf:
        clamped = mean.clamp(1e-3, 1 - 1e-3)
        terms["mean"] = _weighted_bce(torch.logit(clamped), truth, valid)
        squared = (mean.detach() - truth) ** 2
        terms["variance"] = _valid_mean(squared / variance + variance.log(), valid) / 2
    return torch.stack([LOSS_WEIGHTS[name] * term for name, term in terms.items()]).sum()


class EpisodeSampler:
    """Training episodes of one fold's base classes, as `Batch`es by step.

    Args:
        cues: masks, annotations and names of the data set.
        features: cached features of the training backbone.
        pools: image ids by base class.
        fold: the fold left out.
        seed: training seed.
        model, config: model and training configuration.
        keep: keeps drawn steps for other trainings of the process (`diffup.memo.PriorMemo.of` a source that names data
            set, classes, features and annotations).
    """

    def __init__(
        self, cues: CueSource, features: FeatureCache, pools: dict[int, tuple[str, ...]], fold: int, seed: int,
        model: ModelConfig, config: TrainConfig, keep: Keep = afresh,
    ) -> None:  # fmt: skip
        config = dataclasses.replace(config, batch_size=config.episodes, accumulate=1)  # a step is drawn whole
        usable = {c: ids for c, ids in pools.items() if len(ids) >= 2}
        if not usable:
            raise ValueError(f"fold {fold}: no base class has two images to make a training episode of")
        self.cues, self.features, self.pools, self.fold, self.seed = cues, features, usable, fold, seed
        self.model, self.config = model, config
        self.keep = keep
        self.drawn_by = (
            fold,
            seed,
            model.decoder_grid,
            config.batch_size,
            config.max_shots,
            config.cue_weights,
            config.flip,
        )
        self.with_text = features.encoder.text_model is not None and config.cue_weights[3] > 0

    def draw(self, step: int) -> Drawn:
        """Step `step`'s episodes as undistorted prior maps: what trainings that differ in the model can share."""
        drawn: Drawn = self.keep((self.drawn_by, step), Drawn, lambda: self._draw(step))
        return drawn

    def batch(self, step: int) -> tuple[Batch, torch.Generator]:
        """Step `step`'s batch, and the generator for the rest of the step's randomness."""
        drawn = self.draw(step)
        generator = torch.Generator().manual_seed(int(drawn.seed_1))
        prior, truth = drawn.prior_BKSPhw, drawn.truth_BRR
        with torch.no_grad():
            if self.config.virtual_backbones:
                grid = prior.shape[-1]
                prior = virtual_backbone(prior, F.adaptive_avg_pool2d(truth[:, None], grid), generator)
            infos = query_infos(F.adaptive_avg_pool2d(drawn.rgb_B3RR, self.model.decoder_grid))
        noise = torch.randn(truth.shape, generator=generator)
        return Batch(prior, drawn.kind_BK, infos, truth, drawn.valid_BRR, noise), generator

    def _draw(self, step: int) -> Drawn:
        rng = np.random.default_rng((self.seed, self.fold, step))
        seed = int(rng.integers(2**62))
        config = self.config
        classes = sorted(self.pools)
        text = self.with_text and rng.random() < config.cue_weights[3] / sum(config.cue_weights) * 2
        text_only = text and rng.random() < TEXT_ONLY_SHARE
        inverse = 1 / np.arange(1, config.max_shots + 1)
        shots = 0 if text_only else int(rng.choice(config.max_shots, p=inverse / inverse.sum())) + 1
        visual = np.asarray(config.cue_weights[:3]) / sum(config.cue_weights[:3])

        query, supports, weights, kinds, truths, valids, targets = [], [], [], [], [], [], []
        for _ in range(config.batch_size):
            class_index = classes[int(rng.integers(len(classes)))]
            pool = self.pools[class_index]
            picked = rng.choice(len(pool), size=min(shots, len(pool) - 1) + 1, replace=False)
            ids = [pool[int(i)] for i in picked]
            ids += [ids[1 + i % max(len(picked) - 1, 1)] for i in range(shots + 1 - len(ids))]  # tiny classes repeat
            flips = rng.random(shots + 1) < (0.5 if config.flip else 0.0)
            row_kinds = tuple(VISUAL_CUES[int(k)] for k in rng.choice(3, size=shots, p=visual))
            found = self.features.get(ids)
            found = [flip_features(f) if flip else f for f, flip in zip(found, flips, strict=True)]
            truth, valid = self.cues.truth(ids[0], class_index, self.model.decoder_grid)
            row = [self.cues.weights(i, class_index, kind) for i, kind in zip(ids[1:], row_kinds, strict=True)]
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
        grid = query[0].stages[0].shape[-1]
        episodes = Episodes(
            query=query,
            supports=supports,
            weights_BK2hw=torch.stack(weights) if shots else torch.zeros(len(query), 0, 2, grid, grid),
            kinds=kinds,
            names=self.features.encoder.embed_names([self.cues.dataset.classes[c] for c in classes]) if text else None,
            targets=torch.tensor(targets),
            device=self.features.encoder.device,
        )
        with torch.no_grad():
            prior, kind = priors(episodes)
        rgb = torch.stack([features.rgb for features in query])
        return Drawn(torch.tensor([seed]), prior, kind, rgb, torch.stack(truths), torch.stack(valids))


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then cosine decay to 1 % of the peak."""
    warm = min(1.0, (step + 1) / min(WARM_UP, config.steps))
    return float(config.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * step / config.steps))))


def train(
    sampler: EpisodeSampler,
    model_config: ModelConfig,
    config: TrainConfig,
    folder: Path,
    *,
    seed: int,
    facts: dict[str, object],
    progress: bool = True,
    report: Callable[[int, float], None] | None = None,
    device: str | torch.device = "cpu",
    team: Team = ALONE,
) -> dict[str, float]:
    """Train to ``config.steps`` and write a checkpoint of the averaged weights to `folder`.

    A state file beside the checkpoint (model, averaged weights, optimizer, step) is written every `SAVE_EVERY` steps;
    an interrupted training goes on from it and ends in the same bytes (on a CPU). It is removed at the end.

    Args:
        sampler: of the same `config`.
        model_config, config: what to train, and how.
        folder: of the checkpoint.
        seed: of the initial weights.
        facts: for the checkpoint.
        progress: whether to draw a bar.
        report: is told steps and mean loss after each step, in rank 0.
        device: where the network runs.
        team: the processes that share each step's episodes; all of them call this function, rank 0 uses `folder`.

    Returns:
        ``loss`` (mean of the last 50 steps), ``seconds`` and ``steps_per_s`` of this call.

    Raises:
        ValueError: the state file is of another configuration or damaged; or more processes than episodes a step.
        FloatingPointError: the loss is no longer finite.
    """
    device = torch.device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DiffUpNet(model_config).to(device)
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    state_file = folder / "state.pt"
    first, losses = 0, []
    if state := team.tell(_load_state(state_file) if team.rank == 0 else None):
        try:
            model.load_state_dict(state["model"])
            average.load_state_dict(state["average"])
            optimizer.load_state_dict(state["optimizer"])
            first, losses = int(state["step"]), list(state["losses"])
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise _no_resuming(state_file, error) from error
    shares = _shares(sampler, model_config, config, team, first)
    started = time.perf_counter()
    model.train()
    leads = team.rank == 0
    hidden = not (progress and leads)
    bar = tqdm(range(first, config.steps), initial=first, total=config.steps, desc="train", disable=hidden)
    for step in bar:
        optimizer.zero_grad(set_to_none=True)
        loss = add_gradients(model, next(shares), config, device)
        team.add_up([loss, *(parameter.grad for parameter in model.parameters())])
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"loss is {loss.item()} at step {step}; lower TrainConfig.learning_rate")
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        decay = min(config.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        losses = [*losses[-49:], loss.item()]
        bar.set_postfix(loss=f"{np.mean(losses):.3f}")
        if report is not None and leads:
            report(step + 1, float(np.mean(losses)))
        if leads and (step + 1) % SAVE_EVERY == 0 and step + 1 < config.steps:
            _save_state(state_file, model, average, optimizer, step + 1, losses)
    seconds = time.perf_counter() - started
    if leads:
        save_checkpoint(average.cpu(), folder, facts)
        state_file.unlink(missing_ok=True)
    return {
        "loss": float(np.mean(losses)),
        "seconds": seconds,
        "steps_per_s": (config.steps - first) / seconds if seconds else 0.0,
    }


def _shares(
    sampler: EpisodeSampler, model_config: ModelConfig, config: TrainConfig, team: Team, first: int
) -> Iterator[Share]:
    """This process's share of each step from `first` on; each process draws every team.size-th step, and deals it."""
    places = team.shares(config.episodes)
    for block in range(first, config.steps, team.size):
        mine = block + team.rank
        if mine < config.steps:
            batch, generator = sampler.batch(mine)
            drawn = Share(batch, Chances.draw(model_config, batch, generator))
        for step in range(block, min(block + team.size, config.steps)):
            yield team.deal([drawn[place] for place in places] if step == mine else None, dealer=step - block)


def add_gradients(model: DiffUpNet, share: Share, config: TrainConfig, device: torch.device) -> Tensor:
    """Add a share's part of a step's gradient to the parameters', one micro-batch after the other.

    Returns:
        its part of the step's loss, [1]; the parts of all shares add up to the mean over the step's episodes.
    """
    # No cache of casts: one made for the prediction that is fed back carries no gradient and must not be used again.
    half = config.precision == "bfloat16"
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=half, cache_enabled=False)
    total = torch.zeros(1, device=device)
    for start in range(0, len(share), config.batch_size):
        part = share[start : start + config.batch_size].to(device)
        with autocast:
            loss = step_loss(model, part.batch, part.chances)
        loss = loss * (len(part) / config.episodes)
        loss.backward()
        total += loss.detach()
    return total


def _load_state(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise _no_resuming(path, error) from error
    return state


def _no_resuming(path: Path, error: Exception) -> ValueError:
    return ValueError(f"training state {path} cannot be resumed: {error}. Delete it to start over")


def _save_state(
    path: Path, model: DiffUpNet, average: DiffUpNet, optimizer: torch.optim.Optimizer, step: int, losses: list[float]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(
        {
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "losses": losses,
        },
        part,
    )
    os.replace(part, path)
