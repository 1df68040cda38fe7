"""The study on unseen backbones: what is trained on which, and that all rows of a fold have the same episodes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from diffup.errors import UserError
from diffup.grid.axes import RIVALS, Backbone
from diffup.grid.cell import Cell, TrainingCell
from diffup.grid.datasets import Data
from diffup.grid.variants import changes_training
from experiments.training_free import BACKBONES
from experiments.unseen_backbones import CHANGES, DEFAULT, MORE_SNAP, SOURCES, UnseenBackbones, grid, more_data

DATA = Data(name="made up", fingerprint="0" * 12, folds=4)
TASKS = 5


def named(names: tuple[str, ...]) -> list[Backbone]:
    return [Backbone(name=name, weights="random:0") for name in names]


def test_each_checkpoint_meets_all_rivals_on_the_same_episodes() -> None:
    made = grid(DATA, sources=named(SOURCES), backbones=named(BACKBONES), seeds=(0, 1))
    trained = {cell.key(): cell for cell in made if isinstance(cell, TrainingCell)}
    cells = [cell for cell in made if isinstance(cell, Cell)]
    assert len(trained) == DATA.folds * len(SOURCES) * 2 * 2, "diffup and stretched, two seeds"
    tested = len(SOURCES) * len(DEFAULT) * (TASKS + 1)  # the second seed has 1-shot masks alone
    assert len(cells) == DATA.folds * len(BACKBONES) * (len(RIVALS) * TASKS + tested)
    draws = {(cell.fold, cell.shots, cell.annotation): (cell.episode_seed, cell.episodes) for cell in cells}
    for cell in cells:
        assert draws[cell.fold, cell.shots, cell.annotation] == (cell.episode_seed, cell.episodes)
        if cell.checkpoint:
            source = trained[cell.checkpoint]
            variant = {"snap": "diffup"}.get(cell.variant, cell.variant)
            assert (cell.fold, cell.train_seed, variant) == (source.fold, source.train_seed, source.variant)
            assert cell.input == source.input, "another bank than in training"


def test_only_the_variant_that_reads_evidence_has_a_bank() -> None:
    made = grid(DATA, sources=named(SOURCES[:1]), backbones=named(BACKBONES), folds=(0,))
    reads = {cell.variant: (cell.model.base, cell.input.bank) for cell in made if isinstance(cell, TrainingCell)}
    assert reads == {"diffup": ("evidence", 60), "stretched": ("prior", 0)}


def test_each_variant_has_its_own_cells_and_only_those_that_need_it_a_checkpoint() -> None:
    made = grid(DATA, sources=named(SOURCES[:1]), backbones=named(BACKBONES[:1]), folds=(0,), variants=tuple(CHANGES))
    checkpoints = {cell.variant for cell in made if isinstance(cell, TrainingCell)}
    assert checkpoints == {"diffup"} | {name for name, change in CHANGES.items() if changes_training(change)}
    tested = {cell.key(): cell.variant for cell in made if isinstance(cell, Cell) and cell.checkpoint}
    assert len(tested) == len(CHANGES) * TASKS and set(tested.values()) == set(CHANGES)


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(UserError, match="there is no 'no_such'"):
        UnseenBackbones(dataset="a.json", variants=("diffup", "no_such"))


def test_more_images_are_trained_on_and_the_same_episodes_tested() -> None:
    other = Data(name="made up, more", fingerprint="1" * 12, folds=4)
    study = partial(grid, DATA, sources=named(SOURCES[:1]), backbones=named(BACKBONES[:2]), variants=("diffup",))
    plain, made = study(), study(more=other)
    added = [cell for cell in made if cell not in plain]
    assert [cell for cell in made if cell in plain] == plain
    trained = {cell.key(): cell for cell in added if isinstance(cell, TrainingCell)}
    assert {cell.dataset for cell in trained.values()} == {other.name} and len(trained) == DATA.folds
    for cell in (cell for cell in added if isinstance(cell, Cell)):
        assert (cell.dataset, cell.classes) == (DATA.name, "novel") and cell.sample.snap == (cell.variant == MORE_SNAP)
        assert trained[cell.checkpoint].fold == cell.fold, "what is tested was left out"


def test_more_images_of_other_folds_are_refused(json_path: Path) -> None:
    document = json.loads(json_path.read_text())
    with pytest.raises(UserError, match="is called 'toy'"):
        more_data(str(json_path), str(json_path), "paired")
    other = json_path.with_name("other.json")
    other.write_text(json.dumps(document | {"name": "more"}))
    assert more_data(str(other), str(json_path), "paired").name == "more"
    other.write_text(json.dumps(document | {"name": "more", "folds": document["folds"][::-1]}))
    with pytest.raises(UserError, match="must be left out"):
        more_data(str(other), str(json_path), "paired")
