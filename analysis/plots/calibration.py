"""Calibration figures: predicted against true IoU, reliability of probabilities, error rate against deviation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.calibration import BINS, Quality, levels, merged, ratio
from analysis.plotting import COLOURS, MARKERS, Plot, canvas, finish, log_ticks, mark
from analysis.stats import LEVEL, Floats
from diffup.evaluation.metrics import STD_BINS, STD_RANGE

FEWEST_EPISODES, FEWEST_PIXELS = 5, 1e-4  # a bin with fewer (of all pixels: a smaller share) is not drawn
STD_MERGED = 8  # levels of the deviation to one point

Line = tuple[Floats, tuple[Floats, Floats, Floats]]  # x; value, low and high


@dataclass(frozen=True, eq=False)
class Curve:
    """A line of each panel: the runs (folds and training seeds) of one backbone."""

    label: str
    runs: Sequence[Quality]


def _ratio(above: Sequence[Floats], below: Sequence[Floats], shown: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """Value and interval of a ratio of sums over runs, from [1 + B, L] each, at the levels that are shown."""
    top, bottom = np.sum(above, axis=0)[:, shown], np.sum(below, axis=0)[:, shown]
    if not shown.any():
        return (np.empty(0),) * 3
    found = ratio(top, bottom)  # nan where a resample lacks a level
    low, high = np.nanquantile(found[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return found[0], low, high


def calibration_plot(curves: Sequence[Curve], title: str, name: str) -> Plot:
    """The three panels."""
    marks: list[dict[str, Any]] = []
    with canvas(3, width=3.7, height=4.4) as (figure, (iou, reliability, error)):
        for number, curve in enumerate(curves):
            style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
            for axes, panel, line in (
                (iou, "predicted IoU", _iou_line),
                (reliability, "probability", _reliability_line),
                (error, "deviation", _error_line),
            ):
                x, (value, low, high) = line(curve)
                axes.plot(x, value, label=curve.label, linewidth=1.4, markersize=3.5, **style)
                axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
                for at, y, bottom, top in zip(x.tolist(), value.tolist(), low.tolist(), high.tolist()):
                    marks.append(mark(curve.label, at, y, bottom, top, (), panel))
        for axes, below, beside in (
            (iou, "predicted IoU", "true IoU"),
            (reliability, "predicted probability of foreground", "share of foreground"),
        ):
            axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=0.8, zorder=0)
            axes.set(xlabel=below, ylabel=beside, xlim=(0, 1), ylim=(0, 1), aspect="equal")
        error.set(xlabel="UAPF's standard deviation", ylabel="share of wrong pixels", xscale="log", ylim=(0, None))
        log_ticks(error, (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0), *error.get_xlim())
        error.set_box_aspect(1)
        for axes, text in ((iou, "Predicted IoU (DQM)"), (reliability, "Probabilities"), (error, "Deviation (UAPF)")):
            axes.set_title(text)
        handles, labels = iou.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(curves)))
        return finish(figure, name, title, marks)


def _iou_line(curve: Curve) -> Line:
    inside = [levels(run.predicted_iou, BINS)[:, None] == np.arange(BINS) for run in curve.runs]
    episodes = [run.weights @ bins for run, bins in zip(curve.runs, inside)]
    true = [run.weights @ (bins * run.true_iou[:, None]) for run, bins in zip(curve.runs, inside)]
    predicted = [run.weights @ (bins * run.predicted_iou[:, None]) for run, bins in zip(curve.runs, inside)]
    shown = np.sum(episodes, axis=0)[0] >= FEWEST_EPISODES
    return _ratio(predicted, episodes, shown)[0], _ratio(true, episodes, shown)


def _reliability_line(curve: Curve) -> Line:
    count, positive, total = (
        [merged(run.total(name), BINS) for run in curve.runs] for name in ("prob_count", "prob_positive", "prob_sum")
    )
    shown = _enough(count)
    return _ratio(total, count, shown)[0], _ratio(positive, count, shown)


def _error_line(curve: Curve) -> Line:
    points = STD_BINS // STD_MERGED
    count, wrong = ([merged(run.total(name), points) for run in curve.runs] for name in ("std_count", "std_wrong"))
    low, high = STD_RANGE
    middle = low * (high / low) ** ((np.arange(points) + 0.5) / points)
    shown = _enough(count)
    return middle[shown], _ratio(wrong, count, shown)


def _enough(count: Sequence[Floats]) -> NDArray[np.bool_]:
    pixels = np.sum(count, axis=0)[0]
    shown: NDArray[np.bool_] = pixels > FEWEST_PIXELS * pixels.sum()
    return shown
