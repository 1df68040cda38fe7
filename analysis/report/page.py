"""One page that a group can read: ``python -m analysis report --results DIR --out report.html``.

Summary, all tables (sortable, intervals on hover), figures, panels with filters, every cell with its status, and
provenance. The page is one file and loads nothing from the network; it can be read without scripts too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from analysis import command
from analysis.build import Collected, Drawn, collect, plots_of
from analysis.files import write_files
from analysis.report.gallery import gallery
from analysis.report.parts import PANEL_BYTES, cells_html, gallery_html, plots_html
from analysis.report.provenance import facts
from analysis.results import Results, load_results
from analysis.stats import RESAMPLES
from analysis.tables.html import STYLE, to_html
from analysis.tables.table import Table

ASSETS = Path(__file__).parent / "assets"
STATUSES = ("finished", "failed", "damaged", "unfinished")


def write_report(
    results: Path, out: Path, *, keys: Iterable[str] | None = None, resamples: int = RESAMPLES, title: str = ""
) -> Path:
    """Write the page; warnings go to stderr and into it.

    Args:
        results: the result store.
        out: the file, e.g. ``report.html``.
        keys: only these cells; None: all.
        resamples: of the bootstrap.
        title: of the page; by default the name of the store.

    Raises:
        UserError: there is no such store, nothing in it, or `out` can't be written.
    """
    store = load_results(results, keys=keys)
    parts = collect(store, resamples=resamples)
    drawn = [plots_of(store, part) for part in parts]
    text = page(store, parts, drawn, title=title or f"DiffUp report: {results.resolve().name}")
    command.warn([*store.warnings, *(warning for part in parts for warning in part.study.warnings)])
    return write_files(out.parent, {out.name: text})[0]


def page(results: Results, parts: Sequence[Collected], drawn: Sequence[Drawn], *, title: str) -> str:
    """The whole page; `drawn` is `analysis.build.plots_of` of each part."""
    sections = [("summary", "Summary", _summary(results, parts))]
    left = PANEL_BYTES
    for part, (plots, warnings) in zip(parts, drawn, strict=True):
        name = f" · {part.name}" if len(parts) > 1 else ""
        tables = "".join(_table(table) for table in part.tables if not _claims(table))
        sections.append((f"tables{part.suffix}", f"Tables{name}", tables + _warnings(warnings)))
        sections.append((f"figures{part.suffix}", f"Figures{name}", plots_html(plots)))
        panels = gallery(results, part.study)
        if panels:
            html, left = gallery_html(panels, part.suffix, left)
            sections.append((f"panels{part.suffix}", f"Panels{name}", html))
    sections += [("cells", "Cells", cells_html(results)), ("provenance", "Provenance", _provenance(results))]
    links = "".join(f'<a href="#{escape(anchor)}">{escape(name)}</a>' for anchor, name, _ in sections)
    body = "".join(f'<section id="{escape(a)}"><h2>{escape(n)}</h2>{html}</section>' for a, n, html in sections)
    style, script = ((ASSETS / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title>\n<style>{style}{STYLE}</style></head><body>\n'
        f"<header><h1>{escape(title)}</h1></header><nav><div>{links}</div></nav>\n<main>{body}</main>\n"
        f"<script>{script}</script></body></html>\n"
    )


def _summary(results: Results, parts: Sequence[Collected]) -> str:
    cells, trained = results.cells, results.training
    status = Counter(cells["status"])
    hours = (cells["seconds"].sum() + trained["seconds"].sum()) / 3600
    tiles = [
        (str(len(cells)), "evaluation cells"),
        *((str(status[name]), name) for name in STATUSES),
        (f"{(trained['status'] == 'finished').sum()} of {len(trained)}", "checkpoints trained"),
        (f"{hours:.1f}", "hours of computing"),
        (f"{int(cells[cells['status'] == 'finished']['episodes'].sum()):,}", "episodes scored"),
    ]
    bad = {name for name in STATUSES[1:] if status[name]}
    boxes = "".join(
        f'<div class="fact{" bad" if name in bad else ""}"><b>{value}</b><span>{name}</span></div>'
        for value, name in tiles
    )
    claims = [table for part in parts for table in part.tables if _claims(table)]
    notes = [*results.warnings, *(warning for part in parts for warning in part.study.warnings)]
    return f'<div class="facts">{boxes}</div>' + "".join(map(_table, claims)) + _warnings(notes)


def _claims(table: Table) -> bool:
    """Whether it belongs in the summary."""
    return table.name.startswith("claims")


def _table(table: Table) -> str:
    return f'<div class="scroll">{to_html(table)}</div>'


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(warning)}</li>" for warning in dict.fromkeys(warnings))
    return f'<div class="warnings"><b>Left out</b><ul>{items}</ul></div>'


def _provenance(results: Results) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts(results).items())
    return f"<dl>{items}</dl>"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0, or 2 for wrong usage."""
    parser = command.parser("report", "One page of a result store.", out="FILE")
    parser.add_argument("--title", default="", help="of the page")
    options = parser.parse_args(arguments)
    return command.run(options, lambda *paths, **more: [write_report(*paths, title=options.title, **more)])
