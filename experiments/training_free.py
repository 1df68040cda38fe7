"""The training-free methods on a data set of your own: what absolute evidence and a bank gain on each backbone.

    python experiments/training_free.py --dataset DIR/dataset.json --weights-dir DIR --results DIR

With the defaults, on four folds, five backbones and masks: the prototype, INSID3's rule, the prior mean, and absolute
evidence (`diffup.models.evidence`) without a bank, with one of 60 images, with its objectness, and with that averaged
within regions or superpixels of the query, 1-shot with 500 episodes and 5-shot with half as many: 320 cells, all on one
manifest a fold. Nothing is trained. It can be stopped and run again at any time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import tyro

import diffup.checkout  # noqa: F401
from analysis.printing import print_tables
from cluster.cli import DatasetOptions, Grid, ProtocolOptions, Study, run
from cluster.options import Count, CountOrNone, Names, NumbersOrAll, Seconds
from diffup.config import InputConfig
from diffup.grid.axes import RIVALS, Backbone, evaluation_cells, unique
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data

BACKBONES = (
    "resnet50", "mobilenetv2_100", "deit_tiny_patch16_224", "tf_efficientnet_lite0", "vit_small_patch14_dinov2",
)  # fmt: skip
BANK = 60
EPISODES = 500
ONE_SHOT, MORE_SHOTS = (1, "mask"), ((5, "mask"),)


def grid(
    data: Data, *, backbones: Sequence[Backbone], folds: Sequence[int] = (), episodes: int = EPISODES, bank: int = BANK
) -> list[AnyCell]:
    """All rivals on all backbones.

    Args:
        data: with its folds.
        backbones: of the tests.
        folds: which; by default all.
        episodes: of the 1-shot mask; half as many with more shots.
        bank: number of its images.
    """
    cells: list[AnyCell] = []
    for fold in folds or range(data.folds):
        for variant, (sample, reads_bank) in RIVALS.items():
            config = replace(InputConfig(), bank=bank if reads_bank else 0)
            made = partial(evaluation_cells, data, fold, backbones, config=config, sample=sample, variant=variant)
            cells += [*made([ONE_SHOT], episodes=episodes), *made(MORE_SHOTS, episodes=max(1, episodes // 2))]
    return unique(cells)


@dataclass(frozen=True, kw_only=True)
class TrainingFree(DatasetOptions, ProtocolOptions):
    """Options of this study."""

    steps: tyro.conf.Suppress[CountOrNone] = None
    time_budget: tyro.conf.Suppress[Seconds] = None
    episodes: CountOrNone = None
    """per cell (default: 500; with another protocol than paired as many as it has)"""
    backbones: Names = BACKBONES
    """tested"""
    folds: NumbersOrAll = ()
    """which (default: all)"""
    bank: Count = BANK
    """images of the bank"""


def build(asked: TrainingFree) -> Grid:
    """The study on the data set that is asked for."""
    found = asked.find_backbones(asked.backbones)
    data = asked.open(asked.dataset, shots=max(shots for shots, _ in MORE_SHOTS))
    cells = grid(
        data,
        backbones=[found[name] for name in asked.backbones],
        folds=asked.folds,
        episodes=asked.episodes_of(data.name, EPISODES),
        bank=asked.bank,
    )
    return cells, data.files()


STUDY = Study(name="training_free", description=__doc__, options=TrainingFree, build=build, report=print_tables)

if __name__ == "__main__":
    sys.exit(run(STUDY))
