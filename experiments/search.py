"""Search training hyper-parameters on held-out base classes, with early stopping, and never on a novel class.

    python experiments/search.py --dataset DIR/dataset.json --weights-dir DIR --results DIR --trials 16
    python experiments/search.py --embedded --trials 8

The first configuration is the recipe itself, the others are drawn from `FACTORS` by ``--seed``. Each is a training cell
that holds out 3 base classes. At 1/8, 1/4, 1/2 and all of its steps its averaged weights are scored on these classes,
by the mean mIoU over the training backbone at two input sizes that it was not trained at (as in
`experiments/selection.py`: features then differ as another backbone's would, and to work on other backbones is what
the method is for) and over 3 tasks. Ray Tune's ASHA lets the better half of those seen so far go on.

Costs at most a training of each configuration. What changes the episodes that are drawn (``max_shots``,
``cue_weights``) also needs prior maps of its own, most of a training's cost; the rest shares them. Measured with
``--embedded --trials 8 --steps 120 --episodes 24``: 4 minutes on 2 cores, 585 of 960 steps; the four configurations
that were trained to the end scored 53.5 to 57.7 %.
``--embedded`` takes shapes4i and tiny_resnet, which are shipped. Options that make sense for other grids alone, such as
``--train-workers``, are refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import diffup.checkout  # noqa: F401
from analysis.printing import printed
from analysis.tables.held_out import search_tables
from cluster.cli import EmbeddedOptions, Grid, Study, run
from cluster.hpo.draw import Factors, choice, draw, log_uniform
from cluster.hpo.launch import launch_searches
from cluster.options import Count, Numbers, option
from diffup.grid.axes import Backbone, evaluation_cells, training_cell
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data
from diffup.training import recipes
from diffup.training.recipes import Recipe

HOLD_OUT = 3
TASKS = ((1, "mask"), (1, "scribble"), (5, "mask"))
EPISODES = 60
TRIALS = 16
REDUCTION, MILESTONES = 2, 4
TRAINED_ON, EMBEDDED_ON = "resnet50", "tiny_resnet"

# Over the recipe; steps are those of the recipe, since configurations compete at equal steps.
FACTORS: Factors = {
    "train": {
        "learning_rate": log_uniform(2e-4, 2e-2),
        "weight_decay": log_uniform(1e-4, 1e-1),
        "max_shots": choice(1, 5, 10),
        "cue_weights": choice((0.5, 0.2, 0.2, 0.1), (0.34, 0.33, 0.33, 0.1), (0.8, 0.1, 0.1, 0.1)),
    },
    "model": {"bound": choice(0.0, 1.5, 3.0)},
}


def grid(
    data: Data, source: Backbone, *, recipe: Recipe, folds: Sequence[int], trials: int, episodes: int = EPISODES,
    seed: int = 0,
) -> list[AnyCell]:  # fmt: skip
    """For each fold, a training cell for each configuration, and the 6 evaluation cells that score it.

    Args:
        data: a data set of at least 5 classes outside of each fold.
        source: training backbone; at other input sizes also the test backbone.
        recipe: to start from.
        folds: whose novel classes are left alone; a search each.
        trials: how many configurations.
        episodes: per evaluation cell.
        seed: of the configurations, of training, and of which classes are held out.
    """
    cells: list[AnyCell] = []
    for fold in folds:
        for drawn in draw(FACTORS, recipe, trials=trials, seed=seed):
            cell = training_cell(data, fold, source, drawn.changed(train={"hold_out": HOLD_OUT}), seed=seed)
            cells.append(cell)
            for size in virtual_sizes(drawn.input.input_size):
                virtual = drawn.changed(input={"input_size": size}).input
                cells += evaluation_cells(
                    data, fold, [source], TASKS, config=virtual, episodes=episodes, trained=cell, held_out=HOLD_OUT
                )
    return cells


def virtual_sizes(size: int) -> tuple[int, int]:
    """Two input sizes about 0.7 and 1.4 times the one trained at, multiples of 32 pixels."""
    return round(size * 0.7 / 32) * 32, round(size * 1.4 / 32) * 32


@dataclass(frozen=True, kw_only=True)
class SearchOptions(EmbeddedOptions):
    """Options of this script."""

    train_backbone: Annotated[str, *option("NAME", str, default=False)] = ""
    """trained on (default: resnet50, with --embedded tiny_resnet)"""
    folds: Numbers = (0,)
    """a search each"""
    trials: int = TRIALS
    """number of configurations"""
    episodes: Count = EPISODES
    """per task and input size of a score"""
    seed: int = 0
    """of configurations, training, and the classes that are held out"""


def build(asked: SearchOptions) -> Grid:
    """The configurations of a search on each fold of the data set that is asked for."""
    recipe = recipes.shapes4i() if asked.embedded else recipes.photographs()
    name = asked.train_backbone or (EMBEDDED_ON if asked.embedded else TRAINED_ON)
    (source,) = asked.find_backbones([name]).values()
    data = asked.open(shots=max(shots for shots, _ in TASKS))
    cells = grid(
        data, source, recipe=recipe, folds=data.chosen_folds(asked.folds), trials=asked.trials, episodes=asked.episodes,
        seed=asked.seed,
    )  # fmt: skip
    return cells, data.files()


STUDY = Study(
    name="search",
    description=__doc__,
    options=SearchOptions,
    build=build,
    launch=partial(launch_searches, reduction=REDUCTION, milestones=MILESTONES),
    report=printed(search_tables),
)

if __name__ == "__main__":
    sys.exit(run(STUDY))
