"""Figures of what a mean hides: differences of single classes, and how intervals shrink with episodes."""

from __future__ import annotations

import numpy as np

from analysis.plots.looks import Marks, colour_of, home_of, marks_of
from analysis.plotting import Plot, canvas, finish, log_ticks, mark
from analysis.tables import captions
from analysis.tables.places import grouped
from analysis.tables.rivals import baseline, called, main_task
from analysis.tables.scores import Run, Study
from analysis.tables.table import Number, defined, to_number
from diffup.evaluation.stats import EpisodeCounts, align, bootstrap, per_class

STEP_SIZES = (25, 50, 100, 200, 400, 700, 1000, 1500, 2000, 3000, 5000)


def classes_plot(study: Study, names: dict[int, str]) -> Plot | None:
    """IoU of each class, DiffUp minus the best without training, on each backbone; folds and training seeds together.

    Args:
        study: the study.
        names: of its classes.
    """
    home, task = home_of(study), main_task(study)
    rival = baseline(study, task)
    methods = {
        (m.variant, captions.labels(study, m)[0]): m
        for m in study.shown
        if not m.control and m.trained_on in ("", home)
    }
    gaps: dict[str, dict[int, Number]] = {}
    for backbone in [b for v, b in methods if v == "diffup" and (rival, b) in methods]:
        ours, theirs = (study.runs.get((methods[v, backbone], task), {}) for v in ("diffup", rival))
        found: dict[int, Number] = {}
        for fold in sorted(set(ours) & set(theirs)):
            found |= _class_gaps(study, list(ours[fold].values()), next(iter(theirs[fold].values())), fold)
        if found := {c: gap for c, gap in found.items() if defined(gap)}:
            gaps[backbone] = found
    if not gaps:
        return None
    highest = {c: max(g[c].value for g in gaps.values() if c in g) for c in set().union(*gaps.values())}
    classes = sorted(highest, key=lambda c: highest[c])
    marks: Marks = []
    with canvas(len(gaps), width=2.6, height=0.9 + 0.19 * len(classes), sharey=True, sharex=True) as (figure, axes):
        for panel, (backbone, found) in zip(axes, gaps.items()):
            rows = [c for c in classes if c in found]
            values, low, high = (np.array([getattr(found[c], n) for c in rows]) for n in ("value", "low", "high"))
            panel.axvline(0, color="0.4", linewidth=0.8)
            panel.errorbar(
                values, [classes.index(c) for c in rows], xerr=[values - low, high - values], fmt="o",
                color=colour_of(study, backbone), elinewidth=1, markersize=4,
            )  # fmt: skip
            panel.set(title=backbone)
            marks += marks_of("difference", [(names.get(c, str(c)), found[c]) for c in rows], backbone)
        figure.supxlabel(f"DiffUp − {called(rival)} (IoU points)", fontsize=9)
        axes[0].set_yticks(range(len(classes)), [names.get(c, str(c)) for c in classes])
        where = f"{captions.source(study)}{captions.trained_on(study)}"
        return finish(figure, "figure_classes", f"IoU of each class, paired differences, {task}, {where}.", marks)


def _class_gaps(study: Study, runs: list[Run], rival: Run, fold: int) -> dict[int, Number]:
    """By class, the difference of runs of several training seeds to the rival's."""
    gaps = []
    for run in runs:
        pair = align(study.episodes(run), study.episodes(rival))
        ours, theirs = per_class(pair, resamples=study.resamples, seed=study.seed, stream=fold)
        gaps += [(class_id, ours[class_id].minus(theirs[class_id])) for class_id in ours]
    keys = [key for run in (*runs, rival) for key in run]
    return {c: to_number(by_seed, keys, 0, difference=True) for c, by_seed in grouped(gaps).items()}


def episodes_plot(study: Study) -> Plot | None:
    """Width of the interval of one fold's mIoU against the number of episodes: how many are enough?"""
    method = next((m for m in study.shown if m.trained_on == home_of(study)), study.shown[0])
    task = main_task(study)
    first = {fold: next(iter(seeds.values())) for fold, seeds in study.runs.get((method, task), {}).items()}
    runs = {fold: run for fold, run in first.items() if run not in study.without_miou}
    if not runs:
        return None
    by_fold = {fold: study.episodes(run) for fold, run in runs.items()}
    keys = tuple(key for run in runs.values() for key in run)
    longest = min(len(counts) for counts in by_fold.values())
    sizes = sorted({*(size for size in STEP_SIZES if size < longest), longest})
    marks: Marks = []
    colour = colour_of(study, captions.labels(study, method)[0])
    with canvas() as (figure, (axes,)):
        for name, clustered in (("by query image", True), ("by episode (too narrow)", False)):
            every = {n: np.array([_width(c, n, fold, clustered) for fold, c in by_fold.items()]) for n in sizes}
            known = {size: widths for size, widths in every.items() if np.isfinite(widths).all() and widths.min() > 0}
            if len(known) < 3:  # no curve
                return None
            xs, means = list(known), [float(widths.mean()) for widths in known.values()]
            axes.plot(xs, means, color=colour, marker="o", linestyle="-" if clustered else "--", label=name)
            for (x, widths), y in zip(known.items(), means):
                marks.append(mark(name, x, y, float(widths.min()), float(widths.max()), keys))
            if not clustered:
                ideal = [means[-1] * (xs[-1] / x) ** 0.5 for x in xs]
                axes.plot(xs, ideal, color="0.6", linewidth=0.9, linestyle=":", label="1/√episodes")
        axes.set(xscale="log", yscale="log", xlabel="episodes of a fold", ylabel="width of the 95% interval (points)")
        widest = [float(m["y"]) for m in marks]
        log_ticks(axes, (25, 50, 100, 200, 400, 1000, 2000, 5000), sizes[0], sizes[-1])
        log_ticks(axes, (1, 2, 3, 5, 7, 10, 15, 20, 30, 40), min(widest) * 0.8, max(widest) * 1.2, axis="y")
        axes.legend(fontsize=7.5)
        who = " on ".join(reversed(captions.labels(study, method)))
        caption = f"Interval width against episodes: {who}, {task}, mean over folds, {captions.source(study)}."
        return finish(figure, "figure_episodes", caption, marks)


def _width(counts: EpisodeCounts, size: int, fold: int, clustered: bool) -> float:
    part = counts.take(np.arange(size))
    if set(part.class_id) != set(counts.class_id):
        return float("nan")
    low, high = bootstrap([part], resamples=500, stream=fold, clustered=clustered)[0].miou.interval()
    return high - low
