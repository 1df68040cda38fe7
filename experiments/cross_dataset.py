"""From one data set to another: trained on folds of the source, tested on classes of the target that it never saw.

    python experiments/cross_dataset.py --source coco20i --target pascal5i --weights-dir DIR --results DIR

With COCO-20i as the source and Pascal VOC as the target this is the field's COCO → Pascal: fold f tests the VOC classes
that are not among fold f's training classes (6, 4, 6 and 4 of them, as in the literature), and the checkpoints are
those of ``full_grid.py`` where both write to the same ``--results``. With the defaults 4 training cells and 48
evaluation cells of 1000 episodes: 4 folds × 3 backbones × {1, 5} masks × {DiffUp, prior mean}. Classes are told apart
by their names (`diffup.data.class_names`: ``aeroplane`` is ``airplane``).

A class that the training has seen is refused, also where ``--test-classes`` names it; ``--allow-seen`` lets it in by
its name, and the cells say so for good: such figures are not few-shot segmentation.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from cluster import cli
from diffup.data.class_names import overlap
from diffup.errors import UserError, command_line
from diffup.grid.axes import PRIOR_MEAN, Backbone, evaluation_cells, named_backbone, tasks, training_cell
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data, open_data
from diffup.training import recipes

NAME = "cross_dataset"
SHOTS = (1, 5)
TRAINED_ON = "resnet50"
BACKBONES = ("resnet50", "mobilenetv2_100", "deit_tiny_patch16_224")
EPISODES = 1000
RECIPES = {"pascal5i": recipes.pascal5i, "coco20i": recipes.coco20i}
SMALL = recipes.msrc15  # for data sets that have no recipe of their own
UNSEEN, ALL = "unseen", "all"


def tested_classes(
    trained: Sequence[str], target: Sequence[str], asked: str = UNSEEN, allowed: Sequence[str] = ()
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The classes of the target to test, and the names of those among them that were trained on.

    Args:
        trained: names of the training classes.
        target: names of all classes of the target.
        asked: ``"unseen"``, ``"all"``, or names with commas between.
        allowed: names that may be tested although they were trained on.

    Returns:
        0-based classes of the target, ascending, and names.

    Raises:
        UserError: an unknown name, a class that was trained on and is not allowed, or none left.
    """
    known = set(overlap(trained, target))
    names = [name for name in target if name not in known or name in allowed]
    if asked != UNSEEN:
        names = list(target) if asked == ALL else list(dict.fromkeys(cli.names(asked)))
    for option, given in (("--test-classes", names), ("--allow-seen", allowed)):
        if strange := [name for name in given if name not in target]:
            raise UserError(f"{option}: the target has no class {strange[0]!r}; its classes are {', '.join(target)}")
    if refused := [name for name in names if name in known and name not in allowed]:
        raise UserError(
            f"{', '.join(refused)}: tested, but trained on. That is not few-shot segmentation. Leave them out "
            f"(--test-classes unseen), or say so by name: --allow-seen {','.join(refused)}"
        )
    if not names:
        raise UserError("no class of the target is left to test: the training has seen all of them")
    return tuple(sorted(target.index(name) for name in names)), tuple(sorted(known & set(names)))


def grid(
    source: Data,
    target: Data,
    tested: Mapping[int, tuple[tuple[int, ...], tuple[str, ...]]],
    *,
    backbone: Backbone,
    backbones: Sequence[Backbone],
    episodes: int = EPISODES,
    seed: int = 0,
) -> list[AnyCell]:
    """A training cell on the source and its evaluation cells on the target, a fold.

    Args:
        source, target: data sets.
        tested: what `tested_classes` gives, by fold of the source.
        backbone: of training.
        backbones: of the tests.
        episodes: per evaluation cell.
        seed: of training.
    """
    recipe = RECIPES.get(source.name, SMALL)()
    cells: list[AnyCell] = []
    for fold, (classes, seen) in tested.items():
        trained = training_cell(
            source, fold, backbone, config=recipe.input, model=recipe.model, train=recipe.train, seed=seed
        )
        evaluate = partial(
            evaluation_cells, target, fold, backbones, tasks(SHOTS, ("mask",)), config=recipe.input, episodes=episodes,
            source=source.name, tested=classes, seen=seen,
        )  # fmt: skip
        cells += [trained, *evaluate(trained=trained), *evaluate(sample=PRIOR_MEAN)]
    return cells


