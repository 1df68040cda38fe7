"""Figures of what a mean hides: differences of single classes, and how intervals shrink with episodes."""

from __future__ import annotations

import numpy as np

from analysis.plots.study import Marks, home_of, line_style, main_task, source_of
from analysis.plotting import COLOURS, MARKERS, Plot, canvas, finish, mark
from analysis.stats import EpisodeCounts, Estimate, align, bootstrap, per_class
from analysis.tables import captions
from analysis.tables.main import shown
from analysis.tables.scores import Study, to_number
from analysis.tables.table import Number, defined

STEP_SIZES = (25, 50, 100, 200, 400, 700, 1000, 1500, 2000, 3000, 5000)


def classes_plot(study: Study, names: dict[int, str]) -> Plot | None:
    """IoU of each class, DiffUp minus the prior mean, on each backbone; folds and training seeds of DiffUp together.

    Args:
        study: the study.
        names: of its classes.
    """
    home, task = home_of(study), main_task(study)
    mine = [s for s in shown(study) if not s.control and s.trained_on in ("", home)]
    subjects = {(s.variant, captions.labels(study, s)[0]): s for s in mine}
    backbones = [b for v, b in subjects if v == "diffup" and ("prior_mean", b) in subjects]
    gaps: dict[str, dict[int, Number]] = {}
    for backbone in backbones:
        ours, theirs = (study.runs.get((subjects[v, backbone], task), {}) for v in ("diffup", "prior_mean"))
        gaps[backbone] = {}
        for fold in sorted(fold for fold in set(ours) & set(theirs) if ours[fold] and theirs[fold]):
            seeds, (rival, *_) = list(ours[fold].values()), theirs[fold].values()
            found = _class_gaps(study, seeds, rival, fold)
            gaps[backbone] |= {c: gap for c, gap in found.items() if defined(gap)}
    gaps = {name: found for name, found in gaps.items() if found}
    if not gaps:
        return None
    classes = sorted(
        set.union(*map(set, gaps.values())), key=lambda c: max(g[c].value for g in gaps.values() if c in g)
    )
    marks: Marks = []
    with canvas(len(gaps), width=2.6, height=0.9 + 0.19 * len(classes), sharey=True, sharex=True) as (figure, axes):
        for number, (panel, (backbone, found)) in enumerate(zip(axes, gaps.items())):
            rows = [(place, found[c]) for place, c in enumerate(classes) if c in found]
            values, low, high = (np.array([getattr(n, name) for _, n in rows]) for name in ("value", "low", "high"))
            at = [place for place, _ in rows]
            panel.axvline(0, color="0.4", linewidth=0.8)
            panel.errorbar(
                values, at, xerr=[values - low, high - values], fmt=MARKERS[number], color=COLOURS[number], capsize=2,
                elinewidth=1, markersize=4,
            )  # fmt: skip
            panel.set(title=backbone, xlabel="DiffUp − prior mean (IoU points)")
            marks += [
                mark("difference", names.get(c, str(c)), n.value, n.low, n.high, n.keys, backbone)
                for c, n in ((classes[place], n) for place, n in rows)
            ]
        axes[0].set_yticks(range(len(classes)), [names.get(c, str(c)) for c in classes])
        caption = f"IoU of each class, paired differences, {task}, {source_of(study)}{captions.trained_on(study)}."
        return finish(figure, "figure_classes", caption, marks)


def _class_gaps(study: Study, seeds: list[tuple[str, ...]], rival: tuple[str, ...], fold: int) -> dict[int, Number]:
    by_seed: dict[int, list[Estimate]] = {}
    for keys in seeds:
        pair = align(study.episodes(keys), study.episodes(rival))
        ours, theirs = per_class(pair, resamples=study.resamples, seed=study.seed, stream=fold)
        for class_id in ours:
            by_seed.setdefault(class_id, []).append(ours[class_id].minus(theirs[class_id]))
    every = [key for keys in (*seeds, rival) for key in keys]
    return {c: to_number(estimates, every, 0, difference=True) for c, estimates in by_seed.items()}


def episodes_plot(study: Study) -> Plot | None:
    """Width of the interval of one fold's mIoU against the number of episodes: how many are enough?"""
    subject = next((s for s in shown(study) if s.trained_on == home_of(study)), shown(study)[0])
    task = main_task(study)
    first = {fold: next(iter(seeds.values())) for fold, seeds in study.runs.get((subject, task), {}).items()}
    runs = {fold: keys for fold, keys in first.items() if keys not in study.without_miou}
    if not runs:
        return None
    by_fold = {fold: study.episodes(keys) for fold, keys in runs.items()}
    keys = tuple(key for names in runs.values() for key in names)
    longest = min(len(counts) for counts in by_fold.values())
    sizes = sorted({*(size for size in STEP_SIZES if size < longest), longest})
    marks: Marks = []
    with canvas(width=4.2) as (figure, (axes,)):
        for line, (name, clustered) in enumerate((("by query image", True), ("by episode (too narrow)", False))):
            widths = [[_width(counts, size, fold, clustered) for fold, counts in by_fold.items()] for size in sizes]
            known = [
                (size, np.array(width))
                for size, width in zip(sizes, widths)
                if np.isfinite(width).all() and min(width) > 0
            ]
            if not known:
                return None
            xs, means = [size for size, _ in known], [float(width.mean()) for _, width in known]
            axes.plot(xs, means, **line_style(line, line, name))
            marks += [mark(name, x, y, float(w.min()), float(w.max()), keys) for (x, w), y in zip(known, means)]
            if not clustered:
                ideal = [means[-1] * (xs[-1] / x) ** 0.5 for x in xs]
                axes.plot(xs, ideal, color="0.6", linewidth=0.9, linestyle=":", label="1/√episodes")
        axes.set(xscale="log", yscale="log", xlabel="episodes of a fold", ylabel="width of the 95% interval (points)")
        ticks = [tick for tick in (25, 50, 100, 200, 400, 1000, 2000, 5000) if sizes[0] <= tick <= sizes[-1]]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        widest = [float(m["y"]) for m in marks]
        high = [t for t in (1, 2, 3, 5, 7, 10, 15, 20, 30, 40) if min(widest) * 0.8 <= t <= max(widest) * 1.2]
        axes.set_yticks(high, [str(tick) for tick in high])
        axes.minorticks_off()
        axes.legend(fontsize=7.5)
        who = " on ".join(reversed(captions.labels(study, subject)))
        caption = f"Interval width against episodes: {who}, {task}, mean over folds, {source_of(study)}."
        return finish(figure, "figure_episodes", caption, marks)


def _width(counts: EpisodeCounts, size: int, fold: int, clustered: bool) -> float:
    part = counts.take(np.arange(size))
    if set(part.class_id) != set(counts.class_id):
        return float("nan")
    low, high = bootstrap([part], resamples=500, stream=fold, clustered=clustered)[0].miou.interval()
    return high - low
