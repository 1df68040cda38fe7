"""What training gains over the best map without training, on backbones that it has never seen.

    python experiments/unseen_backbones.py --dataset DIR/dataset.json --weights-dir DIR --results DIR

For each fold DiffUp is trained on one backbone, from absolute evidence (`diffup.training.recipes.photographs`) and, as
the variant ``stretched``, from maps stretched to [0, 1]; each checkpoint is tested on all backbones beside the
training-free methods, all on one manifest a fold. With the defaults, four folds and five backbones: 16 training and 960
evaluation cells; 1-shot masks have 500 episodes, the other tasks half as many. It can be stopped and run again at any
time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from analysis.printing import print_tables
from cluster.cli import DatasetOptions, Grid, ProtocolOptions, Study, run
from cluster.options import CountOrNone, Names, Numbers
from diffup.config import SampleConfig
from diffup.grid.axes import RIVALS, Backbone, evaluation_cells, training_cell, unique
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data
from diffup.training.recipes import Recipe, photographs
from experiments.training_free import BACKBONES, EPISODES, ONE_SHOT

SOURCES = ("resnet50", "tf_efficientnet_lite0")
OTHER_TASKS = ((5, "mask"), (1, "box"), (1, "scribble"))
RECIPE = photographs()
STRETCHED = RECIPE.changed(input={"bank": 0}, model={"base": "prior", "bound": 1.5}, train={"balance_sizes": False})
TRAINED: dict[str, Recipe] = {"diffup": RECIPE, "stretched": STRETCHED}


def grid(
    data: Data,
    *,
    sources: Sequence[Backbone],
    backbones: Sequence[Backbone],
    folds: Sequence[int] = (),
    seeds: Sequence[int] = (0,),
    episodes: int = EPISODES,
    variants: Sequence[str] = tuple(TRAINED),
) -> list[AnyCell]:
    """Training cells, their evaluation on all backbones, and the rivals.

    Args:
        data: with its folds.
        sources: backbones that are trained on, each by itself.
        backbones: of the tests.
        folds: which; by default all.
        seeds: of the trainings; with the first all tasks are evaluated, with others 1-shot masks.
        episodes: of the 1-shot mask; half as many of the other tasks.
        variants: names in `TRAINED`.
    """
    cells: list[AnyCell] = []
    for fold in folds or range(data.folds):
        made = partial(evaluation_cells, data, fold, backbones)
        for name, (sample, reads_bank) in RIVALS.items():
            config = RECIPE.input if reads_bank else replace(RECIPE.input, bank=0)
            rival = partial(made, config=config, sample=sample, variant=name)
            cells += [*rival([ONE_SHOT], episodes=episodes), *rival(OTHER_TASKS, episodes=max(1, episodes // 2))]
        for source in sources:
            for variant in variants:
                recipe = TRAINED[variant]
                for seed in seeds:
                    trained = training_cell(data, fold, source, recipe, variant=variant, seed=seed)
                    tested = partial(made, config=recipe.input, trained=trained, sample=SampleConfig())
                    cells += [trained, *tested([ONE_SHOT], episodes=episodes)]
                    if seed == seeds[0]:
                        cells += tested(OTHER_TASKS, episodes=max(1, episodes // 2))
    return unique(cells)


@dataclass(frozen=True, kw_only=True)
class UnseenBackbones(DatasetOptions, ProtocolOptions):
    """Options of this study."""

    episodes: CountOrNone = None
    """per cell (default: 500; with another protocol than paired as many as it has)"""
    sources: Names = SOURCES
    """backbones that are trained on"""
    backbones: Names = BACKBONES
    """tested"""
    folds: Numbers = ()
    """which (default: all)"""
    seeds: Numbers = (0,)
    """of the trainings"""
    variants: Names = tuple(TRAINED)
    """what is trained"""


def build(asked: UnseenBackbones) -> Grid:
    """The study on the data set that is asked for."""
    found = asked.find_backbones((*asked.sources, *asked.backbones))
    data = asked.open(asked.dataset, shots=max(shots for shots, _ in OTHER_TASKS))
    cells = grid(
        data,
        sources=[found[name] for name in asked.sources],
        backbones=[found[name] for name in asked.backbones],
        folds=asked.folds,
        seeds=asked.seeds,
        episodes=asked.episodes_of(data.name, EPISODES),
        variants=asked.variants,
    )
    return cells, data.files()


STUDY = Study(name="unseen_backbones", description=__doc__, options=UnseenBackbones, build=build, report=print_tables)

if __name__ == "__main__":
    sys.exit(run(STUDY))
