"""Choose between variants of DiffUp without looking at a novel class or at a test backbone.

    python experiments/selection.py --dataset DIR/dataset.json --weights-dir DIR --results DIR

Each variant is trained without 3 of the base classes (drawn by training seed and fold) and evaluated on these, with the
training backbone at input sizes it was not trained at: its features then differ as another backbone's would, a
*virtual* backbone. Neither the novel classes nor any other backbone is touched, so whatever is chosen here can be
reported on them.

With the defaults, for each of 4 folds: 4 training cells on ``resnet50`` and 40 evaluation cells of 300 episodes: 4
variants and the prior mean × 224 and 448 px (320 in training) × 1-shot mask, box and scribble and 5-shot mask. The
table has the mean over folds and sizes; its last column is the paired difference of all tasks to the first variant.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import diffup.checkout  # noqa: F401
from analysis.printing import printed
from cluster.cli import DatasetOptions, Grid, SeedsOptions, Study, run
from cluster.options import Count, Name, NumbersOrNone
from diffup.grid.axes import PRIOR_MEAN, Backbone, evaluation_cells, training_cell
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data, open_data
from diffup.training import recipes

if TYPE_CHECKING:
    from analysis.tables.table import Table

HOLD_OUT = 3
SIZES = (224, 448)
TASKS = [(1, "mask"), (1, "box"), (1, "scribble"), (5, "mask")]
TRAINED_ON = "resnet50"
EPISODES = 300
BASE = recipes.photographs().changed(train={"hold_out": HOLD_OUT})
# What is compared, by name; the first is the one that the others are measured against.
VARIANTS = {
    "diffup": BASE,
    "one_step": BASE.changed(model={"one_step": True}),
    "undistorted": BASE.changed(train={"virtual_backbones": False}),
    "longer": BASE.changed(train={"steps": 2 * BASE.train.steps}),
}


def grid(
    data: Data, source: Backbone, *, folds: Sequence[int], episodes: int = EPISODES, seeds: Sequence[int] = (0,)
) -> list[AnyCell]:
    """For each fold and seed: 4 training cells, and 8 evaluation cells for each variant and for the prior mean.

    Args:
        data: a data set of at least 5 classes outside of each fold.
        source: training backbone; at other input sizes also the test backbone.
        folds: which folds.
        episodes: per evaluation cell.
        seeds: of training, and of which classes are held out.
    """
    cells: list[AnyCell] = []
    for fold in folds:
        for seed in seeds:
            trained = {
                name: training_cell(data, fold, source, recipe, variant=name, seed=seed)
                for name, recipe in VARIANTS.items()
            }
            cells += trained.values()
            for size in SIZES:
                virtual = BASE.changed(input={"input_size": size}).input
                for cell in trained.values():
                    cells += evaluation_cells(
                        data, fold, [source], TASKS, config=virtual, episodes=episodes, trained=cell, held_out=HOLD_OUT
                    )
                cells += evaluation_cells(
                    data, fold, [source], TASKS, config=virtual, episodes=episodes, sample=PRIOR_MEAN,
                    held_out=HOLD_OUT, seed=seed,
                )  # fmt: skip
    return cells


def table(results: Path, keys: Sequence[str]) -> Table:
    """The variants and the prior mean, by task."""
    from analysis.tables.held_out import selection_table
    from analysis.tables.places import Task

    return selection_table(results, keys, tasks=[Task(*task) for task in TASKS], order=(*VARIANTS, "prior_mean"))


@dataclass(frozen=True, kw_only=True)
class Selection(DatasetOptions, SeedsOptions):
    """Options of this grid."""

    episodes: Count = EPISODES
    train_backbone: Name = TRAINED_ON
    """trained on, and tested at other input sizes"""
    folds: NumbersOrNone = None
    """which folds (default: all)"""


def build(asked: Selection) -> Grid:
    """The grid on the data set that is asked for."""
    (source,) = asked.find_backbones([asked.train_backbone]).values()
    data = open_data(asked.dataset, shots=max(shots for shots, _ in TASKS))
    folds = data.chosen_folds(asked.folds)
    return grid(data, source, folds=folds, episodes=asked.episodes, seeds=asked.training_seeds), data.files()


STUDY = Study(name="selection", description=__doc__, options=Selection, build=build, report=printed(table))

if __name__ == "__main__":
    sys.exit(run(STUDY))
