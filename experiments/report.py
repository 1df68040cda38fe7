"""After a grid: tables written, the main one printed, and where everything lies."""

from __future__ import annotations

import shlex
from pathlib import Path


def print_tables(results: Path) -> None:
    """Write all tables below `results`, print the main one and name the files."""
    from analysis.paper import write_all

    out = results / "tables"
    written = write_all(results, out)
    markdown = [path for path in written if path.suffix == ".md"]
    main = [path for path in markdown if "main" in path.stem] or markdown
    if main:
        print(f"\n{main[0].read_text().rstrip()}\n")
    print(f"tables   {out}  ({', '.join(sorted(path.name for path in markdown))}; also .tex and .csv)")
    print(f"results  {results}")
    database = results / "mlflow.db"
    if database.is_file():
        print(f"runs     mlflow ui --backend-store-uri {shlex.quote(f'sqlite:///{database}')}", flush=True)
