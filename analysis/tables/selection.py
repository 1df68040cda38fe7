"""Variants compared on held-out base classes, for choosing between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis.results import load_results, only
from analysis.stats import Estimate, average, bootstrap
from analysis.tables.places import METHODS, Task, grouped
from analysis.tables.table import Column, Number, Row, Table, defined, to_number
from diffup.errors import UserError


def selection_table(results: Path, keys: Sequence[str], *, tasks: Sequence[Task], order: Sequence[str]) -> Table:
    """mIoU of each variant by task, mean over folds, seeds and input sizes; one that is not finished everywhere is "–".

    The last column is the paired difference of all tasks to the first variant.

    Args:
        results: the result store.
        keys: the grid's cells.
        tasks: columns.
        order: of the variants.

    Raises:
        UserError: none of the cells is finished.
    """
    found = only(load_results(results, classes="held_out"), keys)
    places, done = set(), dict[tuple[str, Task, tuple[int, int, int]], str]()
    for row in found.cells.to_dict("records"):
        size = int(found.documents[row["key"]]["input"]["input_size"])
        place = (int(row["fold"]), int(row["train_seed"]), size)
        places.add(place)
        if row["key"] in found.counts and row["miou"] == row["miou"]:
            done[row["variant"], Task(int(row["shots"]), row["annotation"]), place] = row["key"]
    if not done:
        raise UserError(f"no cell on held-out classes is finished in {results}")
    scores = dict[str, Estimate]()
    # A fold and seed has one manifest, so all of its cells are resampled alike.
    for (fold, seed), members in grouped((place[:2], key) for (_, _, place), key in done.items()).items():
        made = bootstrap([found.counts[key] for key in members], stream=1000 * seed + fold)
        scores |= {key: score.miou for key, score in zip(members, made, strict=True)}

    def mean(variant: str, over: Sequence[Task]) -> Estimate | None:
        wanted = [done.get((variant, task, place)) for task in over for place in sorted(places)]
        return average([scores[key] for key in wanted if key]) if all(wanted) else None

    def number(estimate: Estimate | None, *, difference: bool = False) -> Number | None:
        return None if estimate is None else defined(to_number([estimate], (), 0, difference=difference))

    first, *others = [name for name in order if (found.cells["variant"] == name).any()]
    rows, reference = [], mean(first, tasks)
    for name in (first, *others):
        every = mean(name, tasks)
        apart = every.minus(reference) if every is not None and reference is not None and name != first else None
        entries = [number(mean(name, [task])) for task in tasks]
        rows.append(Row((METHODS.get(name, name),), (*entries, number(every), number(apart, difference=True))))
    return Table(
        name="selection",
        caption=f"Variants on held-out base classes of {found.cells['dataset'].iloc[0]} with virtual backbones: "
        "mIoU in %.",
        labels=("Variant",),
        columns=tuple(Column((header,)) for header in (*map(str, tasks), "mean", "difference")),
        rows=tuple(rows),
    )
