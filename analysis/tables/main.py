"""One table per question, from the scores of a study: main results, backbone upgrade, annotations, and shots.

Each is a function from a `Study` to a `Table`, or to None where no cell speaks to the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from analysis.published.rows import published_rows
from analysis.tables import captions
from analysis.tables.places import METHODS, Subject, Task
from analysis.tables.scores import Study
from analysis.tables.table import Column, Entry, Row, Table

MASK = "mask"
REFERENCE = "reference"
ANNOTATIONS = ("text", "mask", "box", "scribble")  # in this order, then mixes by name
MAIN_SHOTS = (1, 5)
BOLD = (
    "Bold: the best {of}, and those that can't be told from it (paired difference, Holm's correction over the "
    "comparisons with the best); second: the highest of the rest."
)


def shown(study: Study) -> list[Subject]:
    """The rows of tables of results: other samplers of DiffUp's own checkpoints stand in the ablation only."""
    whole: set[str] = set()
    for subject in study.subjects:
        if subject.variant == "diffup" and not subject.control:
            whole |= study.checkpoints(subject)
    return [
        s
        for s in study.subjects
        if s.control or s.variant in METHODS or s.method != "diffup" or not study.checkpoints(s) & whole
    ]


def main_table(study: Study) -> Table | None:
    """Main results: backbones × methods by shots × folds, mask annotation, with mean mIoU and FB-IoU."""
    tasks = [task for task in study.folds_by_task if task.annotation == MASK]
    if any(task.shots in MAIN_SHOTS for task in tasks):
        tasks = [task for task in tasks if task.shots in MAIN_SHOTS]
    subjects = [subject for subject in shown(study) if any(study.asked(subject, task) for task in tasks)]
    if not tasks:
        return None
    columns: list[Column] = []
    parts: list[list[Entry]] = [[] for _ in subjects]
    for task in tasks:
        folds = study.folds_by_task[task]
        views: list[tuple[str, str, tuple[int, ...], bool]] = []
        if len(folds) > 1:
            views = [(f"fold {fold}", "miou", (fold,), True) for fold in folds]
        views += [("mean" if views else "mIoU", "miou", folds, False), ("FB-IoU", "fb_iou", folds, False)]
        for name, metric, chosen, minor in views:
            columns.append(Column((f"{task.shots}-shot", name), minor))
            for part, entry in zip(parts, _column(study, subjects, task, metric, chosen)):
                part.append(entry)
    rows = [Row(captions.labels(study, subject), tuple(part)) for subject, part in zip(subjects, parts)]
    published, footnotes = published_rows(study, columns)
    data = captions.data_name(study)
    return Table(
        name="cross_dataset" if study.cells["trained_dataset"].iloc[0] else "main",
        caption=f"Main results on {data}: mIoU and FB-IoU in %, mask annotation{captions.trained_on(study)}.",
        labels=("Backbone", "Method"),
        columns=tuple(columns),
        rows=(*rows, *published),
        notes=(*captions.notes(study, rows), BOLD.format(of="method of a backbone"), *footnotes),
        stacked=True,
    )


def upgrade_table(study: Study) -> Table | None:
    """Backbone upgrade: each test backbone with the same checkpoint, against the backbone that it was trained on."""
    methods = [subject for subject in shown(study) if subject.trained_on and not subject.control]
    groups = []
    for task in ordered(list(study.folds_by_task)):
        for home in (subject for subject in methods if subject.backbone == subject.trained_on):
            others = [s for s in methods if upgrades(home, s) and study.asked(s, task)]
            if others and study.asked(home, task):
                groups.append((task, home, others))
    if not groups:
        return None
    several = len({(home.variant, home.trained_on) for _, home, _ in groups}) > 1
    rows = []
    for task, home, others in groups:
        subjects = [home, *others]
        best = study.mark_best([(s, task) for s in subjects], [study.number(s, task) for s in subjects])
        name = f"{task}, {captions.method_name(study, home)}" if several else str(task)
        for subject, number in zip(subjects, best):
            entries = (number, *_upgrade_entries(study, task, home, subject))
            rows.append(Row((name, captions.labels(study, subject)[0]), entries))
    method = "method" if several else captions.method_name(study, groups[0][1])
    names = [method, "Δ to training backbone", "prior mean", "Δ of prior mean", f"{method} − prior mean"]
    if any(row.entries[-2] is not None for row in rows):
        names += ["re-trained", "re-trained − swapped in"]
    else:
        rows = [replace(row, entries=row.entries[:-2]) for row in rows]
    data = captions.data_name(study)
    return Table(
        name="upgrade",
        caption=f"Better backbones without re-training on {data}: mIoU in %{captions.trained_on(study)}.",
        labels=("Task", "Backbone"),
        columns=tuple(Column((name,)) for name in names),
        rows=tuple(rows),
        notes=(
            *captions.notes(study, rows),
            BOLD.format(of="backbone"),
            "The prior mean is training-free: its Δ is what the backbone alone gives.",
        ),
    )


def _upgrade_entries(study: Study, task: Task, home: Subject, subject: Subject) -> list[Entry]:
    """Δ to the training backbone, prior mean, its Δ, the lead over it; re-trained on this backbone, its lead."""
    prior, home_prior = _prior_mean(study, subject), _prior_mean(study, home)
    own = study.number(prior, task) if prior else None
    lead = study.difference((subject, task), (prior, task)) if prior else None
    if subject == home:
        return [REFERENCE, own, REFERENCE if own else None, lead, None, None]
    gain = study.difference((subject, task), (home, task))
    change = study.difference((prior, task), (home_prior, task)) if prior and home_prior else None
    again = replace(subject, trained_on=subject.backbone)
    known = study.asked(again, task)
    extra = [study.number(again, task), study.difference((again, task), (subject, task))] if known else [None, None]
    return [gain, own, change, lead, *extra]


