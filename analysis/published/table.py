"""Published figures of few-shot segmentation (``published.csv``): read, checked, and arranged as tables.

A row is one figure as sources printed it, uncorrected. Sources that print the same figure share a row; `status` marks
figures that contradict each other and means that are not those of their folds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diffup.errors import UserError

PUBLISHED = Path(__file__).parent / "published.csv"
BIB = Path(__file__).parent / "references.bib"
COLUMNS = (
    "method", "key", "venue", "year", "dataset", "backbone", "annotation", "shots", "fold", "metric", "value",
    "protocol", "in_context", "source", "status", "note",
)  # fmt: skip
SERIES = ["method", "in_context", "dataset", "backbone", "annotation", "shots", "metric"]  # folds and mean of a result
FIGURE = [*SERIES, "fold"]
FOLDS = ("0", "1", "2", "3")
KNOWN = {
    "dataset": {"pascal5i", "coco20i", "coco20i_panet", "fss1000", "coco2pascal"},
    "annotation": {"mask", "box", "scribble", "text", "mask+text", "none"},
    "metric": {"miou", "fb_iou"},
    "fold": {*FOLDS, "mean"},
    "protocol": {"", "hsnet", "pfenet", "bam", "panet"},
    "in_context": {"yes", "no"},
}
CONFLICT, NO_AVERAGE = "conflict", "folds_do_not_average"
STATUSES = {"ok", CONFLICT, NO_AVERAGE}
TOLERANCE = 0.1  # percentage points between a printed mean and the mean of the printed folds
ENTRIES = {"article", "inproceedings", "misc"}
Row = dict[str, Any]


def load_published(path: Path = PUBLISHED) -> pd.DataFrame:
    """Published figures, one per row, columns `COLUMNS`: `value` in percent, `shots` and `year` integers, others text.

    Raises:
        UserError: the file can't be read, or isn't of this form.
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        _check_columns(frame)
        return frame.astype({"value": float, "shots": int, "year": int})
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}; pass a file with the columns {', '.join(COLUMNS)}") from error


def check_published(frame: pd.DataFrame, *, bib: Path = BIB) -> list[str]:
    """What is wrong with published figures: empty if nothing is.

    Contradictions and means that aren't those of their folds are no problem where `status` says so.

    Raises:
        UserError: a column is missing, or the bibliography can't be read.
    """
    _check_columns(frame)
    entries, problems = bibliography(bib)
    rows = records(frame)
    for row in rows:
        value = float(row["value"])
        wrong = [f"unknown {name} {row[name]!r}" for name, known in KNOWN.items() if row[name] not in known]
        if not 0 <= value <= 100:
            wrong.append(f"{value} is no percentage")
        elif 0 < value <= 1:
            wrong.append(f"{value} looks like a fraction; multiply it by 100")
        if row["key"] not in entries:
            wrong.append(f"key {row['key']!r} is not in {bib.name}")
        if not set(row["status"].split(";")) <= STATUSES:
            wrong.append(f"unknown status {row['status']!r}")
        problems += [f"{_named(row)}: {what}" for what in wrong]
    for figures in _grouped(rows, FIGURE):
        values = Counter((row["protocol"], float(row["value"])) for row in figures)
        problems += [f"{_named(figures[0])}: duplicate {value}" for (_, value), count in values.items() if count > 1]
        several = len({value for _, value in values}) > 1
        for row in figures:
            if several != (CONFLICT in row["status"]):
                problems.append(
                    f"{_named(row)}: {row['value']} is {'not ' if several else ''}marked as {CONFLICT}, and there is "
                    f"{'another' if several else 'no other'} value"
                )
    return problems + _wrong_means(rows)


def rows_for(
    frame: pd.DataFrame, *, dataset: str, shots: int, metric: str = "miou", annotation: str = "mask"
) -> pd.DataFrame:
    """Published results as a table: one row per method and backbone; contradicting sources have separate rows.

    Columns: method, backbone, key, venue, year, the folds ``"0"`` to ``"3"`` and ``"mean"`` (nan: not printed),
    protocol, in_context, conflict (some figure of the row is contradicted by another row), averages (the mean is that
    of the folds, or unknown), source.

    Raises:
        UserError: no such data set, metric or annotation.
    """
    for name, value in (("dataset", dataset), ("metric", metric), ("annotation", annotation)):
        if value not in KNOWN[name]:
            raise UserError(f"no published {name} {value!r}; there are: {', '.join(sorted(KNOWN[name]))}")
    chosen = frame[(frame["dataset"] == dataset) & (frame["shots"] == shots)]
    chosen = chosen[(chosen["metric"] == metric) & (chosen["annotation"] == annotation)]
    table: list[Row] = []
    for figures in _grouped(_by_source(records(chosen)), SERIES):
        versions: list[list[Row]] = []
        printed = sorted(_grouped(figures, ["source", "protocol"]), key=lambda group: -len(group))
        for group in printed:
            same = next((version for version in versions if _agree(version, group)), None)
            if same is None:
                versions.append(group)
            else:
                same += group
        table += [_wide(version) for version in versions]
    columns = ["method", "backbone", "key", "venue", "year", *FOLDS, "mean", "protocol", "in_context"]
    wide = pd.DataFrame(table, columns=[*columns, "conflict", "averages", "source"])
    return wide.sort_values(["year", "method", "in_context", "backbone"], kind="stable", ignore_index=True)


