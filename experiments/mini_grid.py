"""Your own images: train on one fold of a ``dataset.json`` with one backbone, evaluate with others, print a table.

    python experiments/mini_grid.py --dataset DIR/dataset.json --weights-dir DIR --results DIR

With the defaults: one training cell on ``resnet50`` and 30 evaluation cells of 400 episodes on fold 0: DiffUp on
``resnet50``, ``mobilenetv2_100`` and ``deit_tiny_patch16_224`` × shots 1, 5 × mask, box, scribble, all on one manifest
and without re-training, and the baselines prior mean and prototype (1 and 5 shots, mask). ``--one-step`` adds the
one-step decoder on the training backbone (1 training and 6 evaluation cells). Weights come from ``--weights-dir``
(``<name>.safetensors`` or ``.pth``) and are otherwise downloaded by name.

Under 30 minutes on 2 cores for a few hundred images. Expect DiffUp above both baselines on the training backbone, and
other backbones in the order of their quality though DiffUp was never trained on them.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cluster import cli
from diffup.errors import UserError, command_line
from diffup.grid.axes import PRIOR_MEAN, PROTOTYPE, Backbone, evaluation_cells, named_backbone, tasks, training_cell
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data, open_data
from diffup.training import recipes
from experiments.report import print_tables

NAME = "mini_grid"
FOLDS = (0,)
SHOTS = (1, 5)
ANNOTATIONS = ("mask", "box", "scribble")
TRAINED_ON = "resnet50"
BACKBONES = ("resnet50", "mobilenetv2_100", "deit_tiny_patch16_224")
EPISODES = 400
RECIPE = recipes.msrc15()
INPUT, MODEL, TRAIN = RECIPE.input, RECIPE.model, RECIPE.train


def grid(
    data: Data,
    *,
    source: Backbone,
    backbones: Sequence[Backbone],
    folds: Sequence[int] = FOLDS,
    episodes: int = EPISODES,
    one_step: bool = False,
    seed: int = 0,
) -> list[AnyCell]:
    """One training cell a fold, and 10 evaluation cells a fold and backbone (6 DiffUp, 2 prior mean, 2 prototype).

    Args:
        data: any data set.
        source: training backbone.
        backbones: test backbones.
        folds: which folds.
        episodes: per evaluation cell.
        one_step: also train and evaluate the one-step decoder, on `source`.
        seed: of training.
    """
    cells: list[AnyCell] = []
    for fold in folds:
        evaluate = partial(evaluation_cells, data, fold, config=INPUT, episodes=episodes)
        training = partial(training_cell, data, fold, source, config=INPUT, train=TRAIN, seed=seed)
        trained = training(model=MODEL)
        cells.append(trained)
        cells += evaluate(backbones, tasks(SHOTS, ANNOTATIONS), trained=trained)
        cells += evaluate(backbones, tasks(SHOTS, ("mask",)), sample=PRIOR_MEAN)
        cells += evaluate(backbones, tasks(SHOTS, ("mask",)), sample=PROTOTYPE)
        if one_step:
            other = training(variant="one_step", model=dataclasses.replace(MODEL, one_step=True))
            cells.append(other)
            cells += evaluate([source], tasks(SHOTS, ANNOTATIONS), trained=other)
    return cells


def options() -> argparse.ArgumentParser:
    """The script's command line."""
    made = cli.parser(NAME, __doc__ or "", episodes=EPISODES)
    cli.add_data(made)
    cli.add_protocol(made)
    made.add_argument("--train-backbone", default=TRAINED_ON, metavar="NAME")
    made.add_argument("--backbones", type=cli.names, default=BACKBONES, metavar="A,B,…", help="test backbones")
    made.add_argument("--folds", type=cli.numbers, default=FOLDS, metavar="0,1,…")
    made.add_argument("--one-step", action="store_true", help="also the one-step decoder")
    return made


def build(args: argparse.Namespace) -> tuple[list[AnyCell], dict[str, Path]]:
    """Check data set and backbones, and describe the grid on them.

    Raises:
        UserError: see `diffup.grid.datasets.open_data` and `diffup.grid.axes.named_backbone`; or no such fold.
    """
    from diffup.data.dataset import resolve_dataset

    names = dict.fromkeys([args.train_backbone, *args.backbones])
    found = {name: named_backbone(name, weights_dir=args.weights_dir) for name in names}
    how = {"protocol": args.protocol, "lists": args.lists, "manifests": args.manifests}
    data = open_data(resolve_dataset(args.dataset), shots=max(SHOTS), **how)
    absent = [fold for fold in args.folds if fold not in range(data.folds)]
    if absent:
        raise UserError(f"--folds: {data.name} has folds 0 to {data.folds - 1}, not {absent[0]}")
    cells = grid(
        data,
        source=found[args.train_backbone],
        backbones=[found[name] for name in args.backbones],
        folds=args.folds,
        episodes=cli.episodes(args, data.name, EPISODES),
        one_step=args.one_step,
        seed=args.seed,
    )
    return cells, data.files()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the grid; returns the exit code."""
    return cli.script(NAME, options(), build, argv, print_tables)


if __name__ == "__main__":
    sys.exit(command_line(main))