def shots_table(study: Study) -> Table | None:
    """Shots: backbones × methods by number of shots, an annotation after the other; None unless three were asked."""
    tasks = ordered(list(study.folds_by_task))
    by_annotation: dict[str, list[Task]] = {}
    for task in tasks:
        by_annotation.setdefault(task.annotation, []).append(task)
    if max(map(len, by_annotation.values()), default=0) < 3:
        return None
    counts = sorted({task.shots for task in tasks})
    rows = []
    for annotation, own in by_annotation.items():
        subjects = [s for s in shown(study) if not s.control and any(study.asked(s, task) for task in own)]
        parts: list[list[Entry]] = [[] for _ in subjects]
        for shots in counts:
            task = Task(shots, annotation)
            column = _column(study, subjects, task, "miou", study.folds_by_task[task]) if task in own else None
            for i, part in enumerate(parts):
                part.append(column[i] if column else None)
        for subject, part in zip(subjects, parts):
            rows.append(Row((annotation, *captions.labels(study, subject)), tuple(part)))
    return Table(
        name="shots",
        caption=f"Number of shots on {captions.data_name(study)}: mIoU in %{captions.trained_on(study)}.",
        labels=("Annotation", "Backbone", "Method"),
        columns=tuple(Column((f"{shots}-shot",)) for shots in counts),
        rows=tuple(rows),
        notes=(*captions.notes(study, rows), BOLD.format(of="method of a backbone")),
    )


def annotations_table(study: Study) -> Table | None:
    """Annotations: backbones × methods by annotation × shots, with 0-shot text and its control of wrong class names."""
    tasks = ordered(list(study.folds_by_task))
    subjects = [s for s in shown(study) if not s.control and any(study.asked(s, task) for task in tasks)]
    if len({task.annotation for task in tasks}) < 2 or not subjects:
        return None
    columns: list[Column] = []
    parts: list[list[Entry]] = [[] for _ in subjects]
    for task in tasks:
        folds = study.folds_by_task[task]
        columns.append(Column((task.annotation, f"{task.shots}-shot"), minor=True))
        for part, entry in zip(parts, _column(study, subjects, task, "miou", folds)):
            part.append(entry)
        controls = [wrong_names_of(study, subject) for subject in subjects]
        if not any(control and study.asked(control, task) for control in controls):
            continue
        columns += [Column((task.annotation, "wrong names"), minor=True), Column((task.annotation, "difference"))]
        for part, subject, control in zip(parts, subjects, controls):
            part.append(study.number(control, task) if control else None)
            part.append(study.difference((subject, task), (control, task)) if control else None)
    rows = [Row(captions.labels(study, subject), tuple(part)) for subject, part in zip(subjects, parts)]
    notes = [*captions.notes(study, rows), BOLD.format(of="method of a backbone")]
    if any(column.header[1] == "wrong names" for column in columns):
        notes.append("Wrong names: the same model prompted with another class's name (a control that must be worse).")
    data = captions.data_name(study)
    return Table(
        name="annotations",
        caption=f"Annotations on {data}: mIoU in %{captions.trained_on(study)}.",
        labels=("Backbone", "Method"),
        columns=tuple(columns),
        rows=tuple(rows),
        notes=tuple(notes),
        stacked=True,
    )


def _column(study: Study, subjects: Sequence[Subject], task: Task, metric: str, folds: tuple[int, ...]) -> list[Entry]:
    """A column of numbers, the best of each backbone marked."""
    entries: list[Entry] = [None] * len(subjects)
    by_backbone: dict[tuple[str, str], list[int]] = {}
    for i, subject in enumerate(subjects):
        by_backbone.setdefault((subject.backbone, subject.weights), []).append(i)
    for places in by_backbone.values():
        numbers = [study.number(subjects[i], task, metric, folds) for i in places]
        marked = study.mark_best([(subjects[i], task) for i in places], numbers, metric, folds)
        for i, number in zip(places, marked):
            entries[i] = number
    return entries


def ordered(tasks: Sequence[Task]) -> list[Task]:
    """Tasks by annotation, then shots."""

    def key(task: Task) -> tuple[int, str, int]:
        known = ANNOTATIONS.index(task.annotation) if task.annotation in ANNOTATIONS else len(ANNOTATIONS)
        return known, task.annotation, task.shots

    return sorted(tasks, key=key)


def upgrades(home: Subject, other: Subject) -> bool:
    """Whether `other` is `home`'s method and training backbone with another test backbone."""
    same = (home.trained_on, home.variant, home.method) == (other.trained_on, other.variant, other.method)
    return same and (home.backbone, home.weights) != (other.backbone, other.weights)


def beside(subject: Subject, other: Subject) -> bool:
    """Whether `other` is a method on the same backbone, trained on the same one if at all."""
    same = (subject.backbone, subject.weights) == (other.backbone, other.weights)
    return same and other.trained_on in ("", subject.trained_on)


def _prior_mean(study: Study, subject: Subject) -> Subject | None:
    same = study.by_backbone.get((subject.backbone, subject.weights), [])
    return next((s for s in same if s.method == "prior_mean" and not s.control and beside(subject, s)), None)


def wrong_names_of(study: Study, subject: Subject) -> Subject | None:
    """The same checkpoints (or training-free method) told wrong class names."""
    mine = study.checkpoints(subject)
    for other in study.by_backbone.get((subject.backbone, subject.weights), []):
        same = other.control and other.method == subject.method and beside(subject, other)
        if same and other.trained_on == subject.trained_on and study.checkpoints(other) <= mine:
            return other
    return None
