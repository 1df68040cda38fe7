"""All that a paper asks, on a data set of your own: all folds, shots, annotations and backbones, from one checkpoint a
fold.

    python experiments/dataset_grid.py --dataset DIR/dataset.json --weights-dir DIR --results DIR
    diffup paper --results DIR --out DIR/paper

With the defaults, on four folds: 8 training cells (DiffUp on ``resnet50``, and on ``deit_tiny_patch16_224`` as the
re-trained reference) and 428 evaluation cells: DiffUp, the best map without training, prior mean and prototype on three
backbones × masks with 1, 2, 5 and 10 shots, boxes and scribbles with 1 and 5; the re-trained reference; and the 1-shot
mask with other samplers (`STEPS`). 1-shot masks have 1000 episodes, the rest half as many, all on one manifest a fold.
``--companion`` names an open_clip model that reads text: then 0 shots with text and masks with text are added.

About an hour on 2 cores for 500 images; it can be stopped and run again at any time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import diffup.checkout  # noqa: F401
from analysis.printing import print_tables
from cluster.cli import DatasetOptions, Grid, ProtocolOptions, SeedsOptions, Study, run
from cluster.options import CountOrNone, Name, Names, Text
from diffup.grid.axes import EVIDENCE_OBJECTS, PRIOR_MEAN, PROTOTYPE, Backbone, evaluation_cells, training_cell, unique
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data
from diffup.grid.variants import VARIANTS
from diffup.training.recipes import photographs

TRAINED_ON = "resnet50"
BACKBONES = ("resnet50", "deit_tiny_patch16_224", "mobilenetv2_100")
RETRAINED = ("deit_tiny_patch16_224",)
EPISODES = 1000
ONE_SHOT = (1, "mask")
TASKS = (*((shots, "mask") for shots in (2, 5, 10)), *((k, kind) for kind in ("box", "scribble") for k in (1, 5)))
TEXT_TASKS = ((0, "text"), (1, "mask+text"))
STEPS = ("steps_1", "steps_4", "steps_8", "from_prior", "full_strength")
RECIPE = photographs()


def grid(
    data: Data,
    *,
    source: Backbone,
    backbones: Sequence[Backbone],
    retrained: Sequence[Backbone] = (),
    companion: Backbone | None = None,
    episodes: int = EPISODES,
    seeds: Sequence[int] = (0,),
) -> list[AnyCell]:
    """The cells of all folds.

    Args:
        data: with its folds.
        source: the backbone that DiffUp is trained on.
        backbones: of the tests.
        retrained: backbones that DiffUp is trained on too, as a reference for what the upgrade leaves on the table.
        companion: reads text for backbones that can't.
        episodes: of the 1-shot mask; half as many for other tasks.
        seeds: of training.
    """
    cells: list[AnyCell] = []
    tasks = [*TASKS, *(TEXT_TASKS if companion else ())]
    for fold in range(data.folds):
        training = partial(training_cell, data, fold, recipe=RECIPE, companion=companion)
        evaluate = partial(evaluation_cells, data, fold, config=RECIPE.input, companion=companion)
        full, half = partial(evaluate, episodes=episodes), partial(evaluate, episodes=max(1, episodes // 2))
        for seed in seeds:
            trained = training(source, seed=seed)
            cells += [trained, *full(backbones, [ONE_SHOT], trained=trained), *half(backbones, tasks, trained=trained)]
            for variant in STEPS:
                sample = RECIPE.changed(**VARIANTS[variant]).sample
                cells += half(backbones[:2], [ONE_SHOT], trained=trained, variant=variant, sample=sample)
            for backbone in retrained:
                again = training(backbone, seed=seed)
                cells += [again, *full([backbone], [ONE_SHOT], trained=again)]
        cells += [*full(backbones, [ONE_SHOT], sample=PRIOR_MEAN), *half(backbones, tasks, sample=PRIOR_MEAN)]
        cells += [*full(backbones, [ONE_SHOT], sample=PROTOTYPE), *half(backbones, TASKS, sample=PROTOTYPE)]
        start = {"sample": EVIDENCE_OBJECTS, "variant": "evidence_objects"}
        cells += [*full(backbones, [ONE_SHOT], **start), *half(backbones, TASKS, **start)]
    return unique(cells)


@dataclass(frozen=True, kw_only=True)
class DatasetGrid(DatasetOptions, ProtocolOptions, SeedsOptions):
    """Options of this grid."""

    episodes: CountOrNone = None
    """per cell (default: 1000; with another protocol than paired as many as it has)"""
    train_backbone: Name = TRAINED_ON
    """trained on"""
    backbones: Names = BACKBONES
    """tested"""
    retrained: Names = RETRAINED
    """also trained on; '' for none"""
    companion: Text = ""
    """open_clip model that reads text (default: none, and no cells with text)"""


def build(asked: DatasetGrid) -> Grid:
    """The grid on the data set that is asked for."""
    companions = [asked.companion] if asked.companion else []
    found = asked.find_backbones([asked.train_backbone, *asked.backbones, *asked.retrained, *companions])
    data = asked.open(asked.dataset, shots=max(shots for shots, _ in TASKS))
    cells = grid(
        data,
        source=found[asked.train_backbone],
        backbones=[found[name] for name in asked.backbones],
        retrained=[found[name] for name in asked.retrained],
        companion=found.get(asked.companion),
        episodes=asked.episodes_of(data.name, EPISODES),
        seeds=asked.training_seeds,
    )
    return cells, data.files()


STUDY = Study(name="dataset_grid", description=__doc__, options=DatasetGrid, build=build, report=print_tables)

if __name__ == "__main__":
    sys.exit(run(STUDY))
