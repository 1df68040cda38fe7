"""The paper's grid: Pascal-5i and COCO-20i, all folds, shot counts, annotations and backbones, one checkpoint a fold.

    python experiments/full_grid.py --dry-run
    ray job submit --working-dir . -- python experiments/full_grid.py --results /shared/results/full

With the defaults 8 training cells (2 data sets × 4 folds, ResNet-50) and 1232 evaluation cells of 1000 episodes:
4 folds × ({0} × {text} ∪ {1, 5, 10} × {mask, box, scribble, mask+text}) × 7 backbones × 2 data sets with DiffUp, and
the best map that needs no training for masks, boxes and scribbles. ``--seeds 0,1,2`` trains three
times as many checkpoints on the same episodes. Text is read by CLIP ViT-B/16 where a backbone can't.

Planning needs neither data nor weights; the run expects
``$DIFFUP_HOME/datasets/{pascal5i,coco20i}/dataset.json``. A pretrained tag is downloaded by name, or read from
``--weights-dir`` if it is there. Plan for GPUs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import diffup.checkout  # noqa: F401
from cluster.cli import Grid, ProtocolOptions, SeedsOptions, Study, run
from cluster.options import CountOrNone, Names
from diffup.errors import UserError
from diffup.grid.axes import EVIDENCE_OBJECTS, Backbone, evaluation_cells, tasks, training_cell
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data, named_data
from diffup.training import recipes

DATASETS = tuple(recipes.BENCHMARKS)
OTHER = recipes.pascal5i()  # for data sets given by path
FOLDS = (0, 1, 2, 3)
VISUAL = tasks((1, 5, 10), ("mask", "box", "scribble"))
TASKS = [(0, "text"), *VISUAL, *tasks((1, 5, 10), ("mask+text",))]
TRAINED_ON = "resnet50"
COMPANION = "open_clip:ViT-B-16/openai"
BACKBONES = (
    "resnet50",
    "resnet101",
    "vit_base_patch16_224",
    "open_clip:RN101/openai",
    "open_clip:ViT-B-16/openai",
    "vit_small_patch14_dinov2.lvd142m",
    "vit_base_patch14_dinov2.lvd142m",
)
EPISODES = 1000


def grid(
    datasets: Sequence[Data],
    backbones: Sequence[Backbone],
    *,
    episodes: Mapping[str, int] | None = None,
    seeds: Sequence[int] = (0,),
) -> list[AnyCell]:
    """For each data set, fold and seed one training cell and 13 evaluation cells a backbone; 9 more without training.

    Args:
        datasets: Pascal-5i and COCO-20i, or others of four folds.
        backbones: test backbones; the training backbone and the text companion must be among them.
        episodes: per evaluation cell, by data set; 1000 by default.
        seeds: of training; the episodes stay the same.
    """
    by_name = {backbone.name: backbone for backbone in backbones}
    source, companion = by_name[TRAINED_ON], by_name[COMPANION]
    cells: list[AnyCell] = []
    numbers = episodes or {}
    for data in datasets:
        recipe = recipes.BENCHMARKS.get(data.name, OTHER)
        number = numbers.get(data.name, EPISODES)
        evaluate = partial(evaluation_cells, data, config=recipe.input, companion=companion, episodes=number)
        for fold in FOLDS:
            for seed in seeds:
                trained = training_cell(data, fold, source, recipe, companion=companion, seed=seed)
                cells.append(trained)
                cells += evaluate(fold, backbones, TASKS, trained=trained)
            cells += evaluate(fold, backbones, VISUAL, sample=EVIDENCE_OBJECTS, variant="evidence_objects")
    return cells


@dataclass(frozen=True, kw_only=True)
class FullGrid(ProtocolOptions, SeedsOptions):
    """Options of this grid."""

    dataset: Names = DATASETS
    """names, or paths of dataset.json with four folds"""
    episodes: CountOrNone = None
    """per cell (default: 1000; with another protocol than paired as many as it has)"""


def build(asked: FullGrid) -> Grid:
    """The grid. Named benchmarks need not be available locally; paths are opened and checked.

    Raises:
        UserError: a path is given that is no good data set of four folds, or manifests for a name.
    """
    backbones = list(asked.find_backbones(BACKBONES, check=False).values())
    if asked.manifests is not None and (len(asked.dataset) > 1 or asked.dataset[0] in DATASETS):
        raise UserError("--manifests are of one data set: pass --dataset with the path of its dataset.json")
    datasets = [
        named_data(name, protocol=asked.protocol, lists=asked.lists)
        if name in DATASETS
        else asked.open(name, shots=max(shots for shots, _ in TASKS))
        for name in dict.fromkeys(asked.dataset)
    ]
    for data in datasets:
        if data.folds != len(FOLDS):
            raise UserError(f"--dataset: {data.name} has {data.folds} folds; this grid is made for {len(FOLDS)}")
    numbers = {data.name: asked.episodes_of(data.name, EPISODES) for data in datasets}
    cells = grid(datasets, backbones, episodes=numbers, seeds=asked.training_seeds)
    return cells, {name: path for data in datasets for name, path in data.files().items()}


# Its tables are made by python -m analysis.paper.
STUDY = Study(name="full_grid", description=__doc__, options=FullGrid, build=build)

if __name__ == "__main__":
    sys.exit(run(STUDY))
