"""The training loop: UAPF and UQDD on base classes with one frozen backbone.

A step is drawn whole (`diffup.training.sampler`) and its loss is a mean over episodes (`diffup.training.losses`), so
it can be split into micro-batches (`TrainConfig.accumulate`) and over processes (`diffup.training.distributed`) and
stays the same except for rounding. No label of the fold's novel classes reaches a loss.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffup.config import TrainConfig
from diffup.models.checkpoint import save_checkpoint
from diffup.models.diffup import DiffUpNet
from diffup.training import losses
from diffup.training.distributed import ProcessGroup
from diffup.training.sampler import EpisodeSampler, Step
from diffup.training.state import identity, not_resumable, resumable, write_state

SAVE_EVERY = 100  # steps between resumable states
WARM_UP = 50
CLIP_NORM = 1.0
ALONE = ProcessGroup()
_PAUSES: ContextVar[tuple[int, ...]] = ContextVar("pauses", default=())


class Paused(BaseException):
    """A training ended early, as `paused_at` asked; the same call resumes it.

    Not an Exception, so that code which records the exceptions of a cell does not take a pause for a failure.

    Attributes:
        step: steps done.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"paused after {step} steps")
        self.step = step


@contextmanager
def paused_at(*steps: int) -> Iterator[None]:
    """Pause trainings within the context after the next of these numbers of steps.

    A paused training has written its state, so that it will end in the same bytes as one that never paused, and a
    checkpoint of the averaged weights so far, whose facts say ``unfinished``; then it raises `Paused`. Numbers beyond
    the last step have no effect.
    """
    token = _PAUSES.set(steps)
    try:
        yield
    finally:
        _PAUSES.reset(token)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then cosine decay to 1 % of the peak."""
    warm = min(1.0, (step + 1) / min(WARM_UP, config.steps))
    return float(config.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * step / config.steps))))


def train(
    sampler: EpisodeSampler,
    folder: Path,
    *,
    facts: dict[str, object],
    progress: bool = True,
    report: Callable[[int, float], None] | None = None,
    device: str | torch.device = "cpu",
    group: ProcessGroup = ALONE,
    saved: Callable[[], None] | None = None,
    other_code: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Train to the sampler's ``config.steps`` and write a checkpoint of the averaged weights to `folder`.

    A state file beside the checkpoint (model, averaged weights, optimizer, step) is written every `SAVE_EVERY` steps;
    an interrupted training resumes from it and ends in the same bytes (on a CPU). It is removed at the end. A state of
    another training (`diffup.training.state.identity`) or of other code is refused.

    Args:
        sampler: of the episodes; its configurations and its seed say what is trained, and how.
        folder: of the checkpoint.
        facts: for the checkpoint.
        progress: whether to draw a bar.
        report: called with steps and mean loss after each step, in rank 0.
        device: where the network runs.
        group: the processes that share each step's episodes; all of them call this function, rank 0 uses `folder`.
        saved: called each time the state file was written, in rank 0.
        other_code: if given, a state written by other code is not refused: the function is called with a message, in
            rank 0, and the training starts over. For a folder whose name already says what is trained.

    Returns:
        ``loss`` (mean of the last 50 steps), ``seconds`` of all calls whose steps were kept, and ``steps_per_s``.

    Raises:
        UserError: the state file is of another training or other code, or damaged; the processes do not
            train the same; or there are more processes than episodes a step.
        FloatingPointError: the loss is no longer finite.
        Paused: see `paused_at`.
    """
    device, config = torch.device(device), sampler.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sampler.seed)
        model = DiffUpNet(sampler.model).to(device)
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    state_file = folder / "state.pt"
    first, recent, spent = 0, [], 0.0
    what = identity(sampler)
    if state := resumable(state_file, what, group, other_code):
        try:
            model.load_state_dict(state["model"])
            average.load_state_dict(state["average"])
            optimizer.load_state_dict(state["optimizer"])
            first, recent, spent = int(state["step"]), list(state["losses"]), float(state["seconds"])
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise not_resumable(state_file, error) from error

    def save(step: int) -> None:
        parts = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
        seconds = time.perf_counter() - started
        write_state(state_file, what, {**parts, "step": step, "losses": recent, "seconds": seconds})

    last = min((step for step in _PAUSES.get() if first <= step < config.steps), default=config.steps)
    shares = _shares(sampler, group, first)
    started = time.perf_counter() - spent
    model.train()
    leads = group.rank == 0
    hidden = not (progress and leads)
    bar = tqdm(range(first, last), initial=first, total=config.steps, desc="train", disable=hidden)
    for step in bar:
        optimizer.zero_grad(set_to_none=True)
        loss = add_gradients(model, next(shares), config, device)
        group.all_reduce([loss, *(parameter.grad for parameter in model.parameters())])
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"loss is {loss.item()} at step {step}; lower TrainConfig.learning_rate")
        for settings in optimizer.param_groups:
            settings["lr"] = learning_rate(config, step)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        decay = min(config.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        recent = [*recent[-49:], loss.item()]
        bar.set_postfix(loss=f"{np.mean(recent):.3f}")
        if report is not None and leads:
            report(step + 1, float(np.mean(recent)))
        if leads and (step + 1) % SAVE_EVERY == 0 and step + 1 < config.steps:
            save(step + 1)
            if saved is not None:
                saved()
    seconds = time.perf_counter() - started
    if last < config.steps:
        if leads:
            save(last)
            save_checkpoint(average.cpu(), folder, {**facts, "unfinished": f"{last} of {config.steps} steps"})
        raise Paused(last)
    if leads:
        save_checkpoint(average.cpu(), folder, facts)
        state_file.unlink(missing_ok=True)
    return {
        "loss": float(np.mean(recent)),
        "seconds": seconds,
        "steps_per_s": config.steps / seconds if seconds else 0.0,
    }


def _shares(sampler: EpisodeSampler, group: ProcessGroup, first: int) -> Iterator[Step]:
    """This process's share of each step from `first` on; each draws every group.size-th step and scatters it."""
    shares, steps = group.shares(sampler.config.episodes), sampler.config.steps
    for block in range(first, steps, group.size):
        mine = block + group.rank
        if mine < steps:
            drawn = sampler.step(mine)
        for step in range(block, min(block + group.size, steps)):
            yield group.scatter([drawn[rows] for rows in shares] if step == mine else None, source=step - block)


def add_gradients(model: DiffUpNet, share: Step, config: TrainConfig, device: torch.device) -> Tensor:
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
            loss = losses.step_loss(model, part)
        loss = loss * (len(part) / config.episodes)
        loss.backward()
        total += loss.detach()
    return total
