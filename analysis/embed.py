"""Tables in Markdown documents, from committed CSV files: ``python -m analysis embed README.md docs/*.md``.

A document marks where a table belongs; the text between the two marks is written anew, or with ``--check`` compared::

    <!-- table: docs/results/msrc15/main.csv | columns: 1-shot / mean, 5-shot / mean -->
    <!-- end of table -->

Paths are relative to the document. ``columns``, names as in the CSV, are optional and then the only ones shown.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from analysis.tables.table import Table, from_csv, to_markdown
from diffup.errors import UserError

BLOCK = re.compile(r"<!-- table: (?P<asked>.+?) -->\n(?P<shown>.*?)<!-- end of table -->", re.DOTALL)


def embedded(text: str, folder: Path) -> str:
    """The document with every table as its CSV has it.

    Args:
        text: Markdown.
        folder: that paths are relative to.

    Raises:
        UserError: a CSV can't be read or lacks a column; the message names the line that asks for it.
    """

    def made(match: re.Match[str]) -> str:
        asked = match["asked"]
        try:
            lines = to_markdown(_table(asked, folder)).splitlines()
        except (OSError, UserError) as error:
            raise UserError(f"<!-- table: {asked} -->: {error}") from error
        body = "\n".join(line for line in lines if line.startswith("|"))
        return f"<!-- table: {asked} -->\n\n{body}\n\n<!-- end of table -->"

    return BLOCK.sub(made, text)


def _table(asked: str, folder: Path) -> Table:
    path, *options = (part.strip() for part in asked.split("|"))
    table = from_csv((folder / path).read_text(encoding="utf-8"))
    for option in options:
        name, _, value = option.partition(":")
        if name != "columns":
            raise UserError(f"unknown option {name!r}; there is only columns: A, B")
        names = [" / ".join(part for part in column.header if part) for column in table.columns]
        wanted = [part.strip() for part in value.split(",")]
        if unknown := [part for part in wanted if part not in names]:
            raise UserError(f"no column {unknown[0]!r}; there are {', '.join(names)}")
        places = [names.index(part) for part in wanted]
        rows = [replace(row, entries=tuple(row.entries[i] for i in places)) for row in table.rows]
        rows = [row for row in rows if any(entry is not None for entry in row.entries)]
        table = replace(table, columns=tuple(table.columns[i] for i in places), rows=tuple(rows))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0, 1 where ``--check`` finds a difference, or 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m analysis embed", description="Tables in Markdown documents.")
    parser.add_argument("documents", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--check", action="store_true", help="change nothing, name the documents that would change")
    options = parser.parse_args(arguments)
    changed = 0
    for path in options.documents:
        try:
            text = path.read_text(encoding="utf-8")
            new = embedded(text, path.parent)
            if new != text:
                changed += 1
                print(path)
                if not options.check:
                    path.write_text(new, encoding="utf-8")
        except (OSError, UserError) as error:
            print(f"error: {path}: {error}", file=sys.stderr)
            return 2
    return int(bool(changed) and options.check)
