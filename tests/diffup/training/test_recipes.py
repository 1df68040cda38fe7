"""Recipes are what the grids train with, and their estimates are the arithmetic that they say."""

from __future__ import annotations

import pytest

from diffup.config import InputConfig, ModelConfig, TrainConfig
from diffup.training import recipes
from experiments import full_grid, mini_grid, quickstart


def test_grids_train_with_the_recipes() -> None:
    assert (recipes.shapes4i().input, recipes.shapes4i().train) == (quickstart.INPUT, quickstart.TRAIN)
    assert (recipes.msrc15().input, recipes.msrc15().train) == (mini_grid.INPUT, mini_grid.TRAIN)
    assert {"pascal5i": recipes.pascal5i(), "coco20i": recipes.coco20i()} == full_grid.RECIPES


@pytest.mark.parametrize(
    ("recipe", "steps", "batch"),
    [
        (recipes.shapes4i(), 300, 8),
        (recipes.msrc15(), 800, 8),
        (recipes.pascal5i(), 5000, 16),
        (recipes.coco20i(), 5000, 16),
    ],
)
def test_steps_and_batch_are_those_of_the_docstrings(recipe: recipes.Recipe, steps: int, batch: int) -> None:
    assert (recipe.train.steps, recipe.train.episodes) == (steps, batch)


def test_the_estimate_for_a_gpu_is_the_one_in_the_docstring() -> None:
    recipe = recipes.pascal5i()
    shots = recipe.train.max_shots / sum(1 / k for k in range(1, recipe.train.max_shots + 1))
    images = recipe.train.episodes * (1 + shots)
    feature_bytes = images * (512 + 1024 + 2048) * recipe.input.feature_grid**2 * 2
    assert feature_bytes == pytest.approx(450e6, rel=0.05)
    assert recipes.gpu_hours(recipe, 520e9, feature_bytes) == pytest.approx(0.3, abs=0.05)


def test_a_recipe_is_made_of_configurations() -> None:
    assert recipes.Recipe() == recipes.Recipe(input=InputConfig(), model=ModelConfig(), train=TrainConfig())
