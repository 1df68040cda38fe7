"""What protocols do to one checkpoint's figures, and what the best of several episode seeds adds.

    python -m analysis.tables.protocol_spread --results DIR --out DIR

Episodes of two protocols are not the same, so these differences are not paired: each side is resampled by itself, and
since both ask many of the same images, the intervals are rather too wide than too narrow.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from analysis.command import command, load, texts_of, warn, write_texts
from analysis.stats import RESAMPLES, Estimate
from analysis.tables import captions
from analysis.tables.places import Subject, Task
from analysis.tables.scores import Study, studies, to_number
from analysis.tables.table import Column, Entry, Row, Table, defined
from diffup.errors import UserError, command_line

REFERENCE = "paired"


def _seeds(study: Study) -> list[int]:
    return sorted({int(seed) for seed in study.cells["episode_seed"]})


def _of_seed(study: Study, seed: int) -> Study:
    cells = study.cells[study.cells["episode_seed"] == seed].reset_index(drop=True)
    counts = {key: study.counts[key] for key in cells["key"] if key in study.counts}
    return Study(cells, counts, (), study.resamples, study.seed)


def _best(seeds: Sequence[Study], subject: Subject, task: Task) -> Entry:
    """The figure of the best of several episode seeds; none if there is one alone or one is missing."""
    found = [study.number(subject, task) for study in seeds] if len(seeds) > 1 else []
    numbers = [number for one in found if (number := defined(one)) is not None]
    return max(numbers, key=lambda number: number.value) if found and len(numbers) == len(found) else None


def _difference(ours: Study, theirs: Study, subject: Subject, task: Task) -> Entry:
    one, two = (study.estimates(subject, task) for study in (ours, theirs))
    if not one or not two or len(one) != len(two):
        return None
    numbers = [study.number(subject, task) for study in (ours, theirs)]
    # Drawn apart from each other: the streams of the two differ by `Study.seed`.
    apart = [
        Estimate(a.value - b.value, a.draws - b.draws, "unpaired", min(a.freedom, b.freedom)) for a, b in zip(one, two)
    ]
    keys = [key for number in numbers if number is not None for key in number.keys]
    episodes = numbers[0].episodes if numbers[0] is not None else 0
    return to_number(apart, keys, episodes, difference=True)


def spread_table(parts: Sequence[Study]) -> Table | None:
    """Protocols × methods by tasks, of one data set; None where there is only one protocol."""
    names = [str(study.cells["protocol"].iloc[0]) for study in parts]
    if len(parts) < 2:
        return None
    base = parts[names.index(REFERENCE) if REFERENCE in names else 0]
    tasks = [task for task in base.folds_by_task if task.annotation == "mask"]
    rows = []
    by_seed = [[_of_seed(study, seed) for seed in _seeds(study)] for study in parts]
    ordered = sorted(zip(parts, names, by_seed), key=lambda part: (part[0] is not base, part[1]))
    for subject in base.subjects:
        for study, name, seeds in ordered:
            label = f"{name} ({study.cells['protocol_hash'].iloc[0]})"
            entries: list[Entry] = []
            for task in tasks:
                gap = None if study is base else _difference(study, base, subject, task)
                entries += [study.number(subject, task), gap, _best(seeds, subject, task)]
            backbone, method = captions.labels(base, subject)
            rows.append(Row((f"{method} on {backbone}", label, str(len(seeds))), tuple(entries)))
    reference = str(base.cells["protocol"].iloc[0])
    columns = [
        Column((f"{task.shots}-shot", name)) for task in tasks for name in ("mIoU", f"− {reference}", "best seed")
    ]
    data = captions.data_name(base)
    notes = [note for note in captions.notes(base, rows) if not note.startswith("Differences are paired")]
    return Table(
        name=f"protocols-{data}",
        caption=f"One checkpoint a fold on {data} under several protocols: mIoU in %, mask annotation.",
        labels=("Method", "Protocol", "Seeds"),
        columns=tuple(columns),
        rows=tuple(rows),
        notes=(
            f"Episode seeds of a protocol are pooled; best seed: the highest of their figures. The episodes of two "
            f"protocols differ, so differences to {reference} are not paired; * marks intervals that exclude 0.",
            *(note if not note.startswith("Protocol ") else f"Of {reference}: {note}" for note in notes),
        ),
    )


def spread_tables(results: Path, *, keys: Iterable[str] | None = None, resamples: int = RESAMPLES) -> list[Table]:
    """The table of each data set that was evaluated under several protocols.

    Raises:
        UserError: there is no such store, or no such data set in it.
    """
    store = load(results, keys)
    warn(store.warnings)
    by_data: dict[tuple[str, str, str], list[Study]] = {}
    for number, study in enumerate(studies(store, resamples=resamples)):
        first = study.cells.iloc[0]
        place = (str(first["dataset"]), str(first["dataset_hash"]), str(first["trained_dataset"]))
        by_data.setdefault(place, []).append(
            replace(study, seed=number, _scores={}, _differences={}, _means={}, _numbers={})
        )
    tables = [table for parts in by_data.values() if (table := spread_table(parts))]
    if not tables:
        raise UserError(f"{results} holds no data set under several protocols; run experiments/protocol_study.py")
    return tables


def write_spread(
    results: Path, out: Path, *, keys: Iterable[str] | None = None, resamples: int = RESAMPLES
) -> list[Path]:
    """Write the tables. Arguments and errors: `analysis.command.Write`."""
    tables = spread_tables(results, keys=keys, resamples=resamples)
    return [path for table in tables for path in write_texts(out, texts_of(table))]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0, or 2 for wrong usage."""
    return command("analysis.tables.protocol_spread", "What protocols do to a figure.", write_spread, arguments)


if __name__ == "__main__":
    sys.exit(command_line(main))
