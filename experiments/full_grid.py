"""The paper's grid: Pascal-5i and COCO-20i, all folds, shot counts, annotations and backbones, one checkpoint a fold.

    python experiments/full_grid.py --dry-run
    ray job submit --working-dir . -- python experiments/full_grid.py --results /shared/results/full

With the defaults 8 training cells (2 data sets × 4 folds, ResNet-50) and 728 evaluation cells of 1000 episodes:
4 folds × ({0} × {text} ∪ {1, 5, 10} × {mask, box, scribble, mask+text}) × 7 backbones × 2 data sets. ``--seeds 0,1,2``
trains three times as many checkpoints on the same episodes. Text is read by CLIP ViT-B/16 where a backbone can't.

The plan needs neither data nor weights at hand; the run expects
``$DIFFUP_HOME/datasets/{pascal5i,coco20i}/dataset.json``. A pretrained tag is downloaded by name, or read from
``--weights-dir`` if it is there. Plan for GPUs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from cluster import cli
from diffup.errors import UserError, command_line
from diffup.grid.axes import Backbone, evaluation_cells, named_backbone, tasks, training_cell
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data, named_data, open_data
from diffup.training import recipes

NAME = "full_grid"
RECIPES = {"pascal5i": recipes.pascal5i(), "coco20i": recipes.coco20i()}
DATASETS = tuple(RECIPES)
OTHER = RECIPES["pascal5i"]  # for data sets given by path
FOLDS = (0, 1, 2, 3)
TASKS = [(0, "text"), *tasks((1, 5, 10), ("mask", "box", "scribble", "mask+text"))]
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
    """For each data set, fold and seed: one training cell, and 13 evaluation cells a backbone.

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
        recipe = RECIPES.get(data.name, OTHER)
        train = partial(training_cell, data, config=recipe.input, companion=companion)
        evaluate = partial(evaluation_cells, data, config=recipe.input, companion=companion)
        for fold in FOLDS:
            for seed in seeds:
                trained = train(fold, source, model=recipe.model, train=recipe.train, seed=seed)
                cells.append(trained)
                cells += evaluate(fold, backbones, TASKS, episodes=numbers.get(data.name, EPISODES), trained=trained)
    return cells


def options() -> argparse.ArgumentParser:
    """The script's command line."""
    made = cli.parser(NAME, __doc__ or "", episodes=EPISODES)
    made.add_argument(
        "--dataset",
        type=cli.names,
        default=DATASETS,
        metavar="A,B",
        help="names, or paths of dataset.json with four folds",
    )
    cli.add_protocol(made)
    made.add_argument("--weights-dir", type=cli.folder, default=None, metavar="DIR", help="folder of backbone weights")
    made.add_argument(
        "--seeds", type=cli.numbers, default=None, metavar="0,1,…", help="training seeds; overrides --seed"
    )
    return made


def build(args: argparse.Namespace) -> tuple[list[AnyCell], dict[str, Path]]:
    """Describe the grid. Named benchmarks need not be at hand; paths are opened and checked.

    Raises:
        UserError: a path is given that is no good data set of four folds, or manifests for a name.
    """
    backbones = [named_backbone(name, weights_dir=args.weights_dir, check=False) for name in BACKBONES]
    most = max(shots for shots, _ in TASKS)
    if args.manifests is not None and (len(args.dataset) > 1 or args.dataset[0] in DATASETS):
        raise UserError("--manifests are of one data set: pass --dataset with the path of its dataset.json")
    how = {"protocol": args.protocol, "lists": args.lists}
    datasets = [
        named_data(name, **how) if name in DATASETS else open_data(name, shots=most, manifests=args.manifests, **how)
        for name in dict.fromkeys(args.dataset)
    ]
    for data in datasets:
        if data.folds != len(FOLDS):
            raise UserError(f"--dataset: {data.name} has {data.folds} folds; this grid is made for {len(FOLDS)}")
    numbers = {data.name: cli.episodes(args, data.name, EPISODES) for data in datasets}
    cells = grid(datasets, backbones, episodes=numbers, seeds=args.seeds or (args.seed,))
    return cells, {name: path for data in datasets for name, path in data.files().items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the grid; returns the exit code. Tables are made by ``python -m analysis.paper``."""
    return cli.script(NAME, options(), build, argv)


if __name__ == "__main__":
    sys.exit(command_line(main))