def bibliography(path: Path = BIB) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Entries of a BibTeX file (fields by key, the kind of entry as ``"type"``), and what is wrong with them.

    Raises:
        UserError: it can't be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error}); pass a BibTeX file, or reinstall DiffUp") from error
    entries: dict[str, dict[str, str]] = {}
    problems = []
    for chunk in re.split(r"^@", text, flags=re.MULTILINE)[1:]:
        head = re.match(r"(\w+)\{([^\s,{}]+),", chunk)
        if head is None or chunk.count("{") != chunk.count("}"):
            problems.append(f"{path.name}: an entry that BibTeX can't read: @{chunk.splitlines()[0]}")
            continue
        kind, key = head.group(1).lower(), head.group(2)
        fields = {name.lower(): value for name, value in re.findall(r"^\s*(\w+)\s*=\s*\{(.*)\},?$", chunk, re.M)}
        lacks = [name for name in ("author", "title", "year") if not fields.get(name)]
        problems += [f"{path.name}: {key} appears twice"] if key in entries else []
        problems += [f"{path.name}: {key} is of unknown type @{kind}"] if kind not in ENTRIES else []
        problems += [f"{path.name}: {key} has no {name}" for name in lacks]
        entries[key] = {"type": kind, **fields}
    return entries, problems


def records(frame: pd.DataFrame) -> list[Row]:
    """The rows of a frame as dicts."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _check_columns(frame: pd.DataFrame) -> None:
    if missing := [name for name in COLUMNS if name not in frame.columns]:
        raise UserError(f"published results lack the column {', '.join(missing)}; it has {', '.join(frame.columns)}")


def _grouped(rows: Iterable[Row], names: Sequence[str]) -> list[list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(groups.values())


def _named(row: Row) -> str:
    names = ("method", "dataset", "backbone", "annotation", "shots", "metric", "fold")
    return " ".join(str(row[name]) for name in names) + (" [in-context]" if row["in_context"] == "yes" else "")


def _average(figures: Iterable[Row]) -> float:
    """The mean of the four folds; nan if the printed mean agrees once both have its decimals, or if one is missing."""
    values = {row["fold"]: float(row["value"]) for row in figures}
    if not {*FOLDS, "mean"} <= set(values):
        return float("nan")
    decimals = max(1, len(repr(values["mean"]).partition(".")[2]))
    average = float(np.mean([values[fold] for fold in FOLDS]))
    off = abs(round(average, decimals) - values["mean"]) > TOLERANCE + 1e-9
    return round(average + 1e-9, 2) if off else float("nan")


def _by_source(rows: Iterable[Row]) -> list[Row]:
    return [{**row, "source": source} for row in rows for source in row["source"].split(";")]


def _wrong_means(rows: Iterable[Row]) -> list[str]:
    problems = []
    for series in _grouped(_by_source(rows), [*SERIES, "protocol", "source"]):
        average = _average(series)
        means = [row for row in series if row["fold"] == "mean" and NO_AVERAGE not in row["status"]]
        if means and not np.isnan(average):
            problems.append(f"{_named(means[0])}: {means[0]['value']}, but the folds average {average}")
    return list(dict.fromkeys(problems))


def _agree(version: Iterable[Row], group: Iterable[Row]) -> bool:
    """They share a fold, and each shared fold has one value and protocol."""
    known = {row["fold"]: (row["value"], row["protocol"]) for row in version}
    shared = [row for row in group if row["fold"] in known]
    return bool(shared) and all(known[row["fold"]] == (row["value"], row["protocol"]) for row in shared)


def _wide(version: Sequence[Row]) -> Row:
    first = version[0]
    return {
        **{name: first[name] for name in ("method", "backbone", "key", "venue", "year", "in_context")},
        **dict.fromkeys((*FOLDS, "mean"), float("nan")),
        **{row["fold"]: float(row["value"]) for row in version},
        "protocol": next((row["protocol"] for row in version if row["protocol"]), ""),
        "conflict": any(CONFLICT in row["status"] for row in version),
        "averages": not any(NO_AVERAGE in row["status"] for row in version),
        "source": ";".join(dict.fromkeys(row["source"] for row in version)),
    }


def summary(frame: pd.DataFrame) -> str:
    """How many figures, rows and methods there are, and the rows of each status."""
    counts = ", ".join(f"{count} {status}" for status, count in Counter(frame["status"].tolist()).most_common())
    figures = sum(len(source.split(";")) for source in frame["source"])
    return f"{figures} printed figures in {len(frame)} rows of {frame['method'].nunique()} methods: {counts}"
