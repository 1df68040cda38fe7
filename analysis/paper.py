"""Everything for a paper, from a result store: ``diffup paper --results DIR --out DIR``.

Writes one table per question as LaTeX, Markdown, HTML and CSV; figures as PDF and PNG, with the numbers they draw; a
sheet of panels per task (JPEG); ``tables.md`` and ``tables.tex`` with all tables; ``numbers.csv``, which names the
cells and episodes behind every number of every table; ``numbers.tex``, each of them as a LaTeX command;
``references.bib``; ``paper.tex``, a document with all of it, and
``paper.pdf`` where latexmk is installed; ``report.html`` (`analysis.report.page`); and ``files.json``, which names them
all.
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
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from analysis import command
from analysis.build import collect, plots_of
from analysis.files import add_file, replace_files, texts_of
from analysis.macros import macros
from analysis.plotting import COLUMN, Plot
from analysis.published.table import BIB
from analysis.report.gallery import RULE, gallery
from analysis.report.page import page
from analysis.report.sheets import sheets
from analysis.report.summary import answer, units
from analysis.results import load_results
from analysis.tables import captions
from analysis.tables.differences import claims_table
from analysis.tables.latex import Layout, escape_latex, to_latex
from analysis.tables.main import main_table
from analysis.tables.scores import studies
from analysis.tables.select import selected
from analysis.tables.table import FIELDS, Table, to_csv, to_markdown
from diffup.errors import command_line
from diffup.evaluation.stats import RESAMPLES

PAPER = r"""% Compile with latexmk -pdf paper.tex
\documentclass[a4paper@CLASS@]{article}
\usepackage[utf8]{inputenc}
\usepackage[margin=2cm]{geometry}
\usepackage{booktabs}
\usepackage{graphicx}
% Several tables and figures on a page.
\renewcommand{\topfraction}{.95}
\renewcommand{\bottomfraction}{.95}
\renewcommand{\textfraction}{.02}
\renewcommand{\floatpagefraction}{.6}
\renewcommand{\dbltopfraction}{.95}
\renewcommand{\dblfloatpagefraction}{.6}
\setcounter{totalnumber}{9}
\setcounter{topnumber}{9}
\setcounter{dbltopnumber}{9}
\makeatletter  % pages of tables begin at the top
\setlength{\@fptop}{0pt}
\setlength{\@fpsep}{20pt}
\setlength{\@dblfptop}{0pt}
\makeatother
\input{numbers}
\title{@TITLE@}
\author{}
\date{}
\begin{document}
\maketitle
\noindent @WORDS@
\input{tables}
@FIGURES@@REFERENCES@\end{document}
"""
PACKAGES = (
    "% All tables. In your preamble: \\usepackage{booktabs} and \\usepackage{graphicx}; nothing else is needed.\n"
)
CITED = "% Published figures are cited: \\bibliography{references}, where references.bib is beside this file.\n"
FIGURE = r"""\begin{@KIND@}[htbp]
\centering
\includegraphics[width=@WIDTH@,height=.85\textheight,keepaspectratio]{@FILE@}
\caption{@CAPTION@}
\label{fig:@NAME@}
\end{@KIND@}
"""
USE = r"""
report   {out}/report.html
paper    {out}/paper.pdf, where latexmk is installed
yours    \usepackage{{booktabs}}, \usepackage{{graphicx}} and \input{{{out}/numbers}} in the preamble, then
         \input{{{out}/{table}}} and \includegraphics{{{out}/FIGURE}}; labels are tab:TABLE and fig:FIGURE"""
PAGE_INCHES = 6.69  # width of the text on A4 with margins of 2 cm
REFERENCES = "\\bibliographystyle{plain}\n\\bibliography{references}\n"
WIDTH = 130  # characters of a line in a terminal
COMPILE_SECONDS = 300
NO_DATE = {"SOURCE_DATE_EPOCH": "0", "FORCE_SOURCE_DATE": "1"}  # the same results give the same bytes


@dataclass(frozen=True, kw_only=True)
class Kit:
    """What is in the document; the CSV files, ``numbers.csv``, ``numbers.tex`` and the report have everything.

    Attributes:
        layout: of tables.
        columns, rows: patterns of names, as of `analysis.tables.select.selected`; none: all.
        title: of the document; by default the name of the store.
    """

    layout: Layout = field(default_factory=Layout)
    columns: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    title: str = ""


def write_all(
    results: Path,
    out: Path,
    *,
    keys: Iterable[str] | None = None,
    resamples: int = RESAMPLES,
    kit: Kit = Kit(),
) -> list[Path]:
    """Write everything; warnings go to stderr.

    Files that an earlier call wrote to `out` and that this one doesn't, of a table that is no more, are removed.

    Args:
        results: the result store.
        out: folder for the files, made if need be.
        keys: only these cells, e.g. those of one grid; None: all in the store.
        resamples: of the bootstrap.
        kit: what is in the document, and how it is set.

    Raises:
        UserError: there is no such store, nothing in it to write, a name that no table has, or `out` can't be written.
    """
    store = load_results(results, keys=keys)
    parts = collect(store, resamples=resamples)
    tables = [table for part in parts for table in part.tables]
    shown = selected(tables, kit.columns, kit.rows)
    drawn = [plots_of(store, part) for part in parts]
    plots = [plot for made, _ in drawn for plot in made]
    panels = {name + part.suffix: made for part in parts for name, made in sheets(gallery(store, part.study)).items()}
    warnings = [*store.warnings, *(warning for part in parts for warning in part.study.warnings)]
    command.warn(list(dict.fromkeys([*warnings, *(warning for _, more in drawn for warning in more)])))
    contents: dict[str, str | bytes] = {name: text for table in tables for name, text in texts_of(table).items()}
    for table in shown:
        contents |= {f"{table.name}.tex": to_latex(table, kit.layout), f"{table.name}.md": to_markdown(table)}
    cited = any(row.cite for table in shown for row in table.rows)
    inputs = "".join(f"\\input{{{table.name}}}\n" for table in shown)
    title = kit.title or f"DiffUp: {results.resolve().name}"
    contents["tables.md"] = "\n".join(to_markdown(table) for table in shown)
    contents["tables.tex"] = PACKAGES + (CITED if cited else "") + inputs
    contents["numbers.csv"] = numbers(tables)
    contents["numbers.tex"] = macros(tables)
    words = " ".join(
        line for part in parts for line in (*(f"{said}." for said in answer(part.study)), units(part.study))
    )
    contents["paper.tex"] = document(plots, list(panels), cited=cited, kit=replace(kit, title=title), words=words)
    contents["report.html"] = page(store, parts, drawn, title=f"DiffUp report: {results.resolve().name}")
    if cited:
        contents["references.bib"] = BIB.read_bytes()
    for plot in plots:
        contents |= plot.files()
    paths = replace_files(out, contents | {f"{name}.jpg": content for name, content in panels.items()})
    made = compiled(out)
    for path in made:
        add_file(path)
    return [*paths, *made]


def numbers(tables: Sequence[Table]) -> str:
    """The CSV of all tables in one: each number with the cells and episodes that it comes from."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["table", "row", "column", *FIELDS])
    for table in tables:
        depth = 1 + len(table.labels)
        for line in list(csv.reader(io.StringIO(to_csv(table))))[1:]:
            writer.writerow([line[0], " / ".join(line[1:depth]), *line[depth:]])
    return buffer.getvalue()


