"""Variants: one factor each, and the study's grid."""

import dataclasses
from pathlib import Path

import pytest

from diffup.config import InputConfig, ModelConfig, SampleConfig, TrainConfig
from diffup.grid.axes import Backbone
from diffup.grid.cell import Cell, TrainingCell
from diffup.grid.datasets import Data
from diffup.grid.variants import VARIANTS, changes_training
from diffup.training.recipes import Recipe, msrc15
from experiments.method_study import ablation_grid, main_grid

DATA = Data(name="photos", path=Path("dataset.json"), fingerprint="f" * 12)
SOURCE = Backbone(name="resnet50", weights="random:0")
UPGRADES = [Backbone(name=name, weights="random:0") for name in ("deit_tiny_patch16_224", "mobilenetv2_100")]
RECIPE = msrc15()


def parts(recipe: Recipe) -> tuple[InputConfig, ModelConfig, TrainConfig, SampleConfig]:
    return recipe.input, recipe.model, recipe.train, recipe.sample


def changed(name: str) -> set[str]:
    return {
        field.name
        for one, default in zip(parts(RECIPE.changed(**VARIANTS[name])), parts(RECIPE), strict=True)
        for field in dataclasses.fields(default)  # type: ignore[arg-type]
        if getattr(one, field.name) != getattr(default, field.name)
    }


def test_every_variant_changes_something_and_no_two_the_same() -> None:
    changes = {name: RECIPE.changed(**change) for name, change in VARIANTS.items()}
    assert changes["diffup"] == RECIPE
    assert len({repr(value) for value in changes.values()}) == len(VARIANTS)


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - {"diffup", "no_dqm", "no_residual"}))
def test_a_variant_changes_one_factor(name: str) -> None:
    assert len(changed(name)) == 1


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
