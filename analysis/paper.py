"""Everything for a paper, from a result store: ``python -m analysis.paper --results DIR --out DIR``.

Writes one table per question as LaTeX, Markdown, HTML and CSV; figures as PDF and PNG, with the numbers they draw; a
sheet of panels a task (JPEG); ``tables.md`` and ``tables.tex`` with all tables; ``numbers.csv``, which names the cells
and episodes behind every number of every table; ``references.bib``; ``paper.tex``, a document with all of it, and
``paper.pdf`` where latexmk is installed; ``report.html`` (`analysis.report.page`); and ``files.json``, which
names them all.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from analysis.command import add_file, command, load, replace_files, texts_of, warn
from analysis.plotting import Plot
from analysis.report.gallery import RULE, gallery, sheets
from analysis.report.page import page
from analysis.results import Results
from analysis.stats import RESAMPLES
from analysis.tables.build import Collected, collect, plots_of
from analysis.tables.claims import claims_table
from analysis.tables.latex import escape_latex
from analysis.tables.main import main_table
from analysis.tables.scores import studies
from analysis.tables.table import Table, to_csv, to_markdown
from diffup.errors import command_line

PAPER = r"""% Compile with latexmk -pdf paper.tex
\documentclass[a4paper]{article}
\usepackage[utf8]{inputenc}
\usepackage[landscape,margin=2cm]{geometry}
\usepackage{booktabs}
\usepackage{graphicx}
\begin{document}
\input{tables}
@FIGURES@@REFERENCES@\end{document}
"""
PACKAGES = (
    "% All tables. In your preamble: \\usepackage{booktabs} and \\usepackage{graphicx}; nothing else is needed.\n"
)
CITED = "% Published figures are cited: \\bibliography{references}, where references.bib is beside this file.\n"
FIGURE = r"""\begin{figure}[htbp]
\centering
\includegraphics[width=@WIDTH@\textwidth,height=.75\textheight,keepaspectratio]{@NAME@.pdf}
\caption{@CAPTION@}
\label{fig:@NAME@}
\end{figure}
"""
REFERENCES = "\\bibliographystyle{plain}\n\\bibliography{references}\n"
BIB = Path(__file__).parent / "published" / "references.bib"
WIDTH = 130  # characters of a line in a terminal
COMPILE_SECONDS = 300
NO_DATE = {"SOURCE_DATE_EPOCH": "0", "FORCE_SOURCE_DATE": "1"}  # the same results give the same bytes


def all_tables(results: Results, *, resamples: int = RESAMPLES) -> tuple[list[Table], list[str]]:
    """All tables that the store can fill, and warnings about what was left out of them.

    Studies (data sets, protocols) are never mixed in a table; where there are several, names carry the study's.

    Raises:
        UserError: there is no evaluation cell.
    """
    parts = list(collect(results, resamples=resamples))
    return [table for part in parts for table in part.tables], _warnings(results, parts)


def write_all(results: Path, out: Path, *, keys: Iterable[str] | None = None, resamples: int = RESAMPLES) -> list[Path]:
    """Write everything; warnings go to stderr. Arguments and errors: `analysis.command.Write`.

    Files that an earlier call wrote to `out` and that this one doesn't, of a table that is no more, are removed.
    """
    store = load(results, keys)
    parts = list(collect(store, resamples=resamples))
    tables = [table for part in parts for table in part.tables]
    drawn = [plots_of(store, part) for part in parts]
    plots = [plot for made, _ in drawn for plot in made]
    panels = {name + part.suffix: made for part in parts for name, made in sheets(gallery(store, part.study)).items()}
    warnings = [*_warnings(store, parts), *(warning for _, more in drawn for warning in more)]
    warn(list(dict.fromkeys(warnings)))
    texts = {name: text for table in tables for name, text in texts_of(table).items()}
    texts["tables.md"] = "\n".join(to_markdown(table) for table in tables)
    cited = any(row.cite for table in tables for row in table.rows)
    head = PACKAGES + (CITED if cited else "")
    texts["tables.tex"] = head + "".join(f"\\input{{{table.name}}}\n" for table in tables)
    texts["numbers.csv"] = numbers(tables)
    texts["paper.tex"] = document(tables, plots, list(panels))
    texts["report.html"] = page(store, parts, drawn, title=f"DiffUp report: {results.resolve().name}")
    if cited:
        texts["references.bib"] = BIB.read_text(encoding="utf-8")
    contents = {name: text.encode() for name, text in texts.items()}
    for plot in plots:
        contents |= plot.files()
    paths = replace_files(out, contents | {f"{name}.jpg": content for name, content in panels.items()})
    for path in (made := compiled(out)):
        add_file(path)
    return [*paths, *made]


def numbers(tables: Sequence[Table]) -> str:
    """All tables' CSV below one another: what stands where, and the cells and episodes that it comes from."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    rows = []
    for table in tables:
        for row in csv.DictReader(io.StringIO(to_csv(table))):
            depth = len(table.labels)
            place = " / ".join(list(row.values())[1 : 1 + depth])
            rows.append([row["table"], place, *list(row.values())[1 + depth :]])
    fields = ["column", "value", "low", "high", "std", "seeds", "episodes", "best", "second", "excludes_0", "p", "text"]
    writer.writerow(["table", "row", *fields, "keys"])
    writer.writerows(rows)
    return buffer.getvalue()


