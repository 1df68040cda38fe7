"""What training gains over the best map without training, on backbones that it has never seen.

    python experiments/unseen_backbones.py --dataset DIR/dataset.json --weights-dir DIR --results DIR

For each fold DiffUp is trained on one backbone, from absolute evidence (`diffup.training.recipes.photographs`) and, as
the variant ``stretched``, from maps stretched to [0, 1]; each checkpoint is tested on all backbones beside the
training-free methods, and once more with superpixels (``snap``), all on one manifest a fold. With the defaults, four
folds and five backbones: 16 training and 1300 evaluation cells; 1-shot masks have 500 episodes, the other tasks half as
many. It can be stopped and run again at any time.

Any other variant of `CHANGES` can be asked for; an ablation of everything on two folds, and training on an upgrade:

    … --folds 0,1 --seeds 0,1 --sources resnet50 --variants all --select shots=1,annotation=mask
    … --sources deit_tiny_patch16_224 --backbones deit_tiny_patch16_224 --variants diffup

``--more DIR/dataset_more.json`` names a data set of the same classes and folds with more images: the variant ``more``
is trained on these, half as long again (`LONGER`), and tested on the same episodes as all else.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import diffup.checkout  # noqa: F401
from analysis.printing import print_tables
from cluster.cli import DatasetOptions, Grid, ProtocolOptions, Study, run
from cluster.options import CountOrNone, Names, Numbers, NumbersOrAll, PathOrName
from diffup.data.dataset import open_dataset, resolve_dataset
from diffup.errors import UserError
from diffup.grid.axes import RIVALS, Backbone, evaluation_cells, training_cell, unique
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data, open_data
from diffup.grid.variants import VARIANTS, Change, changes_training, effective
from diffup.training.recipes import photographs
from experiments.training_free import BACKBONES, EPISODES, ONE_SHOT

SOURCES = ("resnet50", "tf_efficientnet_lite0")
OTHER_TASKS = ((5, "mask"), (1, "box"), (1, "scribble"), (5, "scribble"))
RECIPE = photographs()
STRETCHED: Change = {
    "model": {"base": "prior", "bound": 1.5, "self_conditioning": True},
    "train": {"balance_sizes": False},
    "input": {"bank": 0},
}
LONGER: Change = {"train": {"steps": 1200, "draws": 600}}
CHANGES: dict[str, Change] = {
    **effective(VARIANTS, RECIPE),
    "stretched": STRETCHED,
    "unbalanced": {"train": {"balance_sizes": False}},
    "longer": LONGER,
    "parts": {"train": {"parts": 0.3}},
    "snap": {"sample": {"snap": True}},
    "no_bank": {"input": {"bank": 0}},
    "bank_5": {"input": {"bank": 5}},
    "bank_15": {"input": {"bank": 15}},
}
MORE, MORE_SNAP = "more", "more_snap"
DEFAULT = ("diffup", "snap", "stretched")


def grid(
    data: Data,
    *,
    sources: Sequence[Backbone],
    backbones: Sequence[Backbone],
    folds: Sequence[int] = (),
    seeds: Sequence[int] = (0,),
    episodes: int = EPISODES,
    variants: Sequence[str] = DEFAULT,
    more: Data | None = None,
) -> list[AnyCell]:
    """Training cells, their evaluation on all backbones, and the rivals.

    Args:
        data: with its folds.
        sources: backbones that are trained on, each by itself.
        backbones: of the tests.
        folds: which; by default all.
        seeds: of the trainings; with the first all tasks are evaluated, with others 1-shot masks.
        episodes: of the 1-shot mask; half as many of the other tasks.
        variants: names in `CHANGES`; one that changes neither model nor training is DiffUp's checkpoint used otherwise.
        more: a data set of the same classes and folds, to train the variant ``more`` on.
    """
    cells: list[AnyCell] = []
    for fold in folds or range(data.folds):
        made = partial(evaluation_cells, data, fold, backbones)
        for name, (sample, reads_bank) in RIVALS.items():
            config = RECIPE.input if reads_bank else replace(RECIPE.input, bank=0)
            rival = partial(made, config=config, sample=sample, variant=name)
            cells += [*rival([ONE_SHOT], episodes=episodes), *rival(OTHER_TASKS, episodes=max(1, episodes // 2))]
        for source in sources:
            for variant in variants:
                change = CHANGES[variant]
                anew = changes_training(change)
                recipe = RECIPE.changed(**change)
                for seed in seeds:
                    learned = recipe if anew else RECIPE
                    name = variant if anew else "diffup"
                    trained = training_cell(data, fold, source, learned, variant=name, seed=seed)
                    tested = partial(made, config=recipe.input, trained=trained, sample=recipe.sample, variant=variant)
                    cells += [trained, *tested([ONE_SHOT], episodes=episodes)]
                    if seed == seeds[0]:
                        cells += tested(OTHER_TASKS, episodes=max(1, episodes // 2))
            if more is None:
                continue
            for seed in seeds:
                trained = training_cell(more, fold, source, RECIPE.changed(**LONGER), variant=MORE, seed=seed)
                tested = partial(made, config=RECIPE.input, trained=trained)
                cells += [trained, *tested([ONE_SHOT], episodes=episodes, sample=RECIPE.sample, variant=MORE)]
                snap = replace(RECIPE.sample, snap=True)
                cells += tested([ONE_SHOT], episodes=episodes, sample=snap, variant=MORE_SNAP)
                if seed == seeds[0]:
                    cells += tested(OTHER_TASKS, episodes=max(1, episodes // 2), sample=RECIPE.sample, variant=MORE)
    return unique(cells)


@dataclass(frozen=True, kw_only=True)
class UnseenBackbones(DatasetOptions, ProtocolOptions):
    """Options of this study."""

    episodes: CountOrNone = None
    """per cell (default: 500; with another protocol than paired as many as it has)"""
    sources: Names = SOURCES
    """backbones that are trained on"""
    backbones: Names = BACKBONES
    """tested"""
    folds: NumbersOrAll = ()
    """which (default: all)"""
    seeds: Numbers = (0,)
    """of the trainings"""
    variants: Names = DEFAULT
    """of DiffUp, or all"""
    more: PathOrName = ""
    """a dataset.json of the same classes and folds, with more images to train on"""

    def __post_init__(self) -> None:
        if unknown := set(self.variants) - {*CHANGES, "all"}:
            raise UserError(f"--variants: there is no {min(unknown)!r}; there are all, {', '.join(CHANGES)}")


def more_data(path: str, tested: str, protocol: str) -> Data:
    """A data set that is trained on in place of the one that is tested on.

    Raises:
        UserError: its folds leave out other classes, so that tested ones would be trained on.
    """
    known, other = (open_dataset(resolve_dataset(each)) for each in (tested, path))
    if (known.classes, known.folds) != (other.classes, other.folds):
        raise UserError(
            f"--more {path}: its classes and folds are not those of {tested}: what is tested must be left out"
        )
    if known.name == other.name:
        raise UserError(f"--more {path}: it is called {other.name!r}, as the data set that is tested on; rename it")
    return open_data(path, shots=1, protocol=protocol, dataset=other)


def build(asked: UnseenBackbones) -> Grid:
    """The study on the data set that is asked for."""
    found = asked.find_backbones((*asked.sources, *asked.backbones))
    data = asked.open(asked.dataset, shots=max(shots for shots, _ in OTHER_TASKS))
    more = more_data(asked.more, asked.dataset, asked.protocol) if asked.more else None
    cells = grid(
        data,
        sources=[found[name] for name in asked.sources],
        backbones=[found[name] for name in asked.backbones],
        folds=asked.folds,
        seeds=asked.seeds,
        episodes=asked.episodes_of(data.name, EPISODES),
        variants=tuple(CHANGES) if "all" in asked.variants else asked.variants,
        more=more,
    )
    return cells, data.files() | (more.files() if more else {})


STUDY = Study(name="unseen_backbones", description=__doc__, options=UnseenBackbones, build=build, report=print_tables)

if __name__ == "__main__":
    sys.exit(run(STUDY))
