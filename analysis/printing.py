"""Tables on the terminal, at the end of a study."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.tables.table import Table

ESCAPED = re.compile(r"\\(?=[|*`<\\])")  # Markdown's, which a terminal would show


def print_tables(results: Path, keys: list[str]) -> None:
    """Write tables, figures and the report of all cells in `results`; print main table and claims of the cells `keys`.

    All cells: those of another grid in the same folder stay in its tables.
    """
    from analysis.paper import main_markdown, write_all

    out = results / "tables"
    written = write_all(results, out)
    print(f"\n{re.sub(ESCAPED, '', main_markdown(results, keys=keys)).rstrip()}\n")
    names = sorted(path.name for path in written if path.suffix == ".md")
    print(f"tables   {out}  ({', '.join(names)}; also .tex, .html and .csv), of all cells in the folder")
    print(f"report   {out / 'report.html'}")


def printed(make: Callable[[Path, list[str]], Table | Iterable[Table]]) -> Callable[[Path, list[str]], None]:
    """A report that prints the tables that `make` makes of a result store and the keys of cells."""

    def report(results: Path, keys: list[str]) -> None:
        from analysis.tables.table import Table, to_markdown

        made = make(results, keys)
        for table in [made] if isinstance(made, Table) else made:
            print(f"\n{re.sub(ESCAPED, '', to_markdown(table)).rstrip()}\n", flush=True)

    return report
