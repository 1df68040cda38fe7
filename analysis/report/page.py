"""One page that a group can read: ``diffup report --results DIR --out report.html``.

The answer in words with one figure and three episodes, then claims, all tables (sortable, intervals on hover or tap),
figures, panels in pages with filters, every cell with its status, and provenance. The page is one file and loads
nothing from the network; it can be read without scripts too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from analysis import command
from analysis.build import Collected, Drawn, collect, plots_of
from analysis.files import write_files
from analysis.report.gallery import gallery
from analysis.report.parts import PANEL_BYTES, cells_html, gallery_html, plots_html
from analysis.report.provenance import facts
from analysis.report.summary import STATUSES, summary_html
from analysis.results import Results, load_results
from analysis.tables import captions
from analysis.tables.html import STYLE, to_html
from analysis.tables.places import grouped
from analysis.tables.table import Table
from diffup.evaluation.stats import RESAMPLES

ASSETS = Path(__file__).parent / "assets"
FEW = 5  # warnings that are shown unfolded
TAP = "Hover over a figure, or tap it, for its interval and its cells; click a header to sort."


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
    galleries = [gallery(results, part.study) for part in parts]
    summary, shown, left = summary_html(results, parts, drawn, galleries, PANEL_BYTES)
    sections = [("summary", "Answer", summary)]
    claims = [table for part in parts for table in part.tables if table.name.startswith("claims")]
    notes = [
        *results.warnings,
        *(w for part in parts for w in part.study.warnings),
        *(w for _, ws in drawn for w in ws),
    ]
    if claims:
        sections.append(("verdicts", "Claims", "".join(map(_table, claims))))
    for part, (plots, _), panels in zip(parts, drawn, galleries, strict=True):
        name = f" · {part.name}" if len(parts) > 1 else ""
        tables = "".join(_table(table) for table in part.tables if table not in claims)
        sections.append((f"tables{part.suffix}", f"Tables{name}", f"<p>{TAP}</p>{tables}"))
        others = [plot for plot in plots if plot not in shown]
        sections.append((f"figures{part.suffix}", f"Figures{name}", plots_html(others)))
        if panels:
            html, left = gallery_html(panels, part.suffix, left)
            sections.append((f"panels{part.suffix}", f"Panels{name}", html))
    sections.append(("cells", "Cells", _totals(results) + _warnings(notes) + cells_html(results)))
    sections.append(("provenance", "Provenance", _provenance(results, parts)))
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


def _totals(results: Results) -> str:
    cells, trained = results.cells, results.training
    hours = (cells["seconds"].sum() + trained["seconds"].sum()) / 3600
    tiles = [
        (str(len(cells)), "evaluation cells"),
        *((str(count), name) for name, count in Counter(cells["status"]).items()),
        (f"{(trained['status'] == 'finished').sum()} of {len(trained)}", "checkpoints trained"),
        (f"{hours:.1f}", "hours of computing"),
        (f"{int(cells[cells['status'] == 'finished']['episodes'].sum()):,}", "episodes scored"),
    ]
    boxes = "".join(
        f'<div class="fact{" bad" if name in STATUSES else ""}"><b>{value}</b><span>{name}</span></div>'
        for value, name in tiles
    )
    return f'<div class="facts">{boxes}</div>'


def _table(table: Table) -> str:
    """A table without the notes that all of them share: these are once on the page."""
    return f'<div class="scroll">{to_html(replace(table, notes=captions.own_notes(table)))}</div>'


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    distinct = list(dict.fromkeys(warnings))
    items = "".join(f"<li>{escape(warning)}</li>" for warning in distinct)
    opened = " open" if len(distinct) <= FEW else ""
    return f'<details class="warnings"{opened}><summary>Left out: {len(distinct)}</summary><ul>{items}</ul></details>'


def _provenance(results: Results, parts: Sequence[Collected]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts(results).items())
    named = grouped(
        (note, table.name)
        for part in parts
        for table in part.tables
        for note in table.notes
        if captions.is_shared(note)
    )
    notes = "".join(f"<dt>{escape(', '.join(names))}</dt><dd>{escape(note)}</dd>" for note, names in named.items())
    return f"<dl>{items}</dl><details><summary>By table</summary><dl>{notes}</dl></details>"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0, or 2 for wrong usage."""
    parser = command.parser("report", "One page of a result store.", out="FILE")
    parser.add_argument("--title", default="", help="of the page")
    options = parser.parse_args(arguments)
    return command.run(options, lambda *paths, **more: [write_report(*paths, title=options.title, **more)])
