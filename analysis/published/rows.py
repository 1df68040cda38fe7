"""Published results as rows of a main table, typeset apart: they were measured by others, on other episodes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pandas as pd

from analysis.published.table import load_published, rows_for
from analysis.tables.scores import Study
from analysis.tables.table import Column, Entry, Number, Row

MOST = 12  # strictly few-shot rows, and as many in-context ones
PLACE = ("method", "backbone", "key", "protocol", "in_context")
DATASETS = ("pascal5i", "coco20i", "fss1000")
FOOTNOTES = (
    "Below the line: published figures, each by its own protocol (in brackets) on its own episodes; not to be compared "
    "within decimals. Shown are the {most} highest 1-shot means whose folds are printed, and in-context generalists.",
    "† An in-context generalist: its training saw the test classes. ‡ Another source prints another figure.",
    "DiffUp's authors' own figures are not at hand.",
)
NONE = "No published figures exist for this data set, DiffUp's authors' own included."


@lru_cache(maxsize=1)
def _figures() -> pd.DataFrame:
    return load_published()


def published_name(study: Study) -> str:
    """What published tables call a study's data; ``""`` if there are none."""
    first = study.cells.iloc[0]
    if first["trained_dataset"]:
        return "coco2pascal" if (first["trained_dataset"], first["dataset"]) == ("coco20i", "pascal5i") else ""
    return str(first["dataset"]) if first["dataset"] in DATASETS else ""


def published_rows(study: Study, columns: Sequence[Column]) -> tuple[list[Row], list[str]]:
    """Rows for the columns of a main table (shots × folds, mean and FB-IoU), and what a reader must know of them."""
    name = published_name(study)
    if not name:
        return [], [NONE]
    shots = list(dict.fromkeys(int(column.header[0].partition("-")[0]) for column in columns))
    tables = {(k, metric): _records(name, k, metric) for k in shots for metric in ("miou", "fb_iou")}
    first = sorted(
        (row for row in tables[shots[0], "miou"] if row["mean"] == row["mean"]), key=lambda row: -row["mean"]
    )
    strict = [row for row in first if row["in_context"] != "yes" and _has_folds(row, name)][:MOST]
    generalists = [row for row in first if row["in_context"] == "yes"][:MOST]
    rows = []
    for whose in sorted([*strict, *generalists], key=lambda row: (row["backbone"], row["mean"])):
        entries: list[Entry] = []
        for column in columns:
            metric = "fb_iou" if column.header[1] == "FB-IoU" else "miou"
            row = _of_source(tables[int(column.header[0].partition("-")[0]), metric], whose)
            fold = column.header[1].removeprefix("fold ") if column.header[1].startswith("fold ") else "mean"
            value = row[fold] if row is not None else float("nan")
            entries.append(Number(value=float(value)) if value == value else None)
        rows.append(Row(_labels(whose), tuple(entries), str(whose["key"])))
    return rows, [note.format(most=len(strict)) for note in FOOTNOTES] if rows else [NONE]


def _records(name: str, shots: int, metric: str) -> list[dict[str, Any]]:
    found = rows_for(_figures(), dataset=name, shots=shots, metric=metric)
    return [{str(name): value for name, value in row.items()} for row in found.to_dict("records")]


def _of_source(rows: Sequence[dict[str, Any]], whose: dict[str, Any]) -> dict[str, Any] | None:
    """The row of the same method that the same source prints; of another source only if none contradicts it."""
    same = [row for row in rows if all(row[name] == whose[name] for name in PLACE)]
    sources = set(str(whose["source"]).split(";"))
    shared = [row for row in same if sources & set(str(row["source"]).split(";"))]
    return shared[0] if shared else same[0] if len(same) == 1 else None


def _has_folds(row: dict[str, Any], name: str) -> bool:
    return name == "fss1000" or all(row[fold] == row[fold] for fold in "0123")


def _labels(row: dict[str, Any]) -> tuple[str, str]:
    marks = ("†" if row["in_context"] == "yes" else "") + ("‡" if row["conflict"] else "")
    method = f"{row['method']} ({row['protocol'] or 'protocol not stated'})"
    return str(row["backbone"]), f"{method} {marks}".strip()
