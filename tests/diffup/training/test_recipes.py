"""The estimates that recipes state are the arithmetic that they say; their values are frozen in the keys of cells."""

from __future__ import annotations

import pytest

from diffup.training import recipes


def test_the_estimate_for_a_gpu_is_the_one_in_the_docstring() -> None:
    recipe = recipes.pascal5i()
    shots = recipe.train.max_shots / sum(1 / k for k in range(1, recipe.train.max_shots + 1))
    images = recipe.train.episodes * (1 + shots)
    feature_bytes = images * (512 + 1024 + 2048) * recipe.input.feature_grid**2 * 2
    assert feature_bytes == pytest.approx(450e6, rel=0.05)
    assert recipes.gpu_hours(recipe, 520e9, feature_bytes) == pytest.approx(0.3, abs=0.05)
