"""The parts of the report that are more than a table: figures, panels with filters, and the list of all cells."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import pandas as pd

from analysis.plotting import Plot
from analysis.report.gallery import RULE, Shown
from analysis.results import Results

PANEL_BYTES = 9_000_000  # of all panels; base64 makes a third more of it
IMAGE_TYPES = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png"}
AXES = ("task", "fold", "rank", "backbone")
CELL_COLUMNS = (
    "key", "status", "dataset", "fold", "shots", "annotation", "backbone", "variant", "train_seed", "episodes", "miou",
    "seconds", "error",
)  # fmt: skip


def plots_html(plots: Sequence[Plot]) -> str:
    """The figures as drawings that scale."""
    figures = []
    for plot in plots:
        svg = plot.images["svg"].decode()
        svg = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(plot.caption)}"', 1)
        figures.append(f'<figure id="plot-{plot.name}">{_own_ids(svg, plot.name)}<figcaption>{escape(plot.caption)}'
                       "</figcaption></figure>")  # fmt: skip
    return f'<div class="plots">{"".join(figures)}</div>' if figures else "<p>No figure: too few finished cells.</p>"


def _own_ids(svg: str, name: str) -> str:
    """The drawing's ids made its own, since several drawings share the page."""
    for before in ('id="', 'href="#', "url(#"):
        svg = svg.replace(before, f"{before}{name}-")
    return svg


def gallery_html(panels: Sequence[Shown], suffix: str, left: int) -> tuple[str, int]:
    """The panels that fit `left` bytes, with filters, and what is left then."""
    figures, omitted = [], 0
    for panel in panels:
        try:
            content = panel.path.read_bytes()
        except OSError:
            content = b""
        if not content or len(content) > left:
            omitted += 1
            continue
        left -= len(content)
        axes_of = {**{name: str(getattr(panel, name)) for name in AXES}, "iou": f"{panel.iou:.1f}"}
        data = "".join(f' data-{name}="{escape(value)}"' for name, value in axes_of.items())
        kind = IMAGE_TYPES.get(panel.path.suffix, "jpeg")
        text = (
            f"{panel.task}, fold {panel.fold}, {panel.rank}: {panel.method} on {panel.backbone}, episode "
            f"{panel.episode}, IoU {panel.iou:.1f} (cell {panel.key})"
        )
        image = base64.b64encode(content).decode()
        figures.append(
            f'<figure class="panel{suffix}"{data}><img loading="lazy" alt="{escape(text)}" '
            f'src="data:image/{kind};base64,{image}"><figcaption>{escape(text)}</figcaption></figure>'
        )
    axes = {name: list(dict.fromkeys(str(getattr(panel, name)) for panel in panels)) for name in AXES}
    form = _filters(f".panel{suffix}", axes, search=False)
    more = f" {omitted} more are in the store; the page is kept small." if omitted else ""
    return f'<p>{escape(RULE)}{more}</p>{form}<div class="panels">{"".join(figures)}</div>', left


def _filters(items: str, axes: dict[str, list[str]], *, search: bool) -> str:
    controls = []
    for name, values in axes.items():
        options = "".join(f'<option value="{escape(value)}">{escape(value)}</option>' for value in values)
        controls.append(f'<label>{name} <select name="{name}"><option value="">all</option>{options}</select></label>')
    if search:
        controls.append('<label>search <input type="search" name="search" placeholder="any text"></label>')
    return f'<form class="filters" data-items="{escape(items)}">{"".join(controls)}<output></output></form>'


def cells_html(results: Results) -> str:
    """Every cell, those with trouble first; training cells too."""
    trained = results.training.assign(shots="", annotation="training", episodes="", miou=float("nan"))
    names = list(CELL_COLUMNS)
    cells = results.cells
    cells = cells.assign(error=cells["error"].where(cells["error"] != "", cells["undefined"]))
    both = pd.concat([trained[names].astype(object), cells[names].astype(object)], ignore_index=True)
    both = both.assign(_order=both["status"].eq("finished")).sort_values(["_order", "key"], kind="stable")
    head = "".join(f'<th data-column="{i}" class="label">{escape(n)}</th>' for i, n in enumerate(names))
    rows = []
    for row in both[names].itertuples(index=False):
        entries = "".join(_cell_entry(name, value) for name, value in zip(names, row))
        data = f' data-status="{escape(str(row.status))}" data-annotation="{escape(str(row.annotation))}"'
        rows.append(f'<tr class="cell status-{escape(str(row.status))}"{data}>{entries}</tr>')
    axes = {name: sorted(set(both[name].astype(str))) for name in ("status", "annotation")}
    table = f'<table class="du" id="all-cells"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return _filters("tr.cell", axes, search=True) + f'<div class="scroll tall">{table}</div>'


def _cell_entry(name: str, value: object) -> str:
    missing = value is None or value != value
    text = "" if missing else f"{value:.1f}" if isinstance(value, float) else str(value)
    kind = ' class="error"' if name == "error" else ""
    data = f' data-value="{value!r}"' if isinstance(value, float) and not missing else ""
    return f"<td{kind}{data}>{escape(text)}</td>"
