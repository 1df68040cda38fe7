"""A search over training configurations, without Ray: its configurations, the classes it may score on, and its record.

A configuration is a training cell that holds out base classes, and is scored on these and nothing else. The record of a
search, ``<results>/searches/<name>.json``, has every score and how each configuration ended. One process writes it, the
driver; a search that was killed resumes from it.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.code_version import code_hash
from cluster.storage.atomic import to_json, write_atomically
from cluster.storage.results import Store
from diffup.episodes.protocols import get_protocol
from diffup.episodes.sampling import held_out_classes, make_manifest
from diffup.errors import UserError
from diffup.grid.cell import AnyCell, Cell, TrainingCell, cell_to_dict

if TYPE_CHECKING:
    from diffup.data.dataset import Dataset

SEARCHES = "searches"
SCHEMA = 2
FINISHED, STOPPED, DIVERGED, FAILED = "finished", "stopped", "diverged", "failed"
MAY_DIFFER = ("checkpoint", "variant")  # between the validation cells of two configurations


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One configuration: its training cell, its values of what differs between configurations, and what scores it.

    Raises:
        UserError: it would be scored on classes that it is trained on, or that are not base classes of its fold.
    """

    cell: TrainingCell
    values: Mapping[str, Any]
    validation: tuple[Cell, ...]

    def __post_init__(self) -> None:
        cell, key = self.cell, self.cell.key()
        if cell.train.hold_out < 1:
            raise UserError(
                f"training cell {key} can't be searched over: it holds out no base class to be scored on, and novel "
                "classes are for reporting. Set TrainConfig.hold_out to 1 or more"
            )
        if not self.validation:
            raise UserError(f"training cell {key} has no validation cells to be scored by")
        place = (cell.dataset, cell.dataset_hash, cell.fold, cell.train_seed, cell.train.hold_out)
        for found in self.validation:
            where = (found.dataset, found.dataset_hash, found.fold, found.train_seed, found.hold_out)
            if found.classes != "held_out" or found.checkpoint != key or where != place:
                raise UserError(
                    f"validation cell {found.key()} does not evaluate training cell {key} on the base classes that it "
                    f"holds out (its classes are {found.classes!r}); make it with evaluation_cells(…, held_out="
                    f"{cell.train.hold_out})"
                )

    def in_words(self) -> str:
        """Its values."""
        return ", ".join(f"{name} {value}" for name, value in self.values.items())


@dataclass(frozen=True, kw_only=True)
class Search:
    """Configurations that compete for steps.

    Attributes:
        name: of the record.
        candidates: in the order in which they start; all of one data set, fold, seed and number of steps.
        milestones: steps after which a configuration is scored, ascending; the last is the end.
        reduction: at each milestone, one of so many goes on.
        classes: names of the classes that all are scored on; see `validation_classes`.
    """

    name: str
    candidates: Sequence[Candidate]
    milestones: tuple[int, ...]
    reduction: int
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        rules = {json.dumps(_rules(candidate), sort_keys=True) for candidate in self.candidates}
        if len(rules) != 1:
            raise UserError(f"search {self.name!r}: {len(rules)} ways to score configurations; all need the same one")
        steps = {candidate.cell.train.steps for candidate in self.candidates}
        if steps != {self.milestones[-1]} or list(self.milestones) != sorted(set(self.milestones)):
            raise UserError(
                f"search {self.name!r}: milestones {self.milestones} must ascend to the steps of all configurations "
                f"({steps})"
            )
        if len({candidate.cell.key() for candidate in self.candidates}) != len(self.candidates):
            raise UserError(f"search {self.name!r} has a configuration twice")

    @property
    def cells(self) -> list[AnyCell]:
        """All training cells, then all validation cells."""
        trained: list[AnyCell] = [candidate.cell for candidate in self.candidates]
        return trained + [cell for candidate in self.candidates for cell in candidate.validation]

    def rules(self) -> dict[str, Any]:
        """What scores depend on, beside the configuration; scores under other rules can't be compared with them."""
        return {"milestones": list(self.milestones), "validation": _rules(self.candidates[0])}


def _rules(candidate: Candidate) -> list[dict[str, Any]]:
    documents = (cell_to_dict(cell) for cell in candidate.validation)
    return [{name: value for name, value in cell.items() if name not in MAY_DIFFER} for cell in documents]


