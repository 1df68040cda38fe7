"""Searches over training configurations, as tables: scores at each milestone, what stopping saved, the best one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.tables.table import Column, Number, Row, Table
from diffup.errors import UserError


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
