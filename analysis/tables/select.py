"""Some columns and rows of tables, chosen by name: ``--columns '* / mean' --rows 'DiffUp*,prior mean'``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from analysis.tables.table import Column, Number, Row, Table
from diffup.errors import UserError

ALL_COUNT = "Marks of the best and the second compare all rows, also those that are left out here."


def names_of(column: Column) -> tuple[str, str]:
    """What a column is called: its levels as in the CSV, ``1-shot / mean``, and the last of them, ``mean``."""
    return " / ".join(part for part in column.header if part), column.header[-1]


def selected(tables: Sequence[Table], columns: Sequence[str], rows: Sequence[str]) -> list[Table]:
    """The tables with the columns and rows that match, ``*`` and ``?`` as in file names.

    A row matches by any of its labels. A table in which nothing matches is kept whole: the names are of other tables.

    Args:
        tables: of one paper.
        columns, rows: patterns; none: all.

    Raises:
        UserError: a pattern matches nothing in any table.
    """
    everything = {name for table in tables for column in table.columns for name in names_of(column)}
    _check("--columns", columns, everything)
    _check("--rows", rows, {label for table in tables for row in table.rows for label in row.labels})
    return [_rows(_columns(table, columns), rows) for table in tables]


def _check(option: str, patterns: Sequence[str], names: set[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            known = ", ".join(sorted(names)[:20])
            raise UserError(f"{option} {pattern!r}: no table has such a name; there are {known}, … (see the CSV files)")


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _columns(table: Table, patterns: Sequence[str]) -> Table:
    places = [i for i, column in enumerate(table.columns) if _matches(names_of(column), patterns)]
    if not places:
        return table
    rows = [replace(row, entries=tuple(row.entries[i] for i in places)) for row in table.rows]
    rows = [row for row in rows if any(entry is not None for entry in row.entries)]
    return replace(table, columns=tuple(table.columns[i] for i in places), rows=tuple(rows))


def _rows(table: Table, patterns: Sequence[str]) -> Table:
    rows: list[Row] = [row for row in table.rows if _matches(row.labels, patterns)]
    if not rows or len(rows) == len(table.rows):
        return table
    marked = any(isinstance(entry, Number) and (entry.best or entry.second) for row in rows for entry in row.entries)
    return replace(table, rows=tuple(rows), notes=(*table.notes, ALL_COUNT) if marked else table.notes)