def halvings(steps: int, reduction: int, count: int) -> tuple[int, ...]:
    """`count` milestones up to `steps`, each 1 / `reduction` of the next, rounded down: 300, 2, 3 → (75, 150, 300).

    Raises:
        UserError: the first would be 0 steps, or there is nothing to reduce.
    """
    if reduction < 2 or count < 2 or steps < reduction ** (count - 1):
        raise UserError(
            f"{count} milestones of {steps} steps by a factor of {reduction}: give 2 milestones or more, a factor of 2 "
            "or more, and a first milestone of at least one step"
        )
    return tuple(steps // reduction**k for k in reversed(range(count)))


def searches_of(
    cells: Sequence[AnyCell], datasets: Mapping[str, Dataset], *, reduction: int, milestones: int
) -> list[Search]:
    """A grid as searches: training cells of one place compete, each scored by the cells that evaluate its checkpoint.

    Args:
        cells: the grid.
        datasets: by name.
        reduction, milestones: see `halvings`.

    Raises:
        UserError: see `Candidate`, `Search`, `halvings` and `validation_classes`.
    """
    places, scoring = defaultdict[str, list[TrainingCell]](list), defaultdict[str, list[Cell]](list)
    for cell in cells:
        if isinstance(cell, Cell):
            scoring[cell.checkpoint].append(cell)
        else:
            places[f"{cell.dataset}-{cell.backbone}-fold{cell.fold}-seed{cell.train_seed}"].append(cell)
    searches = []
    for name, trained in places.items():
        values = _varied(trained)
        found = [
            Candidate(cell=cell, values=own, validation=tuple(scoring[cell.key()]))
            for cell, own in zip(trained, values, strict=True)
        ]
        searches.append(
            Search(
                name=re.sub(r"[^\w.-]+", "-", name),
                candidates=found,
                milestones=halvings(trained[0].train.steps, reduction, milestones),
                reduction=reduction,
                classes=validation_classes(datasets[trained[0].dataset], found[0].validation),
            )
        )
    return searches


def _varied(cells: Sequence[TrainingCell]) -> list[dict[str, Any]]:
    """Each cell's values of the settings that are not the same in all."""
    made: list[dict[str, Any]] = [
        {item.name: getattr(part, item.name) for part in (cell.train, cell.model) for item in fields(part)}
        for cell in cells
    ]
    names = [name for name in made[0] if len({values[name] for values in made}) > 1]
    return [{name: values[name] for name in names} for values in made]


def validation_classes(dataset: Dataset, cells: Sequence[Cell]) -> tuple[str, ...]:
    """Names of the classes that validation cells (see `Candidate`) of a data set look at, from their manifests.

    Raises:
        UserError: one is not a base class that the training holds out; or see `diffup.episodes.sampling.make_manifest`.
    """
    seen: set[int] = set()
    for cell in cells:
        held_out = held_out_classes(dataset, cell.fold, cell.hold_out, cell.train_seed)
        draw = (cell.fold, cell.shots, cell.episodes, cell.episode_seed)
        manifest = make_manifest(dataset, get_protocol(cell.protocol), *draw, held_out)
        drawn = {episode.class_index for episode in manifest.episodes}
        allowed = set(held_out) - set(dataset.novel_classes(cell.fold))
        if strange := sorted(drawn - allowed):
            raise UserError(
                f"validation cell {cell.key()} would look at {dataset.classes[strange[0]]!r}, which is no held-out "
                f"base class of {dataset.name}, fold {cell.fold}: nothing may be chosen on it"
            )
        seen |= drawn
    return tuple(dataset.classes[c] for c in sorted(seen))


def check_seen(names: Sequence[str], search_classes: Sequence[str], key: str) -> None:
    """Raise UserError if a score was made on other classes than a search may look at."""
    if strange := sorted(set(names) - set(search_classes)):
        raise UserError(f"configuration {key} was scored on {strange[0]!r}, which is no class to choose on; not used")


def record_path(root: Path, name: str) -> Path:
    """The record of a search, in a result store."""
    return root / SEARCHES / f"{name}.json"


def read_entry(path: Path, key: str) -> dict[str, Any]:
    """A configuration's entry in a record, for a trial; empty if there is none."""
    try:
        entry: dict[str, Any] = json.loads(path.read_bytes())["configurations"][key]
    except (OSError, KeyError, ValueError):
        return {}
    return entry


class Record:
    """All that is known of a search; each change is on disk, in full, before the method returns.

    Attributes:
        path: of the file.
        entries: by key: ``values``, ``scores`` (each with ``steps``, ``miou``, ``tasks``, ``train_seconds`` and
            ``validate_seconds``), ``ended`` (None, or one of the four words above) and ``error``.
        stale: configurations whose last score was made by other code.
        tracking: of a search that was killed or runs.
    """

    def __init__(self, store: Store, search: Search, *, retry_failed: bool = False) -> None:
        """Read the record of a search, or begin one.

        Args:
            store: the results; a finished configuration whose checkpoint is gone is trained again.
            search: whose record.
            retry_failed: let failed configurations go on.

        Raises:
            UserError: the file can't be read, or its scores were made by other rules.
        """
        self.path = record_path(store.root, search.name)
        self._document: dict[str, Any] = {"schema": SCHEMA, "rules": search.rules(), "configurations": {}}
        if self.path.exists():
            self._document = self._read(search)
        self._document["classes"] = list(search.classes)
        self.tracking: dict[str, str] | None = self._document.get("tracking")
        self.entries: dict[str, dict[str, Any]] = {}
        for candidate in search.candidates:
            key = candidate.cell.key()
            entry: dict[str, Any] = {"values": dict(candidate.values), "scores": [], "ended": None, "error": ""}
            entry |= {"code_hash": "", **self._document["configurations"].get(key, {})}
            gone = entry["ended"] == FINISHED and store.read(key).status != FINISHED
            if gone:
                entry["scores"] = [score for score in entry["scores"] if score["steps"] < search.milestones[-1]]
            if gone or (retry_failed and entry["ended"] == FAILED):
                entry |= {"ended": None, "error": ""}
            self.entries[key] = entry
        self.stale = [key for key, entry in self.entries.items() if entry["code_hash"] not in ("", code_hash())]

    def _read(self, search: Search) -> dict[str, Any]:
        try:
            document: dict[str, Any] = json.loads(self.path.read_bytes())
            schema, rules, _ = document["schema"], document["rules"], document["configurations"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.path} can't be read: {error}. Remove it to score all configurations anew"
            ) from error
        if schema != SCHEMA:
            raise UserError(
                f"{self.path} has schema {schema}, this version reads {SCHEMA}; give another directory with --results, "
                "or remove it to score all configurations anew"
            )
        if rules != json.loads(json.dumps(search.rules())):
            raise UserError(
                f"{self.path} has scores of other validation episodes or milestones, which can't be compared with "
                "these; give another directory with --results"
            )
        return document

    def todo(self) -> list[str]:
        """Keys of the configurations that have not ended, those with most scores first."""
        left = [key for key, entry in self.entries.items() if entry["ended"] is None]
        return sorted(left, key=lambda key: -len(self.entries[key]["scores"]))

    def add(self, key: str, score: Mapping[str, Any]) -> bool:
        """Note a score; False if its milestone has one already."""
        entry = self.entries[key]
        if any(known["steps"] == score["steps"] for known in entry["scores"]):
            return False
        entry["scores"].append(dict(score))
        entry["code_hash"] = code_hash()
        self.save()
        return True

    def end(self, key: str, how: str, error: str = "") -> None:
        """Note how a configuration ended, once."""
        if self.entries[key]["ended"] is None:
            self.entries[key] |= {"ended": how, "error": error}
            self.save()

    def save(self) -> None:
        """Write the file; configurations of an earlier, larger search stay in it."""
        configurations = {**self._document["configurations"], **self.entries}
        document = {**self._document, "tracking": self.tracking, "configurations": configurations}
        write_atomically(self.path, to_json(document))

    def count(self, how: str) -> int:
        """Number of configurations that ended so."""
        return sum(entry["ended"] == how for entry in self.entries.values())

    def spent(self) -> int:
        """Steps up to the last score of each configuration."""
        return sum(steps_of(entry) for entry in self.entries.values())


def steps_of(entry: Mapping[str, Any]) -> int:
    """Steps after which a configuration was scored last."""
    return int(entry["scores"][-1]["steps"]) if entry["scores"] else 0
