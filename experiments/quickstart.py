"""Everything once, on embedded data and embedded backbones: train, swap backbones and annotations, print a table.

    make quickstart                       (or: python experiments/quickstart.py)

Two training cells on ``tiny_resnet`` (DiffUp and the one-step decoder), then 42 evaluation cells of 300 episodes on
fold 0 of ``shapes4i``: 0 shots × text, 1 shot × {mask, box, scribble, mask+text} and 5 shots × {mask, scribble} for
three backbones without re-training, the text cells again with wrong class names (a control that must fail), the
one-step decoder, and the training-free baselines prior mean and prototype. About 4 minutes on 2 idle cores; run it
again and nothing is left to do.

Expect: DiffUp above the prior mean on ``tiny_resnet``; an upgraded backbone above ``tiny_resnet`` though DiffUp never
saw it in training; text above text with wrong names. Results, tables and MLflow's database are in
``$DIFFUP_HOME/results/quickstart`` (else ``~/.diffup/…``).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial

import diffup.checkout  # noqa: F401
from analysis.printing import print_tables
from cluster.cli import Grid, GridOptions, Study, run
from cluster.options import Count
from diffup.backbones.embedded import EMBEDDED
from diffup.grid.axes import PRIOR_MEAN, PROTOTYPE, evaluation_cells, named_backbone, tasks, training_cell
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data, open_data
from diffup.grid.variants import VARIANTS
from diffup.training import recipes

FOLDS = (0,)
SHOTS = (1, 5)
ONE_SHOT = ("mask", "box", "scribble", "mask+text")
FIVE_SHOT = ("mask", "scribble")
TRAINED_ON, COMPANION = "tiny_resnet", "tiny_clip"
EPISODES = 300
RECIPE = recipes.shapes4i()


def grid(data: Data, *, episodes: int = EPISODES, seed: int = 0) -> list[AnyCell]:
    """44 cells a fold: 2 training, 24 DiffUp (3 of them with wrong names), 6 each of one-step, prior mean, prototype.

    Args:
        data: shapes4i, or a data set like it.
        episodes: per evaluation cell.
        seed: of training.
    """
    backbones = [named_backbone(name, check=False) for name in EMBEDDED]
    by_name = {backbone.name: backbone for backbone in backbones}
    source, companion = by_name[TRAINED_ON], by_name[COMPANION]
    wrong = RECIPE.changed(input={"class_names": "deranged"}).input
    visual = tasks((1,), ONE_SHOT) + tasks((5,), FIVE_SHOT)
    text = [(0, "text")]
    cells: list[AnyCell] = []
    for fold in FOLDS:
        training = partial(training_cell, data, fold, source, companion=companion, seed=seed)
        trained = training(RECIPE)
        one_step = training(RECIPE.changed(**VARIANTS["one_step"]), variant="one_step")
        evaluate = partial(evaluation_cells, data, fold, episodes=episodes, companion=companion)
        cells += [trained, one_step]
        cells += evaluate(backbones, visual + text, config=RECIPE.input, trained=trained)
        cells += evaluate(backbones, text, config=wrong, trained=trained, variant="wrong_names")
        cells += evaluate(backbones, tasks((1,), ("mask",)) + text, config=RECIPE.input, trained=one_step)
        cells += evaluate(backbones, tasks(SHOTS, ("mask",)), config=RECIPE.input, sample=PRIOR_MEAN)
        cells += evaluate(backbones, tasks(SHOTS, ("mask",)), config=RECIPE.input, sample=PROTOTYPE)
    return cells


@dataclass(frozen=True, kw_only=True)
class Quickstart(GridOptions):
    """Options of this grid."""

    episodes: Count = EPISODES


def build(asked: Quickstart) -> Grid:
    """The grid on the embedded data set, which is written to disk where it is not yet."""
    data = open_data("shapes4i", shots=max(SHOTS))
    return grid(data, episodes=asked.episodes, seed=asked.seed), data.files()


STUDY = Study(name="quickstart", description=__doc__, options=Quickstart, build=build, report=print_tables)

if __name__ == "__main__":
    sys.exit(run(STUDY))
