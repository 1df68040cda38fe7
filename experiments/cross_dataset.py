"""From one data set to another: trained on folds of the source, tested on classes of the target that it never saw.

    python experiments/cross_dataset.py --source coco20i --target pascal5i --weights-dir DIR --results DIR

With COCO-20i as the source and Pascal VOC as the target this is the field's COCO → Pascal: fold f tests the VOC classes
that are not among fold f's training classes (6, 4, 6 and 4 of them, as in the literature), and the checkpoints are
those of ``full_grid.py`` where both write to the same ``--results``. With the defaults 4 training cells and 72
evaluation cells of 1000 episodes: 4 folds × 3 backbones × {1, 5} masks × {DiffUp, the best map without training, prior
mean}. Classes are told apart by their names (`diffup.data.class_names`: ``aeroplane`` is ``airplane``).

The bank is of the target's images: those of the classes that aren't tested, whose labels say where objects are. With
``--bank 0`` nothing of the target is read but the episodes, and DiffUp, which was trained beside a bank, goes without.

A class that the training has seen is refused, also where ``--test-classes`` names it; ``--allow-seen`` lets it in by
its name, and the cells say so for good: such figures are not few-shot segmentation.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import diffup.checkout  # noqa: F401
from analysis.printing import print_tables
from cluster.cli import Grid, GridOptions, Study, run
from cluster.options import Count, Name, Names, NumbersOrNone, PathOrName, option
from cluster.options import names as split
from diffup.data.class_names import overlap
from diffup.errors import UserError
from diffup.grid.axes import EVIDENCE_OBJECTS, PRIOR_MEAN, Backbone, evaluation_cells, tasks, training_cell
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data, open_data
from diffup.training import recipes

SHOTS = (1, 5)
TRAINED_ON = "resnet50"
BACKBONES = ("resnet50", "mobilenetv2_100", "deit_tiny_patch16_224")
EPISODES, BANK = 1000, 60
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
        names = list(target) if asked == ALL else list(dict.fromkeys(split(asked)))
    for where, given in (("--test-classes", names), ("--allow-seen", allowed)):
        if strange := [name for name in given if name not in target]:
            raise UserError(f"{where}: the target has no class {strange[0]!r}; its classes are {', '.join(target)}")
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
    bank: int = BANK,
    seed: int = 0,
) -> list[AnyCell]:
    """A training cell on the source and its evaluation cells on the target, a fold.

    Args:
        source, target: data sets.
        tested: what `tested_classes` gives, by fold of the source.
        backbone: of training.
        backbones: of the tests.
        episodes: per evaluation cell.
        bank: images of the target beside an episode; 0: none.
        seed: of training.
    """
    recipe = recipes.BENCHMARKS.get(source.name, recipes.photographs())
    config = recipe.changed(input={"bank": bank}).input
    cells: list[AnyCell] = []
    for fold, (classes, seen) in tested.items():
        trained = training_cell(source, fold, backbone, recipe, seed=seed)
        evaluate = partial(
            evaluation_cells, target, fold, backbones, tasks(SHOTS, ("mask",)), config=config, episodes=episodes,
            source=source.name, tested=classes, seen=seen,
        )  # fmt: skip
        cells += [trained, *evaluate(trained=trained), *evaluate(sample=PRIOR_MEAN)]
        if bank:
            cells += evaluate(sample=EVIDENCE_OBJECTS, variant="evidence_objects")
    return cells


@dataclass(frozen=True, kw_only=True)
class CrossDataset(GridOptions):
    """Options of this grid."""

    source: PathOrName
    """trained on: a dataset.json, or a known name"""
    target: PathOrName
    """tested on: a dataset.json, or a known name"""
    episodes: Count = EPISODES
    protocol: Name = "paired"
    """of the test; see diffup protocols list"""
    folds: NumbersOrNone = None
    """of the source (default: all)"""
    test_classes: Annotated[str, *option("unseen|all|A,B", str)] = UNSEEN
    """of the target"""
    allow_seen: Annotated[tuple[str, ...], *option("A,B", split, default=False)] = ()
    """test these though trained on"""
    bank: int = BANK
    """images of the target beside an episode; 0: none"""
    train_backbone: Name = TRAINED_ON
    """trained on"""
    backbones: Names = BACKBONES
    """tested"""


def build(asked: CrossDataset) -> Grid:
    """Check both data sets and their classes, and describe the grid.

    Raises:
        UserError: anything wrong with them; see `tested_classes`.
    """
    from diffup.data.dataset import open_dataset, resolve_dataset
    from diffup.episodes.protocols import get_protocol

    paths = [resolve_dataset(name) for name in (asked.source, asked.target)]
    trained_on, tested_on = map(open_dataset, paths)
    protocol = get_protocol(asked.protocol)
    if protocol.needs_lists(tested_on.name):
        raise UserError(f"protocol {asked.protocol} has lists of {tested_on.name}'s own folds only; take another")
    source = open_data(paths[0], shots=1, dataset=trained_on)
    # Its own folds don't matter here.
    target = open_data(paths[1], shots=0, protocol=asked.protocol, dataset=tested_on)
    if source.name == target.name:
        raise UserError(f"source and target are both called {source.name!r}; mini_grid.py is for a single data set")
    tested = {}
    for fold in range(source.folds) if asked.folds is None else asked.folds:
        base = [trained_on.classes[c] for c in trained_on.base_classes(fold)]
        try:
            tested[fold] = tested_classes(base, tested_on.classes, asked.test_classes, asked.allow_seen)
        except UserError as error:
            raise UserError(f"fold {fold} of {source.name} → {target.name}: {error}") from error
        for c in tested[fold][0]:
            images = len(tested_on.eligible(c, protocol))
            if images <= max(SHOTS):
                raise UserError(
                    f"class {tested_on.classes[c]!r} of {target.name} has {images} eligible images, but {max(SHOTS)} "
                    f"shots need {max(SHOTS) + 1}; name the classes to test with --test-classes"
                )
    found = asked.find_backbones([asked.train_backbone, *asked.backbones])
    cells = grid(
        source, target, tested, backbone=found[asked.train_backbone],
        backbones=[found[name] for name in asked.backbones], episodes=asked.episodes, bank=asked.bank,
        seed=asked.seed,
    )  # fmt: skip
    return cells, source.files() | target.files()


STUDY = Study(name="cross_dataset", description=__doc__, options=CrossDataset, build=build, report=print_tables)

if __name__ == "__main__":
    sys.exit(run(STUDY))
