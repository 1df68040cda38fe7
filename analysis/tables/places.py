"""Where a cell stands in a table: its subject (a row) and its task (a column), and which cell if there are several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

METHODS = {
    "diffup": "DiffUp",
    "one_step": "one-step decoder",
    "prior_mean": "prior mean",
    "prototype": "prototype",
    "wrong_names": "DiffUp, wrong names",
}


@dataclass(frozen=True, order=True)
class Task:
    """K shots with an annotation."""

    shots: int
    annotation: str

    def __str__(self) -> str:
        return f"{self.shots}-shot {self.annotation}"


@dataclass(frozen=True, order=True)
class Subject:
    """A method with a test backbone.

    Attributes:
        backbone, weights: of the test.
        trained_on: backbone of the checkpoint, ``""`` for a training-free method.
        variant: as in the cell.
        method: ``diffup`` or the training-free method.
        control: it is told the names of other classes.
    """

    backbone: str
    weights: str
    trained_on: str
    variant: str
    method: str
    control: bool = False


# Columns of `Results.cells` that make a subject; the last one tells a control.
SUBJECT = ("backbone", "weights", "trained_on", "variant", "method", "class_names")
PLACE = [
    "backbone", "weights", "trained_on", "variant", "method", "class_names", "shots", "annotation", "fold",
    "train_seed", "episode_seed",
]  # fmt: skip


def one_per_place(cells: pd.DataFrame, documents: dict[str, dict[str, Any]]) -> tuple[pd.DataFrame, list[str]]:
    """The latest launch's cell, then a finished one, then the latest finished one; the rest is named in a warning."""
    ranked = cells.assign(done=cells["status"] == "finished")
    ranked = ranked.sort_values(["launch", "done", "finished", "key"])
    kept = ranked.drop_duplicates(PLACE, keep="last").drop(columns="done")
    warnings = []
    if len(kept) == len(cells):
        return cells.sort_values("key", ignore_index=True), []
    spare = cells[~cells["key"].isin(kept["key"])]
    chosen = {tuple(row[name] for name in PLACE): str(row["key"]) for row in kept.to_dict("records")}
    alike: dict[str, list[str]] = {}
    for row in spare.to_dict("records"):
        winner = chosen[tuple(row[name] for name in PLACE)]
        unlike = _unlike(documents[str(row["key"])], documents[winner])
        alike.setdefault(", ".join(unlike), []).append(f"{row['key']} (for {winner})")
    for fields, pairs in alike.items():
        more = f" and {len(pairs) - 3} more" if len(pairs) > 3 else ""
        warnings.append(
            f"{len(pairs)} cells stand for the same place of a table as others and differ from them in {fields}; "
            f"left out: {', '.join(pairs[:3])}{more}. The latest launch's count; keep other configurations in other "
            f"directories or under other variants"
        )
    return kept.sort_values("key", ignore_index=True), warnings


def _unlike(one: dict[str, Any], two: dict[str, Any], prefix: str = "") -> list[str]:
    names = []
    for name in sorted({*one, *two} - {"key"}):
        a, b = one.get(name), two.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            names += _unlike(a, b, f"{prefix}{name}.")
        elif a != b:
            names.append(f"{prefix}{name}")
    return names
