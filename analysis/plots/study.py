"""The figures of a study, each with the numbers it draws: shots, upgrade, cost, and sampler steps.

Each is a function from a `Study` to a `Plot`, or to None where the study has no cells for it. Bands and bars are the
95 % intervals of the tables. Colours and marks are those of `analysis.plots.looks`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.plots.looks import (
    INK,
    Marks,
    add_legend,
    by_cost,
    colour_of,
    cost_of,
    draw_line,
    home_of,
    is_again,
    marks_of,
    method_label,
    style,
)
from analysis.plotting import Plot, canvas, finish, log_ticks
from analysis.tables import captions
from analysis.tables.places import MethodKey, grouped
from analysis.tables.rivals import baseline, called, main_task, snapped
from analysis.tables.scores import Study
from analysis.tables.table import Number, defined, figure

SPREAD = 0.17  # of rows between methods of one backbone


def shots_plot(study: Study) -> Plot | None:
    """mIoU against the number of shots, a panel per annotation; DiffUp and the best without training."""
    by_annotation = grouped((task.annotation, task) for task in study.tasks)
    panels = {name: tasks for name, tasks in by_annotation.items() if len(tasks) > 1}
    rivals = {baseline(study, task) for tasks in panels.values() for task in tasks}
    methods = [m for m in study.shown if m.variant in ("diffup", *rivals) and not m.control]
    methods = [m for m in methods if not m.trained_on or m.trained_on == home_of(study)]
    if not panels or not methods:
        return None
    marks: Marks = []
    drawn: list[MethodKey] = []
    with canvas(len(panels), width=2.5, height=3.0, sharey=True) as (figure, axes):
        for panel, (annotation, tasks) in zip(axes, panels.items()):
            for method in methods:
                points = [(task.shots, n) for task in tasks if (n := defined(study.number(method, task)))]
                if points:
                    draw_line(panel, points, style(study, method, line=True), band=method.variant == "diffup")
                    series = f"{captions.labels(study, method)[0]}, {called(method.variant)}"
                    marks += marks_of(series, points, annotation)
                    drawn.append(method)
            panel.set_xscale("symlog", linthresh=1)
            log_ticks(panel, sorted({task.shots for task in tasks}))
            panel.set(title=annotation, xlabel="shots")
        axes[0].set_ylabel("mIoU (%)")
        if not marks:
            return None
        add_legend(figure, study, drawn, lines=True)
        caption = f"mIoU against the number of shots, {captions.source(study)}{captions.trained_on(study)}."
        return finish(figure, "figure_shots", caption, marks)


def upgrade_plot(study: Study) -> Plot | None:
    """A row per backbone, the cheapest at the top: DiffUp without re-training, its rivals, the re-trained reference."""
    home, task, rivals = home_of(study), main_task(study), {"prior_mean", "prototype"}
    rivals.add(baseline(study, task))
    members = grouped(
        (captions.labels(study, m)[0], m) for m in sorted(study.shown, key=lambda m: is_again(study, m))
        if not m.control and m.variant in ("diffup", *rivals) and study.asked(m, task)
        and (m.trained_on in ("", home) or m.trained_on == m.backbone)
    )  # fmt: skip
    mine = {name: m for name, ms in members.items() for m in ms if m.trained_on == home and m.variant == "diffup"}
    if not home or len(mine) < 2:
        return None
    marks: Marks = []
    order = by_cost(study, mine)
    reference = next((m for m in mine.values() if m.backbone == home), None)
    drawn = [m for name in order for m in members[name] if defined(study.number(m, task))]
    if not drawn:
        return None
    with canvas(width=4.4, height=0.9 + 0.62 * len(order)) as (drawing, (axes,)):
        for row, backbone in enumerate(order):
            here = [(m, n) for m in members[backbone] if (n := defined(study.number(m, task)))]
            cost = cost_of(study, backbone)
            price = f", {cost:.2g} GFLOPs an image" if cost == cost else ""
            training = " (training backbone)" if mine[backbone].backbone == home else ""
            axes.text(
                0.01, row - 0.36, f"{backbone}{training}{price}", transform=axes.get_yaxis_transform(), va="center",
                fontsize=8, color=colour_of(study, backbone), weight="bold",
            )  # fmt: skip
            for place, (method, number) in enumerate(here):
                y = row + SPREAD * (place - (len(here) - 1) / 2) + 0.12
                gain = None
                if reference is not None and method == mine[backbone] != reference:
                    gain = study.difference((method, task), (reference, task))
                _dot(axes, number, y, style(study, method), gain)
                marks += marks_of(method_label(study, method), [(backbone, number)])
        axes.set(ylim=(len(order) - 0.4, -0.6), yticks=[], xlabel=f"mIoU (%), {task}")
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.1)
        add_legend(drawing, study, drawn, colours=False)
        what = "Backbones swapped in at test time without re-training, from the cheapest to the dearest"
        caption = f"{what}, {task}, {captions.source(study)}. Beside DiffUp: its difference to the training backbone."
        return finish(drawing, "figure_upgrade", caption, marks)


def _dot(axes: Any, number: Number, y: float, look: dict[str, Any], gain: Number | None) -> None:
    """A mark with its interval along the row; the difference to the training backbone beside it."""
    bars = [[number.value - number.low], [number.high - number.value]]
    axes.errorbar([number.value], [y], xerr=bars, fmt="none", ecolor=look["color"], elinewidth=1)
    axes.plot([number.value], [y], **look)
    if gain is not None:
        axes.annotate(
            figure(gain) + ("*" if gain.excludes_zero else ""), (number.high, y), (4, 0), textcoords="offset points",
            va="center", fontsize=7.5, color=INK,
        )  # fmt: skip


def cost_plot(study: Study) -> Plot | None:
    """mIoU against the operations of an episode, and the frontier of methods that no cheaper one beats.

    Superpixels aren't counted, so methods with them are left out.
    """
    task = main_task(study)
    points: list[tuple[MethodKey, float, Number]] = []
    for method in (m for m in study.shown if not m.control and not snapped(m.variant) and study.asked(m, task)):
        if score := defined(study.number(method, task)):
            own = study.cells[study.cells["key"].isin(list(score.keys))]
            encode, match = own["encode_gflops"].mean(), own["prior_gflops"].mean()
            total = (task.shots + 1) * encode + match + np.nan_to_num(own["decode_gflops"].mean())
            if total == total:
                points.append((method, float(total), score))
    if len(points) < 2:
        return None
    marks: Marks = []
    with canvas(width=4.4, height=3.8) as (figure, (axes,)):
        for method, x, value in points:
            draw_line(axes, [(x, value)], style(study, method), band=False)
            marks += marks_of(", ".join(captions.labels(study, method)), [(x, value)])
        frontier: list[tuple[float, float]] = []
        for _, x, value in sorted(points, key=lambda point: (point[1], -point[2].value)):
            if not frontier or value.value > frontier[-1][1]:
                frontier.append((x, value.value))
        axes.plot(*zip(*frontier), color="0.6", linewidth=0.9, drawstyle="steps-post", zorder=0)
        axes.set(xlabel="GFLOPs an episode", ylabel=f"mIoU (%), {task}")
        axes.set_xscale("log")
        axes.margins(0.08)
        log_ticks(axes, [t * 10.0**power for power in range(-3, 6) for t in (1, 2, 5)], *axes.get_xlim())
        add_legend(figure, study, [method for method, _, _ in points])
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
        (captions.labels(study, m)[0], (steps[m], n))
        for m in study.methods
        if is_asked(m) and (n := defined(study.number(m, task)))
    )
    series = {name: sorted(points, key=lambda p: p[0]) for name, points in found.items() if len(points) > 2}
    if not series:
        return None
    marks: Marks = []
    with canvas() as (figure, (axes,)):
        for backbone, points in series.items():
            look = {"color": colour_of(study, backbone), "marker": "o", "label": backbone}
            draw_line(axes, points, look)
            marks += marks_of(backbone, points)
        ticks = sorted({x for points in series.values() for x, _ in points})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set(xlabel="DDIM steps", ylabel=f"mIoU (%), {task}")
        axes.legend(fontsize=8)
        return finish(figure, "figure_steps", f"Sampler steps, {task}, {captions.source(study)}.", marks)
