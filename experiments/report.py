"""After a grid: tables written, the main one printed, and where everything lies."""

from __future__ import annotations

import shlex
from pathlib import Path

from cluster.tracking.client import sqlite_uri, tracking_uri


def print_tables(results: Path, keys: list[str]) -> None:
    """Write tables, figures and the report of all cells in `results`; print main table and claims of the cells `keys`.

    All cells: those of another grid in the same folder stay in its tables.
    """
    from analysis.paper import main_markdown, write_all

    out = results / "tables"
    written = write_all(results, out)
    print(f"\n{main_markdown(results, keys=keys).rstrip()}\n")
    names = sorted(path.name for path in written if path.suffix == ".md")
    print(f"tables   {out}  ({', '.join(names)}; also .tex, .html and .csv), of all cells in the folder")
    print(f"report   {out / 'report.html'}")
    print(f"results  {results}")
    database = results / "mlflow.db"
    if database.is_file():
        print(f"runs     mlflow ui --backend-store-uri {shlex.quote(tracking_uri(sqlite_uri(database)))}", flush=True)
