"""What the report opens with: the answer in words, one figure, and three episodes."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from html import escape

from analysis.build import Collected, Drawn
from analysis.plots.looks import by_cost, home_of
from analysis.plotting import Plot
from analysis.report.gallery import RANKS, Shown
from analysis.report.parts import example_html, plot_html
from analysis.report.strips import examples
from analysis.results import Results
from analysis.tables import captions
from analysis.tables.places import MethodKey, Task
from analysis.tables.rivals import best_beside, called, foreign, main_task, training_free
from analysis.tables.scores import Study
from analysis.tables.table import Number, defined, figure
from diffup.errors import UserError

OWN = "own"  # the backbone of a foreign method that uses none of ours (`diffup.grid.axes.OWN`, which reaches torch)
FIGURES = ("figure_upgrade", "figure_cost", "figure_shots")  # the first of these that there is
STATUSES = ("failed", "damaged", "unfinished")
NOTHING = "No comparison yet: too few cells have finished."


def answer(study: Study) -> list[str]:
    """Sentences about the main task: each backbone that was swapped in, the best first; else the method's lead."""
    task, home = main_task(study), home_of(study)
    mine = [m for m in study.shown if m.variant == "diffup" and m.trained_on == home and not m.control]
    scores = {m: n for m in mine if (n := defined(study.number(m, task)))}
    reference = next((m for m in scores if m.backbone == home), None)
    swapped = sorted((m for m in scores if m.backbone != home), key=lambda m: -scores[m].value)
    lines: list[str] = []
    for method in swapped if reference else ():
        gain = study.difference((method, task), (reference, task)) if reference else None
        if defined(gain) and gain:
            place = f"{captions.labels(study, method)[0]} {figure(scores[method])}"
            lines.append(f"{place}, {versus(gain)} its training backbone{f' {home}' if not lines else ''}")
    ours = [*swapped[:1], *([reference] if reference else [])] or list(scores)[:1]
    lines += [*_leads(study, task, ours), *_others(study, task)]
    if not lines:
        lines = [
            f"{called(m.variant)} on {captions.labels(study, m)[0]}: {figure(n)} {plain_interval(n)}"
            for m in study.shown[:1] if (n := defined(study.number(m, task)))
        ]  # fmt: skip
    return lines or [NOTHING]


def _leads(study: Study, task: Task, methods: Sequence[MethodKey]) -> list[str]:
    """The lead over the method without training that scores best beside each."""
    lines: list[str] = []
    for method in methods:
        rival, chosen = best_beside(study, method, task)
        gap = study.difference((method, task), (rival, task)) if rival else None
        if rival and gap and defined(gap):
            which = f"{called(rival.variant)}{', the best there without training' if chosen else ''}"
            lines.append(f"DiffUp on {captions.labels(study, method)[0]}: {versus(gap)} {which}")
    return lines


def _others(study: Study, task: Task) -> list[str]:
    """Methods from elsewhere, each against DiffUp or, without it, the best without training: beside it, else where
    that scores best."""
    home = home_of(study)
    ours = [m for m in study.shown if m.variant == "diffup" and m.trained_on == home and not m.control]
    known = {m: n.value for m in ours or training_free(study) if (n := defined(study.number(m, task)))}
    lines: list[str] = []
    for method in foreign(study):
        score, there = defined(study.number(method, task)), {m: v for m, v in known.items() if m.beside(method)}
        rivals = there or known
        if not score or not rivals:
            continue
        rival = max(rivals, key=lambda m: rivals[m])
        where = "" if method.backbone == OWN else f" on {captions.labels(study, method)[0]}"
        line = f"{method.variant}{where} {figure(score)}"
        with contextlib.suppress(UserError):  # other episodes
            if (gap := study.difference((method, task), (rival, task))) and defined(gap):
                line += f", {versus(gap)} {called(rival.variant)} on {captions.labels(study, rival)[0]}"
        lines.append(line)
    return lines


def units(study: Study) -> str:
    """What the figures of `answer` are."""
    return f"{main_task(study)}, mIoU in %; in brackets 95% intervals."


def versus(gap: Number) -> str:
    """A difference in words: ``+6.9 [3.1, 10.6] over``, ``−1.2 [−2.0, −0.4] against``."""
    word = "over" if gap.low > 0 else "against"
    return f"{figure(gap)} {plain_interval(gap)} {word}"


def plain_interval(number: Number) -> str:
    """An interval without plus signs."""
    low, high = (f"{end:.{number.decimals}f}".replace("-", "−") for end in (number.low, number.high))
    return f"[{low}, {high}]"


def summary_html(
    results: Results,
    parts: Sequence[Collected],
    drawn: Sequence[Drawn],
    galleries: Sequence[Sequence[Shown]],
    left: int,
) -> tuple[str, list[Plot], int]:
    """The section, the figures that it shows, and how many bytes of pictures are left.

    Args:
        results, parts, drawn: as of `analysis.report.page.page`.
        galleries: panels of each part.
        left: bytes that pictures may have.
    """
    html = []
    for part in parts:
        first, *rest = answer(part.study)
        items = "".join(f"<li>{escape(line)}.</li>" for line in rest)
        name = f"{part.name}: " if len(parts) > 1 else ""
        html.append(
            f'<p class="answer">{escape(name)}<b>{escape(first)}.</b></p>{f"<ul>{items}</ul>" if items else ""}'
        )
        html.append(f'<p class="soft">{escape(units(part.study))}</p>')
    html.append(f"<p>{status_line(results)}</p>")
    plots = [plot for made, _ in drawn for plot in made]
    shown = [plot for name in FIGURES for plot in plots if plot.name.startswith(name)][:1]
    html += [plot_html(plot) for plot in shown]
    pictures = []
    for group in next((three(panels, part.study) for panels, part in zip(galleries, parts) if panels), []):
        made, size, _ = example_html(group, "-summary", left)
        pictures.append(made)
        left -= size
    if any(pictures):
        html.append(f'<div class="examples">{"".join(pictures)}</div>')
    return "".join(html), shown, left


def three(panels: Sequence[Shown], study: Study) -> list[list[Shown]]:
    """Worst, median and best of the main task's first fold, on the training backbone and the best one swapped in."""
    main = str(main_task(study))
    groups = examples([panel for panel in panels if panel.task == main] or panels)[: len(RANKS)]
    names = by_cost(study, dict.fromkeys(panel.backbone for group in groups for panel in group))
    home, best = home_of(study), _best(study)
    wanted = {name for name in names if name in (home, best)} or set(names[:1])
    return [[panel for panel in group if panel.backbone in wanted] or group[:1] for group in groups]


def _best(study: Study) -> str:
    task, home = main_task(study), home_of(study)
    mine = [m for m in study.shown if m.variant == "diffup" and m.trained_on == home and not m.control]
    scores = {captions.labels(study, m)[0]: n.value for m in mine if (n := defined(study.number(m, task)))}
    return max(scores, key=lambda name: scores[name], default="")


def status_line(results: Results) -> str:
    """How many cells are finished, and a link to the list where some are not."""
    counted = Counter(results.cells["status"])
    trouble = [f"{counted[name]} {name}" for name in STATUSES if counted[name]]
    done = f"{counted['finished']} of {len(results.cells)} evaluation cells are finished"
    return f'{done}; <a class="bad" href="#cells">{", ".join(trouble)}</a>.' if trouble else f"{done}."
