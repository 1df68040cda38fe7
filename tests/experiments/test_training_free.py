"""The study of training-free methods: every rival on every backbone and fold, on the same episodes."""

from __future__ import annotations

from diffup.config import InputConfig
from diffup.grid.axes import RIVALS, Backbone, evaluation_cells
from diffup.grid.cell import Cell
from diffup.grid.datasets import Data
from experiments.training_free import BACKBONES, BANK, grid

DATA = Data(name="made up", fingerprint="0" * 12, folds=4)
KEYS = {  # as they were when the first of them were published, or were added
    "prototype": "45c0081a64e6",
    "prior_mean": "dabe1d49cc49",
    "evidence": "5e2e34542f05",
    "evidence_bank": "8917efd4346f",
    "evidence_objects": "35ae0d7d8a1a",
    "insid3": "3bc4ceba878f",
    "evidence_regions": "75ce4905ec42",
    "evidence_snap": "9cb141e93c47",
}


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


def test_rivals_keep_their_keys() -> None:
    found, backbones = {}, [Backbone(name="resnet18", weights="random:0")]
    for variant, (sample, reads_bank) in RIVALS.items():
        config = InputConfig(bank=BANK * reads_bank)
        (cell,) = evaluation_cells(
            DATA, 0, backbones, [(1, "mask")], config=config, episodes=8, sample=sample, variant=variant
        )
        found[variant] = cell.key()
    assert found == KEYS
