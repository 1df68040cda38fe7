"""How a backbone and a method look, the same in every figure of a study: a colour is a backbone, a mark is a method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from analysis.plotting import COLOURS, mark
from analysis.tables import captions
from analysis.tables.places import METHODS, MethodKey
from analysis.tables.scores import Study
from analysis.tables.table import Number

MARKS = {"diffup": "o", "prior_mean": "s", "prototype": "D", "one_step": "^", "insid3": "v", "wrong_names": "x"}
SPARE = "P*Xph<>d8"  # of other methods, in their order
DASHES = {"diffup": "-", "prior_mean": "--", "prototype": ":"}
INK = "0.25"  # of a mark in a legend, which stands for all backbones

Marks = list[dict[str, Any]]
Points = Sequence[tuple[Any, Number]]  # x and y


def home_of(study: Study) -> str:
    """The training backbone that is tested on most backbones; ``""`` without one."""
    tested = Counter(m.trained_on for m in study.methods if m.trained_on and m.variant == "diffup")
    return max(tested, key=lambda name: tested[name], default="")


def backbones(study: Study) -> list[str]:
    """Labels of all backbones, in the order of the tables."""
    return list(dict.fromkeys(captions.labels(study, method)[0] for method in study.methods))


def cost_of(study: Study, backbone: str) -> float:
    """GFLOPs to encode an image with the backbone of this label; nan if unknown."""
    mine = {(m.backbone, m.weights) for m in study.methods if captions.labels(study, m)[0] == backbone}
    cells = study.cells[[pair in mine for pair in zip(study.cells["backbone"], study.cells["weights"])]]
    return float(cells["encode_gflops"].dropna().mean()) if cells["encode_gflops"].notna().any() else float("nan")


def by_cost(study: Study, names: Iterable[str]) -> list[str]:
    """Backbones from the cheapest to the dearest; where a cost is unknown, by their order in the tables."""
    names = list(names)
    costs = {name: cost_of(study, name) for name in names}
    return sorted(names, key=lambda name: costs[name]) if all(c == c for c in costs.values()) else names


def colour_of(study: Study, backbone: str) -> str:
    """A backbone's colour."""
    return COLOURS[backbones(study).index(backbone) % len(COLOURS)]


def mark_of(study: Study, method: MethodKey) -> str:
    """A method's mark."""
    others = [variant for variant in dict.fromkeys(m.variant for m in study.methods) if variant not in MARKS]
    known = MARKS.get(method.variant)
    return known or SPARE[others.index(method.variant) % len(SPARE)]


def is_again(study: Study, method: MethodKey) -> bool:
    """Whether it was re-trained on a backbone that others swap in: its mark is hollow."""
    return bool(method.trained_on) and method.trained_on != home_of(study)


def method_label(study: Study, method: MethodKey) -> str:
    """A method's name in a legend: one for all backbones that it is re-trained on."""
    name = METHODS.get(method.variant, method.variant)
    if not method.trained_on or len(study.trained_on) < 2:
        return name
    return f"{name}, re-trained" if is_again(study, method) else f"{name}, trained on {home_of(study)}"


def style(study: Study, method: MethodKey, *, line: bool = False) -> dict[str, Any]:
    """Colour, mark and dashes of a method on its backbone."""
    colour = colour_of(study, captions.labels(study, method)[0])
    return {
        "color": colour, "marker": mark_of(study, method), "markeredgecolor": colour,
        "markerfacecolor": "none" if is_again(study, method) else colour,
        "linestyle": DASHES.get(method.variant, "-.") if line else "none",
    }  # fmt: skip


def draw_line(axes: Any, points: Points, look: dict[str, Any], *, band: bool = True) -> None:
    """A line with its intervals as a band, or as bars."""
    xs = [x for x, _ in points]
    values, low, high = (np.array([getattr(n, name) for _, n in points]) for name in ("value", "low", "high"))
    axes.plot(xs, values, **look)
    if band:
        axes.fill_between(xs, low, high, color=look["color"], alpha=0.13, linewidth=0)
    else:
        axes.errorbar(xs, values, [values - low, high - values], fmt="none", ecolor=look["color"], elinewidth=1)


def marks_of(series: str, points: Points, panel: str = "") -> Marks:
    """Rows of `Plot.data` for the points of a line."""
    return [mark(series, x, n.value, n.low, n.high, n.keys, panel) for x, n in points]


def add_legend(
    figure: Any, study: Study, drawn: Sequence[MethodKey], *, lines: bool = False, colours: bool = True
) -> None:
    """Below the axes: a column of backbones, each with its colour, and one of methods, each with its mark, in grey."""
    from matplotlib.lines import Line2D

    named: dict[str, Any] = {}
    for method in drawn:
        look = style(study, method, line=lines) | {"color": INK, "markeredgecolor": INK}
        look["markerfacecolor"] = "none" if look["markerfacecolor"] == "none" else INK
        named.setdefault(method_label(study, method), Line2D([], [], **look))
    tested = by_cost(study, dict.fromkeys(captions.labels(study, m)[0] for m in drawn)) if colours else []
    columns = [[(b, Line2D([], [], color=colour_of(study, b), linewidth=4)) for b in tested], list(named.items())]
    depth = max(map(len, columns))  # matplotlib fills columns in turn
    entries = [e for column in columns if column for e in [*column, *[("", Line2D([], [], alpha=0))] * depth][:depth]]
    texts, handles = zip(*(entries if colours else named.items()))
    figure.legend(handles, texts, loc="outside lower center", ncols=2, fontsize=8)
