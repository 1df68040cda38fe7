"""The lines of ``experiments/method_study.py`` as paired differences: all folds, the two that were looked at while the
method was made, the two that were opened once, and each fold by itself.

    python -m analysis.study --results DIR --out DIR
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.command import command, load, texts_of, warn, write_texts
from analysis.stats import RESAMPLES
from analysis.tables import captions
from analysis.tables.places import METHODS, Subject, Task
from analysis.tables.scores import Study, studies
from analysis.tables.table import Column, Number, Row, Table
from diffup.errors import UserError, command_line

LOOKED_AT, UNOPENED = (0, 1), (2, 3)
MASK, FIVE, BOX, SCRIBBLE = Task(1, "mask"), Task(5, "mask"), Task(1, "box"), Task(1, "scribble")
MIXED = Task(3, "mask+scribble+box")
Place = tuple[Subject, Task]
# What was asked of the method before it was measured, by the backbone's short name.
BARS = {
    ("prior_mean", MASK): {"resnet50": "≥ 4", "deit": "≥ 1", "mobilenetv2": "≥ 2"},
    ("prototype", MASK): {"resnet50": "≥ 10"},
}
BOX_BARS = {"resnet50": "≥ −7", "deit": "≥ −5"}


@dataclass(frozen=True)
class Line:
    """One comparison: what is compared, and the difference that is hoped for."""

    group: str
    text: str
    first: Place
    second: Place
    bar: str = ""


def lines(study: Study) -> Iterator[Line]:
    """The comparisons that the study's cells allow, in the order of the documentation."""
    by_what = {(s.variant, s.backbone, s.trained_on): s for s in study.subjects if not s.control}
    sources = [s.trained_on for s in study.subjects if s.variant == "one_step"]
    source = sources[0] if sources else ""
    backbones = list(dict.fromkeys(s.backbone for s in study.subjects))
    if ("diffup", source, source) not in by_what:
        return

    def get(variant: str, backbone: str) -> Subject | None:
        return by_what.get((variant, backbone, source))

    def pair(
        group: str, text: str, first: Subject | None, a: Task, second: Subject | None, b: Task, bar: str = ""
    ) -> Iterator[Line]:
        if first and second and study.asked(first, a) and study.asked(second, b):
            yield Line(group, text, (first, a), (second, b), bar)

    for task in (MASK, FIVE, BOX, SCRIBBLE, MIXED):
        for backbone in backbones:
            for baseline in ("prior_mean", "prototype"):
                bar = BARS.get((baseline, task), {}).get(_short(backbone), "≥ 0")
                text = f"{_short(backbone)}, {task}: DiffUp − {baseline.replace('_', ' ')}"
                rival = by_what.get((baseline, backbone, ""))
                yield from pair("training-free", text, get("diffup", backbone), task, rival, task, bar)
    home = get("diffup", source)
    for backbone in backbones:
        if backbone != source:
            name, ours = _short(backbone), get("diffup", backbone)
            yield from pair("upgrade", f"{name} swapped in − {source}", ours, MASK, home, MASK, "> 0")
            again = by_what.get(("diffup", backbone, backbone))
            yield from pair("upgrade", f"re-trained on {name} − swapped in", again, MASK, ours, MASK, "≤ 2")
    for backbone in backbones:
        name, ours = _short(backbone), get("diffup", backbone)
        more = "≥ 6" if backbone == source else ""
        yield from pair("shots", f"{name}: 5-shot − 1-shot", ours, FIVE, ours, MASK, more)
        yield from pair("annotations", f"{name}: box − mask", ours, BOX, ours, MASK, BOX_BARS.get(name, ""))
        yield from pair("annotations", f"{name}: scribble − mask", ours, SCRIBBLE, ours, MASK, "≥ −8")
        for task in (MASK, SCRIBBLE, BOX):
            yield from pair("annotations", f"{name}: three mixed − {task}", ours, MIXED, ours, task, "≥ 0")
    for backbone in backbones:
        name, ours = _short(backbone), get("diffup", backbone)
        one_step, one, eight = (get(variant, backbone) for variant in ("one_step", "steps_1", "steps_8"))
        yield from pair("diffusion", f"{name}: diffusion − one step", ours, MASK, one_step, MASK, "≥ −1")
        yield from pair("diffusion", f"{name}: 8 steps − 1 step", eight, MASK, one, MASK, "≥ −0.5")
        for variant in ("steps_4", "from_prior", "full_strength"):
            text = f"{name}: {variant.replace('_', ' ')} − default"
            yield from pair("diffusion", text, get(variant, backbone), MASK, ours, MASK)


