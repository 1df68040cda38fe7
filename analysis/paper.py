"""Tables of a result store, for a paper: ``python -m analysis.paper --results DIR --out DIR``.

Writes one table per question as LaTeX, Markdown and CSV, ``tables.md`` and ``tables.tex`` with all of them, and
``paper.tex``, a document that compiles them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from analysis.claims import claims_table
from analysis.collection import collect
from analysis.command import command, load, texts_of, warn, write_texts
from analysis.frame import Results
from analysis.questions import main_table
from analysis.scores import studies
from analysis.stats import RESAMPLES
from analysis.tables import Table, to_markdown

PAPER = r"""% Compile with latexmk -pdf paper.tex
\documentclass[a4paper]{article}
\usepackage[utf8]{inputenc}
\usepackage[landscape,margin=2cm]{geometry}
\usepackage{booktabs}
\usepackage{graphicx}
\begin{document}
\input{tables}
\end{document}
"""
WIDTH = 130  # characters of a line in a terminal


def all_tables(results: Results, *, resamples: int = RESAMPLES) -> tuple[list[Table], list[str]]:
    """All tables that the store can fill, and warnings about what was left out of them.

    Studies (data sets, protocols) are never mixed in a table; where there are several, names carry the study's.

    Raises:
        ValueError: there is no evaluation cell.
    """
    parts = list(collect(results, resamples=resamples))
    tables = [table for part in parts for table in part.tables]
    return tables, [*results.warnings, *(warning for part in parts for warning in part.study.warnings)]


def write_all(results: Path, out: Path, *, keys: Iterable[str] | None = None, resamples: int = RESAMPLES) -> list[Path]:
    """Write all tables of a result store; warnings go to stderr. Arguments and errors: `analysis.command.Write`."""
    tables, warnings = all_tables(load(results, keys), resamples=resamples)
    warn(warnings)
    texts = {name: text for table in tables for name, text in texts_of(table).items()}
    texts["tables.md"] = "\n".join(to_markdown(table) for table in tables)
    texts["tables.tex"] = "".join(f"\\input{{{table.name}}}\n" for table in tables)
    texts["paper.tex"] = PAPER
    return write_texts(out, texts)


def main_markdown(results: Path, *, keys: Iterable[str] | None = None, resamples: int = RESAMPLES) -> str:
    """The main table and the claims in Markdown that fits a terminal, for scripts to print.

    Raises:
        ValueError: there is no such store or no cell in it.
    """
    found = studies(load(results, keys), resamples=resamples)
    made = [question(study) for study in found for question in (main_table, claims_table)]
    return "\n".join(to_markdown(table, notes=False, fit=WIDTH) for table in made if table is not None)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0, or 2 for wrong usage."""
    return command("analysis.paper", "Tables of a result store.", write_all, arguments)


if __name__ == "__main__":
    sys.exit(main())
