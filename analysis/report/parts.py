"""The parts of the report that are more than a table: figures, panels with filters, and the list of all cells."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import pandas as pd

from analysis.plotting import Plot
from analysis.report.gallery import RULE, Shown
from analysis.report.strips import examples, read_example, to_jpeg
from analysis.results import Results

PANEL_BYTES = 9_000_000  # of all panels; base64 makes a third more of it
CALIBRATION = "quality_"  # begins the names of the figures of calibration
PAGE = 6  # episodes on a page of the gallery
SHARED = "supports, query and ground truth"
AXES = ("task", "fold", "rank", "backbone")
CELL_COLUMNS = (
    "key", "status", "dataset", "fold", "shots", "annotation", "backbone", "variant", "train_seed", "episodes", "miou",
    "seconds", "error",
)  # fmt: skip


def plots_html(plots: Sequence[Plot]) -> str:
    """The figures, those of calibration folded."""
    folded = [plot for plot in plots if plot.name.startswith(CALIBRATION)]
    shown = "".join(plot_html(plot) for plot in plots if plot not in folded)
    more = "".join(map(plot_html, folded))
    html = f'<div class="plots">{shown}</div>' if shown else ""
    if more:
        html += f'<details><summary>Calibration, {len(folded)} tasks</summary><div class="plots">{more}</div></details>'
    return html or "<p>No figure here: too few finished cells.</p>"


def plot_html(plot: Plot) -> str:
    """A figure as a drawing that scales, at most as large as it was made for."""
    svg, caption = plot.images["svg"].decode(), escape(plot.caption)
    svg = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{caption}"', 1)
    body = f"{_own_ids(svg, plot.name)}<figcaption>{caption}</figcaption>"
    return f'<figure id="plot-{plot.name}">{body}</figure>'


def _own_ids(svg: str, name: str) -> str:
    """The drawing's ids made its own, since several drawings share the page."""
    for before in ('id="', 'href="#', "url(#"):
        svg = svg.replace(before, f"{before}{name}-")
    return svg


def gallery_html(panels: Sequence[Shown], suffix: str, left: int) -> tuple[str, int]:
    """The episodes that fit `left` bytes, a few to a page, with filters, and what is left then."""
    shown, omitted = [], 0
    for group in examples(panels):
        html, size, skipped = example_html(group, suffix, left)
        left -= size
        omitted += skipped
        shown.append(html)
    axes = {name: list(dict.fromkeys(str(getattr(panel, name)) for panel in panels)) for name in AXES}
    form = _filters(f".panel{suffix}", axes, search=False)
    more = f" {omitted} more are in the store; the page is kept small." if omitted else ""
    pager = (
        '<div class="pager" hidden><button type="button">previous</button> <output></output> '
        '<button type="button">next</button></div>'
    )
    body = f'<div class="examples" data-page="{PAGE}">{"".join(shown)}</div>'
    return f"<p>{escape(RULE)}{more}</p>{form}{pager}{body}", left


def example_html(group: Sequence[Shown], suffix: str, left: int) -> tuple[str, int, int]:
    """An episode: supports, query and truth once, then each panel; its bytes, and how many panels are left out.

    Panels beyond `left` bytes are left out, and those that can't be read.
    """
    example = read_example(group) if left > 0 else None
    if example is None:
        return "", 0, len(group)
    first, figures, size = example.first, [], 0
    if example.shared is not None:
        content = to_jpeg(example.shared)
        size += len(content)
        share = min(1.0, example.shared.width / max(image.width for _, image in example.panels))  # tiles of one size
        picture = _image(content, f"{_place(first)}: {SHARED}")
        figures.append(f'<figure class="shared" style="max-width: {share:.1%}">{picture}</figure>')
    omitted = example.missing
    for panel, image in example.panels:
        content = to_jpeg(image)
        if size + len(content) > left:
            omitted += 1
            continue
        size += len(content)
        axes_of = {**{name: str(getattr(panel, name)) for name in AXES}, "iou": f"{panel.iou:.1f}"}
        data = "".join(f' data-{name}="{escape(value)}"' for name, value in axes_of.items())
        text = f"{panel.method} on {panel.backbone}: IoU {panel.iou:.1f}"
        figures.append(
            f'<figure class="panel{suffix}"{data}>{_image(content, f"{_place(panel)}: {text}")}'
            f"<figcaption>{escape(text)} <small>cell {escape(panel.key)}</small></figcaption></figure>"
        )
    if omitted == len(group):
        return "", left, omitted  # nothing that follows would fit either
    kind = "example few" if len(example.panels) < 3 else "example"
    return f'<article class="{kind}"><h3>{escape(_place(first))}</h3>{"".join(figures)}</article>', size, omitted


def _place(panel: Shown) -> str:
    return f"{panel.task}, fold {panel.fold}, {panel.rank}: episode {panel.episode}"


def _image(content: bytes, text: str) -> str:
    return (
        f'<img loading="lazy" alt="{escape(text)}" src="data:image/jpeg;base64,{base64.b64encode(content).decode()}">'
    )


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
