"""Drawing of training configurations: factors over a recipe. Ray Tune's spaces would draw the same, but need Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from diffup.errors import UserError
from diffup.training.recipes import Recipe

STREAM = 5  # keeps the drawing of configurations apart from that of episodes

Factor = Callable[[np.random.Generator], Any]
Factors = Mapping[str, Mapping[str, Factor]]  # by part of a recipe and name of the field


def log_uniform(low: float, high: float) -> Factor:
    """A number between two others, its logarithm uniform; three digits, so that it can be written down."""
    return lambda rng: float(f"{np.exp(rng.uniform(np.log(low), np.log(high))):.3g}")


def choice(*values: Any) -> Factor:
    """One of some values."""
    return lambda rng: values[int(rng.integers(len(values)))]


def draw(factors: Factors, recipe: Recipe, *, trials: int, seed: int) -> list[Recipe]:
    """The recipe, and trials - 1 others that differ from it and from each other by the factors.

    The first n of more are those of n: a search can be extended.

    Raises:
        UserError: `trials` is below 1, or the factors don't have so many combinations.
    """
    if trials < 1:
        raise UserError(f"--trials must be 1 or more, not {trials}")
    made, rng = [recipe], np.random.default_rng((seed, STREAM))
    for _ in range(100 * trials):
        if len(made) == trials:
            break
        drawn = {part: {name: factor(rng) for name, factor in own.items()} for part, own in factors.items()}
        found = recipe.changed(**drawn)
        if found not in made:
            made.append(found)
    if len(made) < trials:
        raise UserError(f"--trials {trials}: the factors have only about {len(made)} combinations")
    return made
