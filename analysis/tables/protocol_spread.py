"""What protocols do to one checkpoint's figures, and what the best of several episode seeds adds.

Episodes of two protocols are not the same, so these differences are not paired: each side is resampled by itself, and
since both ask many of the same images, the intervals are rather too wide than too narrow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from analysis.command import warn
from analysis.results import load_results
from analysis.tables import captions
from analysis.tables.places import MethodKey, Task, grouped
from analysis.tables.scores import Study, studies
from analysis.tables.table import Column, Entry, Row, Table, defined, to_number
from diffup.errors import UserError
from diffup.evaluation.stats import RESAMPLES, Estimate

REFERENCE = "paired"


def spread_tables(results: Path, *, keys: Iterable[str] | None = None, resamples: int = RESAMPLES) -> list[Table]:
    """The table of each data set that was evaluated under several protocols; warnings go to stderr.

    Raises:
        UserError: there is no such store, or no such data set in it.
    """
    store = load_results(results, keys=keys)
    warn(store.warnings)
    # Each protocol has its own seed, so that resamples are independent.
    found = [replace(s, seed=i, scores={}) for i, s in enumerate(studies(store, resamples=resamples))]
    by_data = grouped((tuple(s.cells[["dataset", "dataset_hash", "trained_dataset"]].iloc[0]), s) for s in found)
    tables = [_table(parts) for parts in by_data.values() if len(parts) > 1]
    if not tables:
        raise UserError(f"{results} holds no data set under several protocols; run experiments/protocol_study.py")
    return tables


def _table(parts: Sequence[Study]) -> Table:
    """Protocols × methods by tasks, of one data set."""
    names = {str(study.cells["protocol"].iloc[0]): study for study in reversed(parts)}
    base = names.get(REFERENCE, parts[0])
    reference = str(base.cells["protocol"].iloc[0])
    tasks = [task for task in base.folds_by_task if task.annotation == "mask"]
    rows = []
    by_seed = {id(study): _by_seed(study) for study in parts}
    ordered = sorted(parts, key=lambda study: (study is not base, study.cells["protocol"].iloc[0]))
    for method in base.methods:
        for study in ordered:
            seeds = by_seed[id(study)]
            entries: list[Entry] = []
            for task in tasks:
                gap = None if study is base else _difference(study, base, method, task)
                entries += [study.number(method, task), gap, _best(seeds, method, task)]
            backbone, name = captions.labels(base, method)
            first = study.cells.iloc[0]
            label = f"{first['protocol']} ({first['protocol_hash']})"
            rows.append(Row((f"{name} on {backbone}", label, str(len(seeds))), tuple(entries)))
    data = captions.data_name(base)
    notes = [note for note in captions.notes(base, rows) if not note.startswith("Differences are paired")]
    return Table(
        name=f"protocols-{data}",
        caption=f"One checkpoint a fold on {data} under several protocols: mIoU in %, mask annotation.",
        labels=("Method", "Protocol", "Seeds"),
        columns=tuple(
            Column((f"{task.shots}-shot", name)) for task in tasks for name in ("mIoU", f"− {reference}", "best seed")
        ),
        rows=tuple(rows),
        notes=(
            f"Episode seeds of a protocol are pooled; best seed: the highest of their figures. The episodes of two "
            f"protocols differ, so differences to {reference} are not paired; * marks intervals that exclude 0.",
            *(note if not note.startswith("Protocol ") else f"Of {reference}: {note}" for note in notes),
        ),
    )


def _by_seed(study: Study) -> list[Study]:
    """The study of each episode seed."""
    parts = study.cells.groupby("episode_seed", sort=True)
    return [replace(study, cells=cells.reset_index(drop=True), scores={}) for _, cells in parts]


def _best(seeds: Sequence[Study], method: MethodKey, task: Task) -> Entry:
    """The figure of the best of several episode seeds; None for a single seed, or if one is missing."""
    numbers = [defined(study.number(method, task)) for study in seeds]
    known = [number for number in numbers if number is not None]
    return max(known, key=lambda number: number.value) if len(known) == len(seeds) > 1 else None


def _difference(ours: Study, theirs: Study, method: MethodKey, task: Task) -> Entry:
    one, two = ours.estimates(method, task), theirs.estimates(method, task)
    if not one or len(one) != len(two):
        return None
    apart = [
        Estimate(a.value - b.value, a.draws - b.draws, "unpaired", min(a.freedom, b.freedom)) for a, b in zip(one, two)
    ]
    numbers = [number for study in (ours, theirs) if (number := study.number(method, task))]
    keys = [key for number in numbers for key in number.keys]
    return to_number(apart, keys, numbers[0].episodes, difference=True)
