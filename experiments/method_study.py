"""Does the method earn its place? DiffUp against averaging its own priors, on backbones it has never seen.

    python experiments/method_study.py --dataset DIR/dataset.json --weights-dir DIR --results DIR [--part main|ablation]

Trained on ``resnet50`` only; ``deit_tiny_patch16_224`` and ``mobilenetv2_100`` are swapped in untrained. On msrc15
(four folds) the part ``main`` has 28 training cells (DiffUp and the one-step decoder with 3 seeds a fold, DiffUp on
DeiT once a fold) and 284 evaluation cells: 1-shot mask with 1000 episodes and every seed; with half as many episodes
and seed 0 the 5-shot masks, boxes, scribbles, the three mixed, other numbers of steps; and the training-free
baselines of each. ``ablation`` has folds 0 and 1, 2 seeds, every module removed once.

About 1.5 hours each on 2 cores for 500 images; it can be stopped and run again at any time. Training one fold takes
about 3 minutes on one core. ``--select fold=0|1`` and the like run a part.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import diffup.checkout  # noqa: F401
from analysis.printing import print_tables
from cluster.cli import DatasetOptions, Grid, Study, run
from cluster.options import Count
from diffup.config import SampleConfig
from diffup.grid.axes import PRIOR_MEAN, PROTOTYPE, Backbone, evaluation_cells, training_cell, unique
from diffup.grid.cell import AnyCell, TrainingCell
from diffup.grid.datasets import Data, open_data
from diffup.grid.variants import VARIANTS, changes_training, effective
from diffup.training.recipes import msrc15

TRAINED_ON = "resnet50"
UPGRADES = ("deit_tiny_patch16_224", "mobilenetv2_100")
RETRAINED = "deit_tiny_patch16_224"
EPISODES = 1000
SEEDS = (0, 1, 2)
ONE_SHOT = (1, "mask")
OTHER_TASKS = ((5, "mask"), (1, "box"), (1, "scribble"), (3, "mask+scribble+box"))
STEPS = ("steps_1", "steps_4", "steps_8", "from_prior", "full_strength")
ABLATED_FOLDS, ABLATED_SEEDS = (0, 1), (0, 1)
ABLATION_TASKS = (ONE_SHOT, (5, "mask"))

RECIPE = msrc15()
INPUT = RECIPE.input


def trained(data: Data, fold: int, backbone: Backbone, variant: str, seed: int) -> tuple[TrainingCell, SampleConfig]:
    """A variant's training cell and how it samples; sampling variants have DiffUp's training cell."""
    recipe = RECIPE.changed(**VARIANTS[variant])
    name = variant if changes_training(VARIANTS[variant]) else "diffup"
    return training_cell(data, fold, backbone, recipe, variant=name, seed=seed), recipe.sample


def main_grid(data: Data, source: Backbone, upgrades: Sequence[Backbone], *, episodes: int) -> list[AnyCell]:
    """Every line of the study but the ablation.

    Args:
        data: with all its folds.
        source: the only backbone that is trained on, but for the re-trained reference.
        upgrades: test backbones beside it.
        episodes: of the 1-shot mask; half as many for other tasks.
    """
    cells: list[AnyCell] = []
    everywhere = [source, *upgrades]
    again = [backbone for backbone in upgrades if backbone.name == RETRAINED]
    for fold in range(data.folds):
        full = partial(evaluation_cells, data, fold, config=INPUT, episodes=episodes)
        half = partial(evaluation_cells, data, fold, config=INPUT, episodes=max(1, episodes // 2))
        for seed in SEEDS:
            for variant in ("diffup", "one_step"):
                cell, sample = trained(data, fold, source, variant, seed)
                cells.append(cell)
                cells += full(everywhere, [ONE_SHOT], trained=cell, sample=sample)
        first, sample = trained(data, fold, source, "diffup", SEEDS[0])
        cells += half(everywhere, OTHER_TASKS, trained=first, sample=sample)
        for variant in STEPS:
            _, sample = trained(data, fold, source, variant, SEEDS[0])
            cells += half(everywhere[:2], [ONE_SHOT], trained=first, variant=variant, sample=sample)
        for backbone in again:
            cell, sample = trained(data, fold, backbone, "diffup", SEEDS[0])
            cells += [cell, *full([backbone], [ONE_SHOT], trained=cell, sample=sample)]
        for baseline in (PRIOR_MEAN, PROTOTYPE):
            cells += full(everywhere, [ONE_SHOT], sample=baseline)
            cells += half(everywhere, OTHER_TASKS, sample=baseline)
    return unique(cells)


def ablation_grid(data: Data, source: Backbone, upgrades: Sequence[Backbone], *, episodes: int) -> list[AnyCell]:
    """Every variant of `diffup.grid.variants` on the training backbone and the first upgrade, 1 and 5 masks."""
    cells: list[AnyCell] = []
    shown = [source, *upgrades[:1]]
    for fold in ABLATED_FOLDS:
        for seed in ABLATED_SEEDS:
            for variant in effective(VARIANTS, RECIPE):
                cell, sample = trained(data, fold, source, variant, seed)
                cells.append(cell)
                cells += evaluation_cells(
                    data, fold, shown, ABLATION_TASKS, config=INPUT, episodes=max(1, episodes // 2), trained=cell,
                    variant=variant, sample=sample,
                )  # fmt: skip
    return unique(cells)


@dataclass(frozen=True, kw_only=True)
class MethodStudy(DatasetOptions):
    """Options of this grid."""

    episodes: Count = EPISODES
    part: Literal["main", "ablation", "all"] = "main"
    """part of the grid"""


def build(asked: MethodStudy) -> Grid:
    """The parts that are asked for, on the data set."""
    source, *upgrades = asked.find_backbones([TRAINED_ON, *UPGRADES]).values()
    data = open_data(asked.dataset, shots=max(shots for shots, _ in OTHER_TASKS))
    cells: list[AnyCell] = []
    for part, grid in (("main", main_grid), ("ablation", ablation_grid)):
        if asked.part in (part, "all"):
            cells += grid(data, source, upgrades, episodes=asked.episodes)
    return unique(cells), data.files()


STUDY = Study(name="method_study", description=__doc__, options=MethodStudy, build=build, report=print_tables)

if __name__ == "__main__":
    sys.exit(run(STUDY))
