"""Variants: one factor each, and the study's grid."""

import dataclasses
from pathlib import Path

import pytest

from diffup.config import InputConfig, ModelConfig, SampleConfig, TrainConfig
from diffup.grid.axes import Backbone
from diffup.grid.cell import Cell, TrainingCell
from diffup.grid.datasets import Data
from diffup.grid.variants import VARIANTS, changes_training, effective
from diffup.training.recipes import Recipe, msrc15, photographs
from experiments.method_study import ablation_grid, main_grid

DATA = Data(name="photos", path=Path("dataset.json"), fingerprint="f" * 12)
SOURCE = Backbone(name="resnet50", weights="random:0")
UPGRADES = [Backbone(name=name, weights="random:0") for name in ("deit_tiny_patch16_224", "mobilenetv2_100")]
RECIPES = {"msrc15": msrc15(), "photographs": photographs()}


def parts(recipe: Recipe) -> tuple[InputConfig, ModelConfig, TrainConfig, SampleConfig]:
    return recipe.input, recipe.model, recipe.train, recipe.sample


def changed(recipe: Recipe, name: str) -> set[str]:
    return {
        field.name
        for one, default in zip(parts(recipe.changed(**VARIANTS[name])), parts(recipe), strict=True)
        for field in dataclasses.fields(default)  # type: ignore[arg-type]
        if getattr(one, field.name) != getattr(default, field.name)
    }


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_no_two_variants_are_the_same_and_those_without_effect_are_left_out(recipe: Recipe) -> None:
    changes = {name: recipe.changed(**change) for name, change in effective(VARIANTS, recipe).items()}
    assert changes["diffup"] == recipe
    assert len({repr(value) for value in changes.values()}) == len(changes)
    left_out = {name for name in VARIANTS if name != "diffup" and not changed(recipe, name)}
    assert set(VARIANTS) - set(changes) == left_out != set()


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - {"diffup", "no_dqm", "no_residual"}))
def test_a_variant_changes_one_factor_of_some_recipe(name: str) -> None:
    found = [len(changed(recipe, name)) for recipe in RECIPES.values()]
    assert max(found) == 1


def test_sampling_variants_share_the_checkpoint() -> None:
    cells = ablation_grid(DATA, SOURCE, UPGRADES, episodes=1000)
    training = {cell.key(): cell for cell in cells if isinstance(cell, TrainingCell)}
    evaluation = [cell for cell in cells if isinstance(cell, Cell)]
    assert {cell.checkpoint for cell in evaluation} == set(training)
    for cell in evaluation:
        trained = training[cell.checkpoint].variant
        assert trained == (cell.variant if changes_training(VARIANTS[cell.variant]) else "diffup")


def test_the_study_has_the_cells_that_its_docstring_counts() -> None:
    cells = main_grid(DATA, SOURCE, UPGRADES, episodes=1000)
    training = [cell for cell in cells if isinstance(cell, TrainingCell)]
    assert (len(training), len(cells) - len(training)) == (28, 284)
    # Nothing is trained on a test backbone but the re-trained reference.
    retrained = {cell.key() for cell in training if cell.backbone != "resnet50"}
    users = [cell for cell in cells if isinstance(cell, Cell) and cell.checkpoint in retrained]
    assert len(retrained) == 4
    assert all(cell.backbone == cell.trained_on == "deit_tiny_patch16_224" for cell in users)