def _short(backbone: str) -> str:
    return backbone.partition("_")[0]


def study_table(study: Study) -> Table | None:
    """All lines with their differences; None if the store holds no method study."""
    every = study.folds_by_task.get(MASK, ())
    parts = [("all folds", every), ("0-1, looked at", LOOKED_AT), ("2-3, opened once", UNOPENED)]
    parts = [(name, tuple(f for f in folds if f in every)) for name, folds in parts]
    parts = [(name, folds) for name, folds in parts if folds] + [(f"fold {fold}", (fold,)) for fold in every]
    rows = []
    for line in lines(study):
        numbers: list[Number | None] = [study.difference(line.first, line.second, folds=folds) for _, folds in parts]
        whole = parts[0][1]
        both = [study.number(*place, folds=whole) for place in (line.first, line.second)]
        rows.append(Row((line.group, line.text), (line.bar, *both, *numbers)))
    if not rows:
        return None
    minor = {name for name, _ in parts[3:]}
    columns = [Column(("bar",)), Column(("first",), True), Column(("second",), True)]
    return Table(
        name="study",
        caption=f"The method study on {captions.data_name(study)}: differences of mIoU in %, paired by episode.",
        labels=("", "Line"),
        columns=(*columns, *(Column((name,), name in minor) for name, _ in parts)),
        rows=tuple(rows),
        notes=tuple(captions.notes(study, rows)),
    )


def summary_table(study: Study) -> Table | None:
    """The methods of each backbone by task, and what DiffUp adds to the prior mean; None without a method study."""
    by_what = {(s.variant, s.backbone, s.trained_on): s for s in study.subjects if not s.control}
    source = next((s.trained_on for s in study.subjects if s.variant == "one_step"), "")
    tasks = [task for task in (MASK, FIVE, BOX, SCRIBBLE, MIXED) if task in study.folds_by_task]
    rows = []
    for backbone in dict.fromkeys(s.backbone for s in study.subjects):
        ours = by_what.get(("diffup", backbone, source))
        if ours is None:
            continue
        prior, again = by_what.get(("prior_mean", backbone, "")), by_what.get(("diffup", backbone, backbone))
        subjects = [ours, by_what.get(("one_step", backbone, source)), prior, by_what.get(("prototype", backbone, ""))]
        for subject in subjects:
            if subject is not None:
                name = METHODS[subject.variant]
                rows.append(Row((backbone, name), tuple(study.number(subject, task) for task in tasks)))
        if prior is not None:
            gaps = tuple(study.difference((ours, task), (prior, task)) for task in tasks)
            rows.append(Row((backbone, f"{METHODS['diffup']} − {METHODS['prior_mean']}"), gaps))
        if again is not None and again is not ours:
            entries = tuple(study.number(again, task) if study.asked(again, task) else None for task in tasks)
            rows.append(Row((backbone, "DiffUp re-trained on it"), entries))
    if not rows:
        return None
    return Table(
        name="summary",
        caption=f"The method study on {captions.data_name(study)}: mIoU in %, trained on {source} only.",
        labels=("Backbone", "Method"),
        columns=tuple(Column((str(task),)) for task in tasks),
        rows=tuple(rows),
        notes=tuple(captions.notes(study, rows)),
    )


def write_study(
    results: Path, out: Path, *, keys: Iterable[str] | None = None, resamples: int = RESAMPLES
) -> list[Path]:
    """Write both tables for each data set with a method study. Arguments and errors: `analysis.command.Write`."""
    store = load(results, keys)
    warn(store.warnings)
    written = []
    for study in studies(store, resamples=resamples):
        for table in (summary_table(study), study_table(study)):
            if table is not None:
                named = replace(table, name=f"{table.name}-{captions.data_name(study)}")
                written += write_texts(out, texts_of(named))
    if not written:
        raise UserError(f"{results} holds no method study; run experiments/method_study.py")
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0, or 2 for wrong usage."""
    return command("analysis.study", "Lines of the method study.", write_study, arguments)


if __name__ == "__main__":
    sys.exit(command_line(main))
