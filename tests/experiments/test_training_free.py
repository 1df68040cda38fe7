"""The study of training-free methods: every rival on every backbone and fold, on the same episodes."""

from __future__ import annotations

from diffup.grid.axes import RIVALS, Backbone
from diffup.grid.cell import Cell
from diffup.grid.datasets import Data
from experiments.training_free import BACKBONES, BANK, grid

DATA = Data(name="made up", fingerprint="0" * 12, folds=4)


def test_all_rivals_meet_on_the_same_episodes_and_only_some_read_a_bank() -> None:
    made = grid(DATA, backbones=[Backbone(name=name, weights="random:0") for name in BACKBONES])
    cells = [cell for cell in made if isinstance(cell, Cell)]
    assert len(cells) == len(made) == len(RIVALS) * len(BACKBONES) * DATA.folds * 2
    assert not any(cell.checkpoint for cell in cells)
    draws = {(cell.fold, cell.shots): (cell.episode_seed, cell.episodes, cell.manifest) for cell in cells}
    assert all(draws[cell.fold, cell.shots] == (cell.episode_seed, cell.episodes, cell.manifest) for cell in cells)
    banks = {cell.variant: cell.input.bank for cell in cells}
    assert banks == {variant: BANK * reads for variant, (_, reads) in RIVALS.items()}
    assert {cell.sample.objectness for cell in cells if cell.variant == "evidence_objects"} == {0.2}
