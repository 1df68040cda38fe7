"""Calibration figures: predicted against true IoU, reliability of probabilities, error rate against deviation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.calibration import BINS, Quality, levels, merged, ratio
from analysis.plotting import COLUMN, Plot, canvas, finish, log_ticks, mark
from diffup.evaluation.metrics import STD_BINS, STD_RANGE
from diffup.evaluation.stats import LEVEL, Floats

FEWEST_EPISODES, FEWEST_PIXELS = 5, 1e-4  # a bin with fewer (of all pixels: a smaller share) is not drawn
STD_MERGED = 8  # levels of the deviation to one point
SMALL = 7  # points: of text beside axes that share a column of a paper

Line = tuple[Floats, tuple[Floats, Floats, Floats]]  # x; value, low and high


@dataclass(frozen=True, eq=False)
class Curve:
    """A line of each panel: the runs (folds and training seeds) of one backbone, in the backbone's colour."""

    label: str
    runs: Sequence[Quality]
    colour: str


def _ratio(above: Sequence[Floats], below: Sequence[Floats], shown: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """Value and interval of a ratio of sums over runs, from [1 + B, L] each, at the levels that are shown."""
    top, bottom = np.sum(above, axis=0)[:, shown], np.sum(below, axis=0)[:, shown]
    if not shown.any():
        return (np.empty(0),) * 3
    found = ratio(top, bottom)  # nan where a resample lacks a level
    low, high = np.nanquantile(found[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return found[0], low, high


def calibration_plot(curves: Sequence[Curve], title: str, name: str) -> Plot:
    """Small multiples as wide as a column of a paper: a row per curve, the three panels beside each other."""
    panels: tuple[tuple[str, Callable[[Curve], Line], str, str], ...] = (
        ("predicted IoU", _iou_line, "predicted IoU", "true IoU"),
        ("probability", _reliability_line, "probability", "foreground"),
        ("deviation", _error_line, "std (UAPF)", "wrong pixels"),
    )
    marks: list[dict[str, Any]] = []
    with canvas(3, width=COLUMN / 3, height=1.3, rows=len(curves), sharex="col") as (figure, axes_of):
        grid = np.reshape(axes_of, (len(curves), 3))
        for row, curve in zip(grid, curves):
            for axes, (panel, line, _, beside) in zip(row, panels):
                x, (value, low, high) = line(curve)
                axes.plot(x, value, color=curve.colour, marker="o", linewidth=1.2, markersize=2.5)
                axes.fill_between(x, low, high, color=curve.colour, alpha=0.18, linewidth=0)
                axes.set_ylabel(beside, fontsize=SMALL, labelpad=3)
                axes.tick_params(labelsize=SMALL, length=2, pad=1.5)
                for at, y, bottom, top in zip(x.tolist(), value.tolist(), low.tolist(), high.tolist()):
                    marks.append(mark(curve.label, at, y, bottom, top, (), panel))
            for axes in row[:2]:
                axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=0.8, zorder=0)
                axes.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
            row[2].set(xscale="log", ylim=(0, None))
            log_ticks(row[2], (0.01, 0.03, 0.1, 0.3, 1.0), *row[2].get_xlim())
            row[0].set_title(curve.label, loc="left", color=curve.colour, fontsize=8, pad=3, weight="bold")
        for axes, (_, _, below, _) in zip(grid[-1], panels):
            axes.set_xlabel(below, fontsize=SMALL)
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
