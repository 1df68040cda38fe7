"""Variants: one factor each, and the study's grid."""

import dataclasses
from pathlib import Path

import pytest

from diffup.config import SampleConfig
from diffup.grid.axes import Backbone
from diffup.grid.cell import Cell, TrainingCell
from diffup.grid.datasets import Data
from diffup.grid.variants import VARIANTS, needs_training, resolve
from diffup.training.recipes import msrc15
from experiments.method_study import ablation_grid, main_grid

DATA = Data(name="photos", path=Path("dataset.json"), fingerprint="f" * 12)
SOURCE = Backbone(name="resnet50", weights="random:0")
UPGRADES = [Backbone(name=name, weights="random:0") for name in ("deit_tiny_patch16_224", "mobilenetv2_100")]
RECIPE = msrc15()
DEFAULTS = (RECIPE.model, RECIPE.train, SampleConfig())


def changed(name: str) -> set[str]:
    found = resolve(name, model=DEFAULTS[0], train=DEFAULTS[1], sample=DEFAULTS[2])
    return {
        field.name
        for one, default in zip(found, DEFAULTS, strict=True)
        for field in dataclasses.fields(default)  # type: ignore[arg-type]
        if getattr(one, field.name) != getattr(default, field.name)
    }


def test_every_variant_changes_something_and_no_two_the_same() -> None:
    changes = {name: resolve(name, model=DEFAULTS[0], train=DEFAULTS[1], sample=DEFAULTS[2]) for name in VARIANTS}
    assert changes["diffup"] == DEFAULTS
    assert len({repr(value) for value in changes.values()}) == len(VARIANTS)


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - {"diffup", "no_dqm", "no_residual"}))
def test_a_variant_changes_one_factor(name: str) -> None:
    assert len(changed(name)) == 1


def test_an_unknown_variant_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no_uapf"):
        resolve("without_uapf", model=DEFAULTS[0], train=DEFAULTS[1], sample=DEFAULTS[2])


def test_sampling_variants_share_the_checkpoint() -> None:
    cells = ablation_grid(DATA, SOURCE, UPGRADES, episodes=1000)
    training = {cell.key(): cell for cell in cells if isinstance(cell, TrainingCell)}
    evaluation = [cell for cell in cells if isinstance(cell, Cell)]
    assert {cell.checkpoint for cell in evaluation} == set(training)
    for cell in evaluation:
        trained = training[cell.checkpoint].variant
        assert trained == (cell.variant if needs_training(cell.variant) else "diffup")


def test_the_study_has_the_cells_that_its_docstring_counts() -> None:
    cells = main_grid(DATA, SOURCE, UPGRADES, episodes=1000)
    training = [cell for cell in cells if isinstance(cell, TrainingCell)]
    assert (len(training), len(cells) - len(training)) == (28, 284)
    # Nothing is trained on a test backbone but the re-trained reference.
    retrained = {cell.key() for cell in training if cell.backbone != "resnet50"}
    users = [cell for cell in cells if isinstance(cell, Cell) and cell.checkpoint in retrained]
    assert len(retrained) == 4
    assert all(cell.backbone == cell.trained_on == "deit_tiny_patch16_224" for cell in users)