def document(plots: Sequence[Plot], panels: Sequence[str], *, cited: bool, kit: Kit, words: str) -> str:
    """The document that shows all tables, figures and sheets of panels, below its title and the answer in words."""
    shown = [(f"{plot.name}.pdf", plot.name, plot.inches, plot.caption) for plot in plots]
    for name in panels:
        caption = f"{name.removeprefix('panels_').replace('_', ' ')}, first fold. {RULE}"
        shown.append((f"{name}.jpg", name, PAGE_INCHES, caption))
    figures = []
    for file, name, inches, caption in shown:
        narrow = kit.layout.two_column and inches <= COLUMN
        width = r"\columnwidth" if narrow else f"{min(inches, PAGE_INCHES):.2f}in"
        kind = "figure*" if kit.layout.two_column and not narrow else "figure"
        figures.append(
            FIGURE.replace("@WIDTH@", width).replace("@FILE@", file).replace("@NAME@", name)
            .replace("@CAPTION@", escape_latex(caption)).replace("@KIND@", kind)
        )  # fmt: skip
    text = PAPER.replace("@CLASS@", ",twocolumn" if kit.layout.two_column else "")
    text = text.replace("@TITLE@", escape_latex(kit.title)).replace("@WORDS@", escape_latex(words))
    text = text.replace("@FIGURES@", ("\\clearpage\n" if figures else "") + "".join(figures))
    return text.replace("@REFERENCES@", REFERENCES if cited else "")


def compiled(out: Path) -> list[Path]:
    """``paper.pdf``, where latexmk is installed; TeX's errors go to stderr.

    The document is compiled in a folder of its own, so that only the PDF is added to `out`.
    """
    if (program := shutil.which("latexmk")) is None:
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
            command.warn([f"{out / 'paper.tex'} was not compiled: {error}"])
            return []
        if done.returncode:
            errors = [line for line in done.stdout.splitlines() if line.startswith("!")][:3]
            what = "; ".join(errors) or "see latexmk -pdf paper.tex"
            command.warn([f"{out / 'paper.tex'} does not compile ({what})"])
            return []
        shutil.copy(folder / "paper.pdf", out)
    return [out / "paper.pdf"]


def main_markdown(results: Path, *, keys: Iterable[str] | None = None, resamples: int = RESAMPLES) -> str:
    """The main table and the claims in Markdown that fits a terminal, with how to read them, for scripts to print.

    Raises:
        UserError: there is no such store or no cell in it.
    """
    found = studies(load_results(results, keys=keys), resamples=resamples)
    made = [question(study) for study in found for question in (main_table, claims_table)]
    own = [replace(table, notes=captions.own_notes(table)) for table in made if table is not None]
    return "\n".join(to_markdown(table, fit=WIDTH) for table in own)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0, or 2 for wrong usage."""
    parser = command.parser("paper", "Tables, figures and a report of a result store.")
    names = "NAME,NAME,…"
    parser.add_argument(
        "--columns", default="", metavar=names, help="of the LaTeX and Markdown tables, e.g. '* / mean'"
    )
    parser.add_argument("--rows", default="", metavar=names, help="those with such a label, e.g. 'DiffUp*,prior mean'")
    parser.add_argument("--no-intervals", action="store_true", help="leave intervals out of the LaTeX tables")
    parser.add_argument("--two-column", action="store_true", help="for a paper in two columns")
    parser.add_argument("--title", default="", help="of paper.pdf")
    options = parser.parse_args(arguments)
    layout = Layout(intervals=not options.no_intervals, two_column=options.two_column)
    columns, rows = (
        tuple(name.strip() for name in text.split(",") if name.strip()) for text in (options.columns, options.rows)
    )
    kit = Kit(layout=layout, columns=columns, rows=rows, title=options.title)
    if code := command.run(options, partial(write_all, kit=kit)):
        return code
    table = "main" if (options.out / "main.tex").is_file() else "tables"  # all of them
    print(USE.format(out=options.out, table=table))
    return 0


if __name__ == "__main__":
    sys.exit(command_line(main))
