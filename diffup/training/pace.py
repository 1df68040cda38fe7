"""How many training steps fit into a time, measured on this machine before the training starts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from diffup.errors import UserError
from diffup.models.diffup import DiffUpNet
from diffup.training.sampler import EpisodeSampler, Step
from diffup.training.trainer import add_gradients

IMAGES, DRAWS, STEPS = 4, 3, 2  # that are measured
FEWEST = 10  # steps that are worth a training


def steps_within(sampler: EpisodeSampler, seconds: float, device: str) -> int:
    """Steps that take `seconds` from now, the sampler's own number at most.

    What is encoded and drawn meanwhile is kept by the sampler's features and draws, and is not lost. Images are encoded
    when they are first drawn; how many that will be follows from how many images a step draws.

    Raises:
        UserError: fewer than `FEWEST` fit.
    """
    began, config, features = time.monotonic(), sampler.config, sampler.features
    images = sorted({image for pool in sampler.pools.values() for image in pool})
    encode = _timed(lambda: features.get(images[:IMAGES])) / min(IMAGES, len(images))
    before, drawn = features.encoded, list[Step]()
    drawing = _timed(lambda: drawn.extend(sampler.step(step) for step in range(min(DRAWS, config.steps))))
    fresh = features.encoded - before
    draw = max(0.0, drawing - fresh * encode) / len(drawn)
    model = DiffUpNet(sampler.model).to(device).train()
    compute = (
        _timed(lambda: [add_gradients(model, drawn[0], config, torch.device(device)) for _ in range(STEPS)]) / STEPS
    )
    per_draw = max(1.0, fresh / len(drawn))  # images that a step draws

    def takes(steps: int) -> float:
        draws = min(steps, config.draws or steps)
        encoded = len(images) * (1 - math.exp(-per_draw * draws / len(images)))
        return max(0.0, encoded - features.encoded) * encode + draws * draw + steps * compute

    left = seconds - (time.monotonic() - began)
    least = min(FEWEST, config.steps)
    if takes(least) > left:
        spent = time.monotonic() - began
        raise UserError(
            f"time_budget is too short: {least} steps take about {takes(least) + spent:.0f} s more here, of which "
            f"{max(0.0, seconds):.0f} s are left; give more time, a smaller backbone or a recipe of smaller images"
        )
    low, high = least, config.steps  # the most steps that fit are in [low, high]
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if takes(middle) <= left else (low, middle - 1)
    return low


def _timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began
