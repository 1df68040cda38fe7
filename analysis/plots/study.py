"""The figures of a study, each with the numbers it draws: shots, upgrade, cost, classes, sampler steps, episodes.

Each is a function from a `Study` to a `Plot`, or to None where no cell speaks to the question. Bands and bars are the
95 % intervals of the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from analysis.plotting import COLOURS, DASHES, MARKERS, Plot, canvas, finish, mark
from analysis.tables import captions
from analysis.tables.main import MASK, ordered, shown
from analysis.tables.places import METHODS, Subject, Task
from analysis.tables.scores import Study
from analysis.tables.table import Number, defined

Marks = list[dict[str, Any]]
ONE_SHOT = Task(1, MASK)


def source_of(study: Study) -> str:
    """Data and protocol, for captions."""
    first = study.cells.iloc[0]
    return f"{captions.data_name(study)}, protocol {first['protocol']} ({first['protocol_hash'] or 'no hash'})"


def draw_line(
    axes: Any, xs: Sequence[Any], numbers: Sequence[Number], style: dict[str, Any], band: bool = True
) -> None:
    values, low, high = (np.array([getattr(n, name) for n in numbers]) for name in ("value", "low", "high"))
    axes.plot(xs, values, **style)
    if band:
        axes.fill_between(xs, low, high, color=style["color"], alpha=0.13, linewidth=0)
    else:
        axes.errorbar(
            xs, values, [values - low, high - values], fmt="none", ecolor=style["color"], elinewidth=1, capsize=2
        )


def line_style(number: int, dash: int = 0, label: str = "") -> dict[str, Any]:
    """Colour, mark and dashes of a line."""
    return {
        "color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[dash % len(DASHES)], "label": label,
    }  # fmt: skip


def shots_plot(study: Study) -> Plot | None:
    """mIoU against the number of shots, a panel a backbone, a line an annotation; DiffUp and the prior mean."""
    by_annotation: dict[str, list[Task]] = {}
    for task in ordered(list(study.folds_by_task)):
        by_annotation.setdefault(task.annotation, []).append(task)
    lines = {name: tasks for name, tasks in by_annotation.items() if len(tasks) > 1}
    subjects = [s for s in shown(study) if s.variant in ("diffup", "prior_mean") and not s.control]
    home = [s for s in subjects if not s.trained_on or s.trained_on == home_of(study)]
    backbones = list(dict.fromkeys(captions.labels(study, s)[0] for s in home))
    if not lines or not home:
        return None
    marks: Marks = []
    with canvas(len(backbones), width=2.7, sharey=True) as (figure, axes):
        for panel, backbone in zip(axes, backbones):
            for number, (annotation, tasks) in enumerate(lines.items()):
                for subject in (s for s in home if captions.labels(study, s)[0] == backbone):
                    found = [(task, defined(study.number(subject, task))) for task in tasks]
                    known = [(task.shots, n) for task, n in found if n is not None]
                    if not known:
                        continue
                    name = f"{METHODS[subject.variant]}, {annotation}"
                    style = line_style(number, int(subject.variant == "prior_mean"), name)
                    draw_line(panel, [k for k, _ in known], [n for _, n in known], style, subject.variant == "diffup")
                    marks += [mark(name, k, n.value, n.low, n.high, n.keys, backbone) for k, n in known]
            ticks = sorted({task.shots for tasks in lines.values() for task in tasks})
            panel.set_xscale("symlog", linthresh=1)
            panel.set_xticks(ticks, [str(tick) for tick in ticks])
            panel.minorticks_off()
            panel.set(title=backbone, xlabel="shots")
        axes[0].set_ylabel("mIoU (%)")
        legend = {label: handle for panel in axes for handle, label in zip(*panel.get_legend_handles_labels())}
        figure.legend(legend.values(), legend, loc="outside lower center", ncols=4, fontsize=7.5)
        caption = f"mIoU against the number of shots, {source_of(study)}{captions.trained_on(study)}."
        return finish(figure, "figure_shots", caption, marks) if marks else None


def home_of(study: Study) -> str:
    """The training backbone that is tested on most backbones."""
    tested: dict[str, int] = {}
    for subject in study.subjects:
        if subject.trained_on and subject.variant == "diffup":
            tested[subject.trained_on] = tested.get(subject.trained_on, 0) + 1
    return max(tested, key=lambda name: tested[name]) if tested else ""


def upgrade_plot(study: Study) -> Plot | None:
    """Slopes over the test backbones, from the weakest prior mean to the strongest, with the re-trained reference."""
    home, task = home_of(study), main_task(study)
    subjects = [s for s in shown(study) if not s.control and study.asked(s, task)]
    name_of = {s: captions.labels(study, s)[0] for s in subjects}
    mine = {name_of[s]: s for s in subjects if s.trained_on == home and s.variant == "diffup"}
    if not home or len(mine) < 2:
        return None
    prior = {name_of[s]: defined(study.number(s, task)) for s in subjects if s.variant == "prior_mean"}
    rank = {name: number.value for name, number in prior.items() if number is not None}
    order = sorted(mine, key=lambda name: rank.get(name, 0.0))
    series: list[tuple[str, dict[str, Subject]]] = [(f"DiffUp, trained on {home}", mine)]
    for variant in ("prior_mean", "prototype"):
        series.append((METHODS[variant], {name_of[s]: s for s in subjects if s.variant == variant}))
    again = {name_of[s]: s for s in subjects if s.trained_on == s.backbone != home and s.variant == "diffup"}
    marks: Marks = []
    with canvas(width=4.6, height=3.2) as (figure, (axes,)):
        for number, (name, members) in enumerate([*series, ("DiffUp, re-trained", again)]):
            found = [(place, defined(study.number(members[b], task))) for place, b in enumerate(order) if b in members]
            known = [(place, n) for place, n in found if n is not None]
            if not known:
                continue
            style = line_style(number, number, name)
            if members is again:
                style |= {"linestyle": "none", "markerfacecolor": "none", "markersize": 7}
            draw_line(axes, [place for place, _ in known], [n for _, n in known], style, band=False)
            marks += [mark(name, order[place], n.value, n.low, n.high, n.keys) for place, n in known]
        if not marks:
            return None
        axes.set_xticks(range(len(order)), [f"{b}\n(training)" if mine[b].backbone == home else b for b in order])
        axes.margins(x=0.12)
        axes.set_ylabel(f"mIoU (%), {task}")
        axes.legend(fontsize=7.5)
        caption = f"Backbones swapped in at test time without re-training, {task}, {source_of(study)}."
        return finish(figure, "figure_upgrade", caption, marks)


def main_task(study: Study) -> Task:
    """1-shot mask if it was asked for, else the first task with a shot, else the first."""
    tasks = ordered(list(study.folds_by_task))
    return ONE_SHOT if ONE_SHOT in tasks else next((task for task in tasks if task.shots), tasks[0])


def cost_plot(study: Study) -> Plot | None:
    """mIoU against the operations of an episode, and the frontier of methods that no cheaper one beats."""
    task = main_task(study)
    points: list[tuple[str, str, float, Number]] = []
    for subject in (s for s in shown(study) if not s.control and study.asked(s, task)):
        score = defined(study.number(subject, task))
        if score is None:
            continue
        own = study.cells[study.cells["key"].isin(list(score.keys))]
        encode, match = own["encode_gflops"].mean(), own["prior_gflops"].mean()
        total = (task.shots + 1) * encode + match + np.nan_to_num(own["decode_gflops"].mean())
        if total == total:
            points.append((*captions.labels(study, subject), float(total), score))
    if len(points) < 2:
        return None
    marks: Marks = []
    backbones, methods = (list(dict.fromkeys(point[i] for point in points)) for i in (0, 1))
    with canvas(width=5.4, height=4.0) as (figure, (axes,)):
        for backbone, method, x, value in points:
            name = f"{backbone}, {method}"
            shape = MARKERS[methods.index(method) % len(MARKERS)]
            style = {**line_style(backbones.index(backbone), 0, name), "marker": shape, "linestyle": "none"}
            draw_line(axes, [x], [value], style, band=False)
            marks.append(mark(name, x, value.value, value.low, value.high, value.keys))
        best = float("-inf")
        frontier = []
        for _, _, x, value in sorted(points, key=lambda point: (point[2], -point[3].value)):
            if value.value > best:
                best = value.value
                frontier.append((x, best))
        axes.plot(*zip(*frontier), color="0.5", linewidth=0.9, drawstyle="steps-post", zorder=0)
        axes.set(xlabel="GFLOPs an episode", ylabel=f"mIoU (%), {task}")
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        ticks = [t * 10.0**power for power in range(-3, 6) for t in (1, 2, 5) if low <= t * 10.0**power <= high]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        figure.legend(loc="outside lower center", ncols=2, fontsize=6.5)
        what = f"Accuracy and cost of an episode (encoding its images, matching, decoding), {task}, {source_of(study)}"
        caption = f"{what}; the line joins what no cheaper method beats."
        return finish(figure, "figure_cost", caption, marks)


def steps_plot(study: Study) -> Plot | None:
    """mIoU against the number of DDIM steps; only the steps differ."""
    task = main_task(study)
    home = home_of(study)
    marks: Marks = []
    series: dict[str, list[tuple[int, Number]]] = {}
    for subject in study.subjects:
        steps = _steps(study, subject)
        asked = steps and subject.trained_on == home and not subject.control
        number = defined(study.number(subject, task)) if asked else None
        if number is not None:
            series.setdefault(subject.backbone, []).append((steps, number))
    series = {name: sorted(points, key=lambda p: p[0]) for name, points in series.items() if len(points) > 2}
    if not series:
        return None
    with canvas(width=3.8) as (figure, (axes,)):
        for line, (backbone, points) in enumerate(series.items()):
            draw_line(axes, [x for x, _ in points], [n for _, n in points], line_style(line, line, backbone))
            marks += [mark(backbone, x, n.value, n.low, n.high, n.keys) for x, n in points]
        ticks = sorted({x for points in series.values() for x, _ in points})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set(xlabel="DDIM steps", ylabel=f"mIoU (%), {task}")
        axes.legend(fontsize=7.5)
        return finish(figure, "figure_steps", f"Sampler steps, {task}, {source_of(study)}.", marks)


def _steps(study: Study, subject: Subject) -> int:
    """DDIM steps of DiffUp, or of a variant that changes nothing else; 0 for others."""
    if subject.variant not in ("diffup",) and not subject.variant.startswith("steps_"):
        return 0
    return study.steps.get(subject, 0)


PLOTS: tuple[Callable[[Study], Plot | None], ...] = (shots_plot, upgrade_plot, cost_plot, steps_plot)
