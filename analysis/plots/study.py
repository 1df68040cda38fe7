"""The figures of a study, each with the numbers it draws: shots, upgrade, cost, and sampler steps.

Each is a function from a `Study` to a `Plot`, or to None where the study has no cells for it. Bands and bars are the
95 % intervals of the tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.plotting import COLOURS, DASHES, MARKERS, Plot, canvas, finish, log_ticks, mark
from analysis.tables import captions
from analysis.tables.main import MASK
from analysis.tables.places import METHODS, MethodKey, Task, grouped
from analysis.tables.scores import Study
from analysis.tables.table import Number, defined

Marks = list[dict[str, Any]]
Points = Sequence[tuple[Any, Number]]  # x and y
ONE_SHOT = Task(1, MASK)


def draw_line(axes: Any, points: Points, style: dict[str, Any], band: bool = True) -> None:
    """A line with its intervals as a band, or as bars."""
    xs = [x for x, _ in points]
    values, low, high = (np.array([getattr(n, name) for _, n in points]) for name in ("value", "low", "high"))
    axes.plot(xs, values, **style)
    if band:
        axes.fill_between(xs, low, high, color=style["color"], alpha=0.13, linewidth=0)
    else:
        bars = [values - low, high - values]
        axes.errorbar(xs, values, bars, fmt="none", ecolor=style["color"], elinewidth=1, capsize=2)


def marks_of(series: str, points: Points, panel: str = "") -> Marks:
    """Rows of `Plot.data` for the points of a line."""
    return [mark(series, x, n.value, n.low, n.high, n.keys, panel) for x, n in points]


def line_style(number: int, dash: int = 0, label: str = "") -> dict[str, Any]:
    """Colour, mark and dashes of a line."""
    return {
        "color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[dash % len(DASHES)], "label": label,
    }  # fmt: skip


def home_of(study: Study) -> str:
    """The training backbone that is tested on most backbones; ``""`` without one."""
    tested = Counter(m.trained_on for m in study.methods if m.trained_on and m.variant == "diffup")
    return max(tested, key=lambda name: tested[name], default="")


def main_task(study: Study) -> Task:
    """1-shot mask if it was asked for, else the first task with a shot, else the first."""
    if ONE_SHOT in study.tasks:
        return ONE_SHOT
    return next((task for task in study.tasks if task.shots), study.tasks[0])


def shots_plot(study: Study) -> Plot | None:
    """mIoU against the number of shots, a panel per backbone, a line per annotation; DiffUp and the prior mean."""
    by_annotation = grouped((task.annotation, task) for task in study.tasks)
    lines = {name: tasks for name, tasks in by_annotation.items() if len(tasks) > 1}
    methods = [m for m in study.shown if m.variant in ("diffup", "prior_mean") and not m.control]
    by_backbone = grouped(
        (captions.labels(study, m)[0], m) for m in methods if not m.trained_on or m.trained_on == home_of(study)
    )
    if not lines or not by_backbone:
        return None
    marks: Marks = []
    with canvas(len(by_backbone), width=2.7, sharey=True) as (figure, axes):
        for panel, (backbone, members) in zip(axes, by_backbone.items()):
            for number, (annotation, tasks) in enumerate(lines.items()):
                for method in members:
                    points = [(task.shots, n) for task in tasks if (n := defined(study.number(method, task)))]
                    if points:
                        name, baseline = f"{METHODS[method.variant]}, {annotation}", method.variant == "prior_mean"
                        draw_line(panel, points, line_style(number, int(baseline), name), band=not baseline)
                        marks += marks_of(name, points, backbone)
            panel.set_xscale("symlog", linthresh=1)
            log_ticks(panel, sorted({task.shots for tasks in lines.values() for task in tasks}))
            panel.set(title=backbone, xlabel="shots")
        axes[0].set_ylabel("mIoU (%)")
        legend = {label: handle for panel in axes for handle, label in zip(*panel.get_legend_handles_labels())}
        figure.legend(legend.values(), legend, loc="outside lower center", ncols=4, fontsize=7.5)
        caption = f"mIoU against the number of shots, {captions.source(study)}{captions.trained_on(study)}."
        return finish(figure, "figure_shots", caption, marks) if marks else None


def upgrade_plot(study: Study) -> Plot | None:
    """Slopes over the test backbones, from the weakest prior mean to the strongest, with the re-trained reference."""
    home, task = home_of(study), main_task(study)
    methods = [(captions.labels(study, m)[0], m) for m in study.shown if not m.control and study.asked(m, task)]
    mine = {name: m for name, m in methods if m.trained_on == home and m.variant == "diffup"}
    if not home or len(mine) < 2:
        return None
    baselines = {v: {name: m for name, m in methods if m.variant == v} for v in ("prior_mean", "prototype")}
    again = {name: m for name, m in methods if m.trained_on == m.backbone != home and m.variant == "diffup"}
    prior = baselines["prior_mean"]
    rank = {name: n.value for name, m in prior.items() if (n := defined(study.number(m, task)))}
    order = sorted(mine, key=lambda name: rank.get(name, 0.0))
    series = {
        f"DiffUp, trained on {home}": mine,
        **{METHODS[variant]: members for variant, members in baselines.items()},
        "DiffUp, re-trained": again,
    }
    marks: Marks = []
    with canvas(width=4.6, height=3.2) as (figure, (axes,)):
        for number, (label, members) in enumerate(series.items()):
            known = [name for name in order if name in members]
            points = [(name, n) for name in known if (n := defined(study.number(members[name], task)))]
            if not points:
                continue
            style = line_style(number, number, label)
            if members is again:
                style |= {"linestyle": "none", "markerfacecolor": "none", "markersize": 7}
            draw_line(axes, [(order.index(name), n) for name, n in points], style, band=False)
            marks += marks_of(label, points)
        if not marks:
            return None
        axes.set_xticks(range(len(order)), [f"{b}\n(training)" if mine[b].backbone == home else b for b in order])
        axes.margins(x=0.12)
        axes.set_ylabel(f"mIoU (%), {task}")
        axes.legend(fontsize=7.5)
        caption = f"Backbones swapped in at test time without re-training, {task}, {captions.source(study)}."
        return finish(figure, "figure_upgrade", caption, marks)


def cost_plot(study: Study) -> Plot | None:
    """mIoU against the operations of an episode, and the frontier of methods that no cheaper one beats."""
    task = main_task(study)
    points: list[tuple[str, str, float, Number]] = []
    for method in (m for m in study.shown if not m.control and study.asked(m, task)):
        if score := defined(study.number(method, task)):
            own = study.cells[study.cells["key"].isin(list(score.keys))]
            encode, match = own["encode_gflops"].mean(), own["prior_gflops"].mean()
            total = (task.shots + 1) * encode + match + np.nan_to_num(own["decode_gflops"].mean())
            if total == total:
                points.append((*captions.labels(study, method), float(total), score))
    if len(points) < 2:
        return None
    marks: Marks = []
    backbones, names = (list(dict.fromkeys(point[i] for point in points)) for i in (0, 1))
    with canvas(width=5.4, height=4.0) as (figure, (axes,)):
        for backbone, name, x, value in points:
            label, shape = f"{backbone}, {name}", MARKERS[names.index(name) % len(MARKERS)]
            style = {**line_style(backbones.index(backbone), 0, label), "marker": shape, "linestyle": "none"}
            draw_line(axes, [(x, value)], style, band=False)
            marks += marks_of(label, [(x, value)])
        frontier: list[tuple[float, float]] = []
        for _, _, x, value in sorted(points, key=lambda point: (point[2], -point[3].value)):
            if not frontier or value.value > frontier[-1][1]:
                frontier.append((x, value.value))
        axes.plot(*zip(*frontier), color="0.5", linewidth=0.9, drawstyle="steps-post", zorder=0)
        axes.set(xlabel="GFLOPs an episode", ylabel=f"mIoU (%), {task}")
        axes.set_xscale("log")
        log_ticks(axes, [t * 10.0**power for power in range(-3, 6) for t in (1, 2, 5)], *axes.get_xlim())
        figure.legend(loc="outside lower center", ncols=2, fontsize=6.5)
        what = f"Accuracy and cost of an episode (encoding its images, matching, decoding), {task}"
        caption = f"{what}, {captions.source(study)}; the line joins what no cheaper method beats."
        return finish(figure, "figure_cost", caption, marks)


def steps_plot(study: Study) -> Plot | None:
    """mIoU against the number of DDIM steps; only the steps differ."""
    task, home = main_task(study), home_of(study)
    steps = {cell.method: cell.steps for cell in study.scored}

    def is_asked(method: MethodKey) -> bool:
        """Whether it is DiffUp, or a variant that only has other steps."""
        same = method.variant == "diffup" or method.variant.startswith("steps_")
        return same and steps[method] > 0 and method.trained_on == home and not method.control

    found = grouped(
        (m.backbone, (steps[m], n)) for m in study.methods if is_asked(m) and (n := defined(study.number(m, task)))
    )
    series = {name: sorted(points, key=lambda p: p[0]) for name, points in found.items() if len(points) > 2}
    if not series:
        return None
    marks: Marks = []
    with canvas(width=3.8) as (figure, (axes,)):
        for line, (backbone, points) in enumerate(series.items()):
            draw_line(axes, points, line_style(line, line, backbone))
            marks += marks_of(backbone, points)
        ticks = sorted({x for points in series.values() for x, _ in points})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set(xlabel="DDIM steps", ylabel=f"mIoU (%), {task}")
        axes.legend(fontsize=7.5)
        return finish(figure, "figure_steps", f"Sampler steps, {task}, {captions.source(study)}.", marks)
