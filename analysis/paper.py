"""Tables of a result store, for a paper: ``python -m analysis.paper --results DIR --out DIR``.

Writes one table per question as LaTeX, Markdown and CSV, ``tables.md`` and ``tables.tex`` with all of them, and
``paper.tex``, a document that compiles them.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from analysis.frame import Results, launch_keys, load_results, only
from analysis.latex import to_latex
from analysis.questions import QUESTIONS, claims_table, main_table
from analysis.scores import Study, studies
from analysis.stats import RESAMPLES
from analysis.tables import Table, to_csv, to_markdown

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
SHOWN = 10  # warnings
RENDERERS: dict[str, Callable[[Table], str]] = {"tex": to_latex, "md": to_markdown, "csv": to_csv}
WIDTH = 130  # characters of a line in a terminal


def all_tables(results: Results, *, resamples: int = RESAMPLES) -> tuple[list[Table], list[str]]:
    """All tables that the store can fill, and warnings about what was left out of them.

    Studies (data sets, protocols) are never mixed in a table; where there are several, names carry the study's.

    Raises:
        ValueError: there is no evaluation cell.
    """
    tables = []
    found = studies(results, resamples=resamples)
    suffixes = _suffixes(found)
    for study, suffix in zip(found, suffixes):
        made = [question(study) for question in QUESTIONS]
        tables += [replace(table, name=table.name + suffix) for table in made if table is not None]
    return tables, [*results.warnings, *(warning for study in found for warning in study.warnings)]


def write_all(results: Path, out: Path, *, keys: Iterable[str] | None = None, resamples: int = RESAMPLES) -> list[Path]:
    """Write all tables of a result store; warnings go to stderr.

    Args:
        results: the result store.
        out: folder for the tables, made if need be.
        keys: only these cells, e.g. those of one grid; None: all in the store.
        resamples: of the bootstrap.

    Returns:
        the files written.

    Raises:
        ValueError: there is no such store or no cell in it, or `out` can't be written.
    """
    tables, warnings = all_tables(_load(results, keys), resamples=resamples)
    warn(warnings)
    texts = {f"{table.name}.{suffix}": render(table) for table in tables for suffix, render in RENDERERS.items()}
    texts["tables.md"] = "\n".join(to_markdown(table) for table in tables)
    texts["tables.tex"] = "".join(f"\\input{{{table.name}}}\n" for table in tables)
    texts["paper.tex"] = PAPER
    paths = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (out / name).write_text(text, encoding="utf-8")
            paths.append(out / name)
    except OSError as error:
        raise ValueError(f"can't write tables to {out} ({error.strerror or error}); choose another --out") from error
    return paths


def main_markdown(results: Path, *, keys: Iterable[str] | None = None, resamples: int = RESAMPLES) -> str:
    """The main table and the claims in Markdown that fits a terminal, for scripts to print; arguments of `write_all`.

    Raises:
        ValueError: there is no such store or no cell in it.
    """
    found = studies(_load(results, keys), resamples=resamples)
    made = [question(study) for study in found for question in (main_table, claims_table)]
    return "\n".join(to_markdown(table, notes=False, fit=WIDTH) for table in made if table is not None)


def _load(results: Path, keys: Iterable[str] | None) -> Results:
    store = load_results(results)
    return store if keys is None else only(store, keys)


def _suffixes(found: Sequence[Study]) -> list[str]:
    """What sets the studies' files apart: nothing, the data set, its protocol too, or the hashes as well."""
    for names in ([], ["dataset"], ["dataset", "protocol"], ["dataset", "protocol", "dataset_hash", "protocol_hash"]):
        slugs = ["".join(f"-{study.cells[name].iloc[0]}" for name in names) for study in found]
        slugs = [re.sub(r"[^A-Za-z0-9-]+", "-", slug) for slug in slugs]
        if len(set(slugs)) == len(slugs):
            return slugs
    return [f"-{number}" for number in range(len(found))]


def warn(warnings: Sequence[str]) -> None:
    """Print warnings to stderr, the first few of many."""
    for warning in warnings[:SHOWN]:
        print(f"warning: {warning}", file=sys.stderr)
    if len(warnings) > SHOWN:
        print(f"warning: … and {len(warnings) - SHOWN} more", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0, or 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m analysis.paper", description="Tables of a result store.")
    parser.add_argument("--results", type=Path, required=True, metavar="DIR", help="what a grid script wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the tables go")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, metavar="N", help="of the bootstrap (%(default)s)")
    parser.add_argument("--launch", metavar="NAME", help="only the cells of DIR/launches/NAME.json (all cells)")
    options = parser.parse_args(arguments)
    try:
        if options.resamples < 1:
            raise ValueError(f"--resamples must be 1 or more, not {options.resamples}")
        keys = launch_keys(options.results, options.launch) if options.launch else None
        paths = write_all(options.results, options.out, keys=keys, resamples=options.resamples)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in paths:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
