"""Rows and columns of a table: the method of a cell, its task, and which of several cells of a place is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import pandas as pd

METHODS = {
    "diffup": "DiffUp",
    "one_step": "one-step decoder",
    "evidence_snap": "evidence, bank, objects, snap",
    "evidence_regions": "evidence, bank, objects, regions",
    "evidence_objects": "evidence, bank, objects",
    "evidence_bank": "evidence, bank",
    "evidence": "evidence",
    "prior_mean": "prior mean",
    "insid3": "INSID3's rule",
    "prototype": "prototype",
    "wrong_names": "DiffUp, wrong names",
}
ANNOTATIONS = ("text", "mask", "box", "scribble")  # in this order, then mixes by name

K = TypeVar("K")
V = TypeVar("V")
S = TypeVar("S")
T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True, order=True)
class Task:
    """K shots with an annotation."""

    shots: int
    annotation: str

    def __str__(self) -> str:
        return f"{self.shots}-shot {self.annotation}"


@dataclass(frozen=True, order=True)
class MethodKey:
    """A method with a test backbone.

    Attributes:
        backbone, weights: of the test.
        trained_on: backbone of the checkpoint, ``""`` for a training-free method.
        variant: as in the cell.
        method: ``diffup`` or the training-free method.
        control: it is given the names of other classes.
    """

    backbone: str
    weights: str
    trained_on: str
    variant: str
    method: str
    control: bool = False

    def beside(self, other: MethodKey) -> bool:
        """Whether `other` is a method on the same backbone, trained on the same one if at all."""
        same = (self.backbone, self.weights) == (other.backbone, other.weights)
        return same and other.trained_on in ("", self.trained_on)

    def upgraded_to(self, other: MethodKey) -> bool:
        """Whether `other` is this method with this training backbone and another test backbone."""
        same = (self.trained_on, self.variant, self.method) == (other.trained_on, other.variant, other.method)
        return same and (self.backbone, self.weights) != (other.backbone, other.weights)


# Columns of `Results.cells` that make a `MethodKey`; the last one marks a control.
METHOD_COLUMNS = ("backbone", "weights", "trained_on", "variant", "method", "class_names")
PLACE = [*METHOD_COLUMNS, "shots", "annotation", "fold", "train_seed", "episode_seed"]


def grouped(pairs: Iterable[tuple[K, V]]) -> dict[K, list[V]]:
    """The values of each key, in order."""
    found: dict[K, list[V]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def memo(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """A method that keeps, in its object, what it returned for the same arguments."""

    @wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        place = (method.__name__, args, *kwargs.items())
        kept: dict[Any, T] = self.__dict__.setdefault("_memo", {})
        if place not in kept:
            kept[place] = method(self, *args, **kwargs)
        return kept[place]

    return call


def ordered(tasks: Iterable[Task]) -> list[Task]:
    """Tasks by annotation, then shots."""

    def key(task: Task) -> tuple[int, str, int]:
        known = ANNOTATIONS.index(task.annotation) if task.annotation in ANNOTATIONS else len(ANNOTATIONS)
        return known, task.annotation, task.shots

    return sorted(tasks, key=key)


def one_per_place(cells: pd.DataFrame, documents: dict[str, dict[str, Any]]) -> tuple[pd.DataFrame, list[str]]:
    """The latest launch's cell, then a finished one, then the latest finished one; the rest is named in a warning."""
    ranked = cells.assign(done=cells["status"] == "finished").sort_values(["launch", "done", "finished", "key"])
    kept = ranked.drop_duplicates(PLACE, keep="last").drop(columns="done").sort_values("key", ignore_index=True)
    spare = cells[~cells["key"].isin(kept["key"])].merge(kept[[*PLACE, "key"]], on=PLACE, suffixes=("", "_kept"))
    left_out = grouped(
        (", ".join(_unlike(documents[key], documents[winner])), f"{key} (for {winner})")
        for key, winner in zip(spare["key"], spare["key_kept"])
    )
    warnings = []
    for fields, pairs in left_out.items():
        more = f" and {len(pairs) - 3} more" if len(pairs) > 3 else ""
        warnings.append(
            f"{len(pairs)} cells belong in the same place of a table as others and differ from them in {fields}; "
            f"left out: {', '.join(pairs[:3])}{more}. The latest launch's count; keep other configurations in other "
            f"directories or under other variants"
        )
    return kept, warnings


def _unlike(one: dict[str, Any], two: dict[str, Any], prefix: str = "") -> list[str]:
    names = []
    for name in sorted({*one, *two} - {"key"}):
        a, b = one.get(name), two.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            names += _unlike(a, b, f"{prefix}{name}.")
        elif a != b:
            names.append(f"{prefix}{name}")
    return names
