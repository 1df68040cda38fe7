"""Your own images: train on one fold of a ``dataset.json`` with one backbone, evaluate with others, print a table.

    python experiments/mini_grid.py --dataset DIR/dataset.json --weights-dir DIR --results DIR

With the defaults: one training cell on ``resnet50`` and 48 evaluation cells of 400 episodes on fold 0: DiffUp on
``resnet50``, ``mobilenetv2_100`` and ``deit_tiny_patch16_224`` × shots 1, 5 × mask, box, scribble, all on one manifest
and without re-training; beside each the best map that needs no training; and for masks the prior mean and the
prototype. ``--one-step`` adds the one-step decoder on the training backbone (1 training and 6 evaluation
cells). Weights come from ``--weights-dir`` (``<name>.safetensors`` or ``.pth``) and are otherwise downloaded by name.

Under 30 minutes on 2 cores for a few hundred images. Expect backbones in the order of their quality though DiffUp was
trained on one only, and DiffUp above prior mean and prototype. What training adds to the best map
is a point or two, on a good backbone sometimes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import diffup.checkout  # noqa: F401
from analysis.printing import print_tables
from cluster.cli import DatasetOptions, Grid, ProtocolOptions, Study, run
from cluster.options import CountOrNone, Name, Names, Numbers
from diffup.config import check_annotation
from diffup.grid.axes import EVIDENCE_OBJECTS, PRIOR_MEAN, PROTOTYPE, Backbone, evaluation_cells, tasks, training_cell
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data
from diffup.grid.variants import VARIANTS
from diffup.training import recipes

FOLDS = (0,)
SHOTS = (1, 5)
ANNOTATIONS = ("mask", "box", "scribble")
TRAINED_ON = "resnet50"
BACKBONES = ("resnet50", "mobilenetv2_100", "deit_tiny_patch16_224")
EPISODES = 400
RECIPE = recipes.photographs()


def grid(
    data: Data,
    *,
    source: Backbone,
    backbones: Sequence[Backbone],
    folds: Sequence[int] = FOLDS,
    shots: Sequence[int] = SHOTS,
    annotations: Sequence[str] = ANNOTATIONS,
    episodes: int = EPISODES,
    one_step: bool = False,
    seed: int = 0,
) -> list[AnyCell]:
    """One training cell a fold, and by default 16 evaluation cells a fold and backbone: 6 DiffUp, 10 without training.

    Args:
        data: any data set.
        source: training backbone.
        backbones: test backbones.
        folds: which folds.
        shots, annotations: of the supports; prior mean and prototype have masks.
        episodes: per evaluation cell.
        one_step: also train and evaluate the one-step decoder, on `source`.
        seed: of training.
    """
    cells: list[AnyCell] = []
    for fold in folds:
        evaluate = partial(evaluation_cells, data, fold, config=RECIPE.input, episodes=episodes)
        trained = training_cell(data, fold, source, RECIPE, seed=seed)
        cells.append(trained)
        cells += evaluate(backbones, tasks(shots, annotations), trained=trained)
        visual = [(k, kind) for k, kind in tasks(shots, annotations) if "text" not in kind]
        cells += evaluate(backbones, visual, sample=EVIDENCE_OBJECTS, variant="evidence_objects")
        cells += evaluate(backbones, tasks(shots, ("mask",)), sample=PRIOR_MEAN)
        cells += evaluate(backbones, tasks(shots, ("mask",)), sample=PROTOTYPE)
        if one_step:
            changed = RECIPE.changed(**VARIANTS["one_step"])
            other = training_cell(data, fold, source, changed, variant="one_step", seed=seed)
            cells.append(other)
            cells += evaluate([source], tasks(shots, annotations), trained=other)
    return cells


@dataclass(frozen=True, kw_only=True)
class MiniGrid(DatasetOptions, ProtocolOptions):
    """Options of this grid."""

    episodes: CountOrNone = None
    """per cell (default: 400; with another protocol than paired as many as it has)"""
    train_backbone: Name = TRAINED_ON
    """trained on"""
    backbones: Names = BACKBONES
    """tested"""
    folds: Numbers = FOLDS
    """which folds"""
    shots: Numbers = SHOTS
    """numbers of supports"""
    annotations: Names = ANNOTATIONS
    """of the supports: mask, box, scribble, or mixes such as mask+box"""
    one_step: bool = False
    """also the one-step decoder"""


def build(asked: MiniGrid) -> Grid:
    """The grid on the data set that is asked for."""
    for shots, annotation in tasks(asked.shots, asked.annotations):
        check_annotation(annotation, shots)
    found = asked.find_backbones([asked.train_backbone, *asked.backbones])
    data = asked.open(asked.dataset, shots=max(asked.shots))
    cells = grid(
        data,
        source=found[asked.train_backbone],
        backbones=[found[name] for name in asked.backbones],
        folds=data.chosen_folds(asked.folds),
        shots=asked.shots,
        annotations=asked.annotations,
        episodes=asked.episodes_of(data.name, EPISODES),
        one_step=asked.one_step,
        seed=asked.seed,
    )
    return cells, data.files()


STUDY = Study(name="mini_grid", description=__doc__, options=MiniGrid, build=build, report=print_tables)

if __name__ == "__main__":
    sys.exit(run(STUDY))
