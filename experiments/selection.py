"""Choose between variants of DiffUp without looking at a novel class or at a test backbone.

    python experiments/selection.py --dataset DIR/dataset.json --weights-dir DIR --results DIR

Each variant is trained without 3 of the base classes (drawn by training seed and fold) and evaluated on these, with the
training backbone at input sizes it was not trained at: its features then differ as another backbone's would, a
*virtual* backbone. Neither the novel classes nor any other backbone is touched, so whatever is chosen here can be
reported on them.

With the defaults, for each of 4 folds: 4 training cells on ``resnet50`` and 40 evaluation cells of 300 episodes: 4
variants and the prior mean × 224 and 448 px (320 in training) × 1-shot mask, box and scribble and 5-shot mask. The
table has the mean over folds and sizes; its last column is the paired difference of all tasks to the first variant.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.printing import printed
from cluster.cli import DatasetOptions, Grid, SeedsOptions, Study, run
from cluster.options import Count, Name, NumbersOrNone
from diffup.errors import UserError
from diffup.grid.axes import PRIOR_MEAN, Backbone, evaluation_cells, training_cell
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data, open_data
from diffup.training import recipes

if TYPE_CHECKING:
    from analysis.tables.table import Table

HOLD_OUT = 3
SIZES = (224, 448)
TASKS = [(1, "mask"), (1, "box"), (1, "scribble"), (5, "mask")]
TRAINED_ON = "resnet50"
EPISODES = 300
BASE = recipes.msrc15().changed(train={"hold_out": HOLD_OUT})
# What is compared, by name; the first is the one that the others are measured against.
VARIANTS = {
    "diffup": BASE,
    "one_step": BASE.changed(model={"one_step": True}),
    "undistorted": BASE.changed(train={"virtual_backbones": False}),
    "longer": BASE.changed(train={"steps": 2 * BASE.train.steps}),
}


def grid(
    data: Data, source: Backbone, *, folds: Sequence[int], episodes: int = EPISODES, seeds: Sequence[int] = (0,)
) -> list[AnyCell]:
    """For each fold and seed: 4 training cells, and 8 evaluation cells for each variant and for the prior mean.

    Args:
        data: a data set of at least 5 classes outside of each fold.
        source: training backbone; at other input sizes also the test backbone.
        folds: which folds.
        episodes: per evaluation cell.
        seeds: of training, and of which classes are held out.
    """
    cells: list[AnyCell] = []
    for fold in folds:
        for seed in seeds:
            trained = {
                name: training_cell(data, fold, source, recipe, variant=name, seed=seed)
                for name, recipe in VARIANTS.items()
            }
            cells += trained.values()
            for size in SIZES:
                virtual = BASE.changed(input={"input_size": size}).input
                for cell in trained.values():
                    cells += evaluation_cells(
                        data, fold, [source], TASKS, config=virtual, episodes=episodes, trained=cell, held_out=HOLD_OUT
                    )
                cells += evaluation_cells(
                    data, fold, [source], TASKS, config=virtual, episodes=episodes, sample=PRIOR_MEAN,
                    held_out=HOLD_OUT, seed=seed,
                )  # fmt: skip
    return cells


def table(results: Path, keys: Sequence[str]) -> Table:
    """mIoU of each variant by task, mean over folds, seeds and input sizes; one that is not finished everywhere is "–".

    Args:
        results: the result store.
        keys: the grid's cells.

    Raises:
        UserError: none of the cells is finished.
    """
    import numpy as np

    from analysis.results import load_results, only
    from analysis.stats import Estimate, average, bootstrap
    from analysis.tables.places import METHODS
    from analysis.tables.table import Column, Number, Row, Table

    found = only(load_results(results, classes="held_out"), keys)
    sizes = {key: int(document["input"]["input_size"]) for key, document in found.documents.items()}
    cells = found.cells.assign(input_size=found.cells["key"].map(sizes))
    places = {}
    for row in cells.to_dict("records"):
        task = (int(row["shots"]), str(row["annotation"]))
        at = (int(row["fold"]), int(row["train_seed"]), int(row["input_size"]))
        places[str(row["variant"]), task, *at] = str(row["key"])
    defined = set(cells[cells["miou"].notna()]["key"])
    done = {place: key for place, key in places.items() if key in found.counts and key in defined}
    if not done:
        raise UserError(f"no cell on held-out classes is finished in {results}")
    where = sorted({place[2:] for place in places})
    scores: dict[tuple[object, ...], Estimate] = {}
    for fold, seed in dict.fromkeys(place[:2] for place in where):  # one manifest each, so all are resampled alike
        here = [place for place in done if place[2:4] == (fold, seed)]
        made = bootstrap([found.counts[done[place]] for place in here], stream=1000 * seed + fold) if here else []
        scores |= {place: score.miou for place, score in zip(here, made, strict=True)}

    def mean(variant: str, over: Sequence[tuple[int, str]]) -> Estimate | None:
        wanted = [(variant, task, *place) for task in over for place in where]
        return average([scores[place] for place in wanted]) if all(place in scores for place in wanted) else None

    def number(estimate: Estimate | None, *, difference: bool = False) -> Number | None:
        if estimate is None or np.isnan(estimate.value):
            return None
        low, high = estimate.interval()
        return Number(value=estimate.value, low=low, high=high, difference=difference)

    first, *others = [name for name in (*VARIANTS, "prior_mean") if any(place[0] == name for place in places)]
    rows, reference = [], mean(first, TASKS)
    for name in (first, *others):
        every = mean(name, TASKS)
        apart = every.minus(reference) if every is not None and reference is not None and name != first else None
        entries = [number(mean(name, [task])) for task in TASKS]
        rows.append(Row((METHODS.get(name, name),), (*entries, number(every), number(apart, difference=True))))
    headers = [*(f"{shots}-shot {annotation}" for shots, annotation in TASKS), "mean", "difference"]
    return Table(
        name="selection",
        caption=f"Variants on held-out base classes of {cells['dataset'].iloc[0]} with virtual backbones: mIoU in %.",
        labels=("Variant",),
        columns=tuple(Column((header,)) for header in headers),
        rows=tuple(rows),
    )


@dataclass(frozen=True, kw_only=True)
class Selection(DatasetOptions, SeedsOptions):
    """Options of this grid."""

    episodes: Count = EPISODES
    train_backbone: Name = TRAINED_ON
    """trained on, and tested at other input sizes"""
    folds: NumbersOrNone = None
    """which folds (default: all)"""


def build(asked: Selection) -> Grid:
    """The grid on the data set that is asked for."""
    (source,) = asked.find_backbones([asked.train_backbone]).values()
    data = open_data(asked.dataset, shots=max(shots for shots, _ in TASKS))
    folds = data.chosen_folds(asked.folds)
    return grid(data, source, folds=folds, episodes=asked.episodes, seeds=asked.training_seeds), data.files()


STUDY = Study(name="selection", description=__doc__, options=Selection, build=build, report=printed(table))

if __name__ == "__main__":
    sys.exit(run(STUDY))
