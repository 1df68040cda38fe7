"""All that a paper asks, on a data set of your own: all folds, shots, annotations and backbones, from one checkpoint a
fold.

    python experiments/dataset_grid.py --dataset DIR/dataset.json --weights-dir DIR --results DIR
    python -m analysis.paper --results DIR --out DIR/paper

With the defaults, on four folds: 8 training cells (DiffUp on ``resnet50``, and on ``deit_tiny_patch16_224`` as the
re-trained reference) and 332 evaluation cells: DiffUp, prior mean and prototype on three backbones × masks with 1, 2, 5
and 10 shots, boxes and scribbles with 1 and 5; the re-trained reference; and the 1-shot mask with other samplers
(`STEPS`). 1-shot masks have 1000 episodes, the rest half as many, all on one manifest a fold. ``--companion`` names an
open_clip model that reads text: then 0 shots with text and masks with text are added.

About an hour on 2 cores for 500 images; it can be stopped and run again at any time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cluster import cli
from diffup.config import SampleConfig
from diffup.errors import command_line
from diffup.grid.axes import PRIOR_MEAN, PROTOTYPE, Backbone, evaluation_cells, named_backbone, training_cell, unique
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data, open_data
from diffup.grid.variants import resolve
from diffup.training.recipes import msrc15
from experiments.report import print_tables

NAME = "dataset_grid"
TRAINED_ON = "resnet50"
BACKBONES = ("resnet50", "deit_tiny_patch16_224", "mobilenetv2_100")
RETRAINED = ("deit_tiny_patch16_224",)
EPISODES = 1000
ONE_SHOT = (1, "mask")
TASKS = (*((shots, "mask") for shots in (2, 5, 10)), *((k, kind) for kind in ("box", "scribble") for k in (1, 5)))
TEXT_TASKS = ((0, "text"), (1, "mask+text"))
STEPS = ("steps_1", "steps_4", "steps_8", "from_prior", "full_strength")
RECIPE = msrc15()


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
        training = partial(
            training_cell, data, fold, config=RECIPE.input, companion=companion, model=RECIPE.model, train=RECIPE.train
        )
        evaluate = partial(evaluation_cells, data, fold, config=RECIPE.input, companion=companion)
        full, half = partial(evaluate, episodes=episodes), partial(evaluate, episodes=max(1, episodes // 2))
        for seed in seeds:
            trained = training(source, seed=seed)
            cells += [trained, *full(backbones, [ONE_SHOT], trained=trained), *half(backbones, tasks, trained=trained)]
            for variant in STEPS:
                _, _, sample = resolve(variant, model=RECIPE.model, train=RECIPE.train, sample=SampleConfig())
                cells += half(backbones[:2], [ONE_SHOT], trained=trained, variant=variant, sample=sample)
            for backbone in retrained:
                again = training(backbone, seed=seed)
                cells += [again, *full([backbone], [ONE_SHOT], trained=again)]
        cells += [*full(backbones, [ONE_SHOT], sample=PRIOR_MEAN), *half(backbones, tasks, sample=PRIOR_MEAN)]
        cells += [*full(backbones, [ONE_SHOT], sample=PROTOTYPE), *half(backbones, TASKS, sample=PROTOTYPE)]
    return unique(cells)


def options() -> argparse.ArgumentParser:
    """The script's command line."""
    made = cli.parser(NAME, __doc__ or "", episodes=EPISODES)
    cli.add_data(made)
    cli.add_protocol(made)
    made.add_argument("--train-backbone", default=TRAINED_ON, metavar="NAME")
    made.add_argument("--backbones", type=cli.names, default=BACKBONES, metavar="A,B,…", help="test backbones")
    made.add_argument(
        "--retrained", type=cli.names, default=RETRAINED, metavar="A,B,…", help="also trained on; '' for none"
    )
    made.add_argument("--companion", default="", metavar="NAME", help="open_clip model that reads text (none)")
    made.add_argument("--seeds", type=cli.numbers, default=None, metavar="0,1,…", help="training seeds; else --seed")
    return made


def build(args: argparse.Namespace) -> tuple[list[AnyCell], dict[str, Path]]:
    """Check data set and backbones, and describe the grid on them.

    Raises:
        UserError: see `diffup.grid.datasets.open_data` and `diffup.grid.axes.named_backbone`.
    """
    from diffup.data.dataset import resolve_dataset

    companions = [args.companion] if args.companion else []
    names = dict.fromkeys([args.train_backbone, *args.backbones, *args.retrained, *companions])
    found = {name: named_backbone(name, weights_dir=args.weights_dir) for name in names}
    how = {"protocol": args.protocol, "lists": args.lists, "manifests": args.manifests}
    data = open_data(resolve_dataset(args.dataset), shots=max(shots for shots, _ in TASKS), **how)
    cells = grid(
        data,
        source=found[args.train_backbone],
        backbones=[found[name] for name in args.backbones],
        retrained=[found[name] for name in args.retrained],
        companion=found.get(args.companion),
        episodes=cli.episodes(args, data.name, EPISODES),
        seeds=args.seeds or (args.seed,),
    )
    return cells, data.files()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the grid; returns the exit code."""
    return cli.script(NAME, options(), build, argv, print_tables)


if __name__ == "__main__":
    sys.exit(command_line(main))