def document(tables: Sequence[Table], plots: Sequence[Plot], panels: Sequence[str]) -> str:
    """The document that shows all tables, figures and sheets of panels."""
    figures = []
    for plot in plots:
        wide = "1" if plot.data["panel"].nunique() > 1 else ".6"
        figure = FIGURE.replace("@WIDTH@", wide).replace("@NAME@", plot.name)
        figures.append(figure.replace("@CAPTION@", escape_latex(plot.caption)))
    for name in panels:
        figure = FIGURE.replace("@WIDTH@", ".9").replace("@NAME@.pdf", f"{name}.jpg").replace("@NAME@", name)
        caption = f"{name.removeprefix('panels_').replace('_', ' ')}, first fold. {RULE}"
        figures.append(figure.replace("@CAPTION@", escape_latex(caption)))
    cited = any(row.cite for table in tables for row in table.rows)
    text = PAPER.replace("@FIGURES@", ("\\clearpage\n" if figures else "") + "".join(figures))
    return text.replace("@REFERENCES@", REFERENCES if cited else "")


def compiled(out: Path) -> list[Path]:
    """``paper.pdf``, where latexmk is installed; what TeX says when it fails goes to stderr.

    The document is compiled in a folder of its own, so that nothing but the PDF is left in `out`.
    """
    program = shutil.which("latexmk")
    if program is None:
        return []
    with tempfile.TemporaryDirectory(prefix="diffup-paper-") as made:
        folder = Path(made)
        for path in out.iterdir():
            if path.suffix in (".tex", ".bib", ".pdf", ".jpg") and path.name != "paper.pdf":
                shutil.copy(path, folder)
        asked = [program, "-norc", "-pdf", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
        try:
            done = subprocess.run(
                asked, cwd=folder, capture_output=True, text=True, timeout=COMPILE_SECONDS, env=os.environ | NO_DATE
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            warn([f"{out / 'paper.tex'} was not compiled: {error}"])
            return []
        if done.returncode:
            errors = [line for line in done.stdout.splitlines() if line.startswith("!")]
            warn([f"{out / 'paper.tex'} does not compile ({'; '.join(errors[:3]) or 'see latexmk -pdf paper.tex'})"])
            return []
        shutil.copy(folder / "paper.pdf", out)
    return [out / "paper.pdf"]


def main_markdown(results: Path, *, keys: Iterable[str] | None = None, resamples: int = RESAMPLES) -> str:
    """The main table and the claims in Markdown that fits a terminal, for scripts to print.

    Raises:
        UserError: there is no such store or no cell in it.
    """
    found = studies(load(results, keys), resamples=resamples)
    made = [question(study) for study in found for question in (main_table, claims_table)]
    return "\n".join(to_markdown(table, notes=False, fit=WIDTH) for table in made if table is not None)


def _warnings(results: Results, parts: Sequence[Collected]) -> list[str]:
    return [*results.warnings, *(warning for part in parts for warning in part.study.warnings)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0, or 2 for wrong usage."""
    return command("analysis.paper", "Tables, figures and a report of a result store.", write_all, arguments)


if __name__ == "__main__":
    sys.exit(command_line(main))
