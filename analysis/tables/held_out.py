"""Tables of figures on held-out base classes: variants of DiffUp compared, and searches over training configurations.

They are for choosing, never for claims: no novel class is looked at.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.results import load_results, only
from analysis.tables.places import METHODS, Task, grouped
from analysis.tables.table import Column, Number, Row, Table, defined, to_number
from diffup.errors import UserError
from diffup.evaluation.stats import Estimate, average, bootstrap


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


def search_tables(results: Path, keys: Sequence[str]) -> list[Table]:
    """A table for each search of a result store that has one of these configurations.

    Args:
        results: the result store; its ``searches/*.json`` are read.
        keys: of cells, in the order that numbers the configurations.

    Raises:
        UserError: there is none, or a record can't be read.
    """
    tables = []
    for path in sorted((results / "searches").glob("*.json")):
        try:
            record = json.loads(path.read_bytes())
            entries = {key: record["configurations"][key] for key in keys if key in record["configurations"]}
            if entries:
                tables.append(_table(path, record, entries))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} can't be read: {error!r}") from error
    if not tables:
        raise UserError(f"no search of these configurations has begun in {results}")
    return tables


def _table(path: Path, record: dict[str, Any], entries: dict[str, Any]) -> Table:
    milestones = record["rules"]["milestones"]
    names = list(dict.fromkeys(name for entry in entries.values() for name in entry["values"]))
    finished = [key for key, entry in entries.items() if entry["ended"] == "finished"]
    winner = max(finished, key=lambda key: _last(entries[key])["miou"], default=None)
    rows = []
    for number, (key, entry) in enumerate(entries.items()):
        scores = {score["steps"]: Number(value=score["miou"], best=key == winner) for score in entry["scores"]}
        values = [_short(entry["values"].get(name, "")) for name in names]
        how = (entry["ended"] or "not ended") + (" (best)" if key == winner else "")
        row = Row((str(number),), (*values, *(scores.get(steps) for steps in milestones), how))
        rows.append((len(scores), _last(entry)["miou"], row))
    rows.sort(key=lambda row: row[:2], reverse=True)
    heads = [*names, *(f"{steps} steps" for steps in milestones), "ended"]
    return Table(
        name="search",
        caption=f"{path.stem}: mIoU in % on held-out base classes: {', '.join(record['classes'])}.",
        labels=("No.",),
        columns=tuple(Column((head,)) for head in heads),
        rows=tuple(row for *_, row in rows),
        notes=(*_notes(entries, milestones[-1], winner), f"record: {path}"),
    )


def _notes(entries: dict[str, Any], steps: int, winner: str | None) -> list[str]:
    """What was saved, the best configuration to paste into a recipe, and what its score is worth."""
    full, spent = steps * len(entries), sum(_last(entry)["steps"] for entry in entries.values())
    scores = [score for entry in entries.values() for score in entry["scores"]]
    train, validate = (sum(score[name] for score in scores) for name in ("train_seconds", "validate_seconds"))
    left = sum(entry["ended"] is None for entry in entries.values())
    saved = f"{left} not ended" if left else f"{100 * (1 - spent / full):.0f} % saved by stopping"
    notes = [f"steps: {spent} of {full}, {saved}; {train:.0f} s of training, {validate:.0f} s of validation"]
    if winner is not None:
        best = entries[winner]
        notes += [
            f"best: {best['values'] or 'the recipe itself'}",
            f"{_last(best)['miou']:.1f} % is the highest of {len(entries)} noisy scores, so it is optimistic: train "
            "the chosen configuration without hold_out, and report that on novel classes",
        ]
    return notes


def _last(entry: dict[str, Any]) -> dict[str, Any]:
    return entry["scores"][-1] if entry["scores"] else {"steps": 0, "miou": 0.0}


def _short(value: Any) -> str:
    return " ".join(map(_short, value)) if isinstance(value, list) else f"{value:g}" if value != "" else ""
