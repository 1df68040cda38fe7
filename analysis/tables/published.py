"""Published results as rows of a main table, typeset apart: they were measured by others, on other episodes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pandas as pd

from analysis.published.table import FOLDS, load_published, records, rows_for
from analysis.tables.scores import Study
from analysis.tables.table import Column, Entry, Number, Row

MOST = 12  # strictly few-shot rows, and as many in-context ones
PLACE = ("method", "backbone", "key", "protocol", "in_context")
DATASETS = ("pascal5i", "coco20i", "fss1000")
FOOTNOTES = (
    "Below the line: published figures, each by its own protocol (in brackets) on its own episodes; not to be compared "
    "within decimals. Shown are the {most} highest 1-shot means whose folds are printed, and in-context generalists.",
    "† An in-context generalist: its training saw the test classes. ‡ Another source prints another figure.",
    "DiffUp's authors' own figures are not available.",
)


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
        return [], []
    places = [(int(column.header[0].partition("-")[0]), column.header[1]) for column in columns]
    tables = {
        (shots, metric): records(rows_for(_figures(), dataset=name, shots=shots, metric=metric))
        for shots in {shots for shots, _ in places}
        for metric in ("miou", "fb_iou")
    }
    first = [row for row in tables[places[0][0], "miou"] if row["mean"] == row["mean"]]
    first.sort(key=lambda row: -row["mean"])
    has_folds = [name == "fss1000" or all(row[fold] == row[fold] for fold in FOLDS) for row in first]
    strict = [row for row, known in zip(first, has_folds) if row["in_context"] != "yes" and known][:MOST]
    generalists = [row for row in first if row["in_context"] == "yes"][:MOST]
    rows = []
    for whose in sorted([*strict, *generalists], key=lambda row: (row["backbone"], row["mean"])):
        entries: list[Entry] = []
        for shots, view in places:
            row = _of_source(tables[shots, "fb_iou" if view == "FB-IoU" else "miou"], whose)
            fold = view.removeprefix("fold ") if view.startswith("fold ") else "mean"
            value = row[fold] if row is not None else float("nan")
            entries.append(Number(value=float(value)) if value == value else None)
        rows.append(Row(_labels(whose), tuple(entries), str(whose["key"])))
    return rows, [note.format(most=len(strict)) for note in FOOTNOTES] if rows else []


def _of_source(rows: Sequence[dict[str, Any]], whose: dict[str, Any]) -> dict[str, Any] | None:
    """The row of the same method that the same source prints; of another source only if none contradicts it."""
    same = [row for row in rows if all(row[name] == whose[name] for name in PLACE)]
    sources = set(str(whose["source"]).split(";"))
    shared = [row for row in same if sources & set(str(row["source"]).split(";"))]
    return shared[0] if shared else same[0] if len(same) == 1 else None


def _labels(row: dict[str, Any]) -> tuple[str, str]:
    marks = ("†" if row["in_context"] == "yes" else "") + ("‡" if row["conflict"] else "")
    method = f"{row['method']} ({row['protocol'] or 'protocol not stated'})"
    return str(row["backbone"]), f"{method} {marks}".strip()