def options() -> argparse.ArgumentParser:
    """The script's command line."""
    made = cli.parser(NAME, __doc__ or "", episodes=EPISODES)
    made.add_argument("--source", required=True, metavar="PATH", help="trained on: a dataset.json, or a known name")
    made.add_argument("--target", required=True, metavar="PATH", help="tested on: a dataset.json, or a known name")
    made.add_argument("--weights-dir", type=cli.folder, default=None, metavar="DIR", help="folder of backbone weights")
    made.add_argument("--protocol", default="paired", metavar="NAME", help="of the test; see diffup.episodes.protocols")
    made.add_argument("--folds", type=cli.numbers, default=None, metavar="0,1,…", help="of the source; default: all")
    made.add_argument(
        "--test-classes",
        default=UNSEEN,
        metavar="unseen|all|A,B",
        help="of the target; default: unseen ones",
    )
    made.add_argument("--allow-seen", type=cli.names, default=(), metavar="A,B", help="test these though trained on")
    made.add_argument("--train-backbone", default=TRAINED_ON, metavar="NAME")
    made.add_argument("--backbones", type=cli.names, default=BACKBONES, metavar="A,B,…", help="test backbones")
    return made


def build(args: argparse.Namespace) -> tuple[list[AnyCell], dict[str, Path]]:
    """Check both data sets, their classes and the backbones, and describe the grid.

    Raises:
        UserError: anything wrong with them; see `tested_classes`.
    """
    from diffup.data.dataset import open_dataset, resolve_dataset
    from diffup.episodes.protocols import get_protocol

    paths = [resolve_dataset(name) for name in (args.source, args.target)]
    trained_on, tested_on = map(open_dataset, paths)
    if get_protocol(args.protocol).needs_lists(tested_on.name):
        raise UserError(f"protocol {args.protocol} has lists of {tested_on.name}'s own folds only; take another")
    source = open_data(paths[0], shots=1, dataset=trained_on)
    # Its own folds don't matter here.
    target = open_data(paths[1], shots=0, protocol=args.protocol, dataset=tested_on)
    if source.name == target.name:
        raise UserError(f"source and target are both called {source.name!r}; mini_grid.py is for a single data set")
    folds = range(source.folds) if args.folds is None else args.folds
    tested = {}
    for fold in folds:
        base = [trained_on.classes[c] for c in trained_on.base_classes(fold)]
        try:
            tested[fold] = tested_classes(base, tested_on.classes, args.test_classes, args.allow_seen)
        except UserError as error:
            raise UserError(f"fold {fold} of {source.name} → {target.name}: {error}") from error
        for c in tested[fold][0]:
            images = len(tested_on.eligible(c, get_protocol(args.protocol)))
            if images <= max(SHOTS):
                raise UserError(
                    f"class {tested_on.classes[c]!r} of {target.name} has {images} eligible images, but {max(SHOTS)} "
                    f"shots need {max(SHOTS) + 1}; name the classes to test with --test-classes"
                )
    found = {
        name: named_backbone(name, weights_dir=args.weights_dir)
        for name in dict.fromkeys([args.train_backbone, *args.backbones])
    }
    cells = grid(
        source, target, tested, backbone=found[args.train_backbone],
        backbones=[found[name] for name in args.backbones], episodes=args.episodes, seed=args.seed,
    )  # fmt: skip
    return cells, source.files() | target.files()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the grid; returns the exit code."""
    from experiments.report import print_tables

    return cli.script(NAME, options(), build, argv, print_tables)


if __name__ == "__main__":
    sys.exit(command_line(main))
