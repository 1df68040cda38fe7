"""The tables of results, one per question: main results, backbone upgrade, annotations, and number of shots.

Each is a function from a `Study` to a `Table`, or to None where the study has no cells for the question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from analysis.tables import captions
from analysis.tables.places import MethodKey, Task, grouped
from analysis.tables.published import published_rows
from analysis.tables.rivals import baseline, beside, called
from analysis.tables.scores import Study
from analysis.tables.table import Column, Entry, Row, Table

MASK = "mask"
REFERENCE, BEST = "reference", "best map"
MAIN_SHOTS = (1, 5)
BOLD = (
    "Bold: the best {of}, and those below it down to the first that differs from it (paired difference, p < 0.05 after "
    "Holm's correction over the comparisons with the best); underlined or in italics: that one."
)
EVIDENCE = (
    "Evidence: log-odds of the object against the support's background, without training; bank: against other pictures "
    "too; objects: and what the bank's labelled objects say; regions, snap: means over regions or superpixels."
)
METHOD_OF_BACKBONE = BOLD.format(of="method of a backbone")
WRONG_NAMES = "Wrong names: the same model prompted with another class's name (a control that must be worse)."

Filled = tuple[Column, Sequence[Entry]]  # a column with its entries


def main_table(study: Study) -> Table | None:
    """Main results: backbones × methods by shots × folds, mask annotation, with mean mIoU and FB-IoU."""
    tasks = [task for task in study.folds_by_task if task.annotation == MASK]
    tasks = [task for task in tasks if task.shots in MAIN_SHOTS] or tasks
    methods = [method for method in study.shown if any(study.asked(method, task) for task in tasks)]
    if not tasks:
        return None
    filled: list[Filled] = []
    for task in tasks:
        folds = study.folds_by_task[task]
        views = [(f"fold {fold}", "miou", (fold,)) for fold in folds] if len(folds) > 1 else []
        whole = [("mean" if views else "mIoU", "miou", ()), ("FB-IoU", "fb_iou", ())]
        for name, metric, chosen in [*views, *whole]:
            column = Column((f"{task.shots}-shot", name), minor=bool(chosen))
            filled.append((column, _marked(study, methods, task, metric, chosen)))
    columns, rows = _rows(study, methods, filled)
    published, footnotes = published_rows(study, columns)
    return captions.table(
        study,
        "cross_dataset" if study.cells["trained_dataset"].iloc[0] else "main",
        f"Main results on {captions.data_name(study)}: mIoU and FB-IoU in %, mask annotation"
        f"{captions.trained_on(study)}.",
        ("Backbone", "Method"),
        columns,
        [*rows, *published],
        METHOD_OF_BACKBONE,
        *([EVIDENCE] if any(method.method == "evidence" for method in methods) else []),
        *footnotes,
        stacked=True,
    )


def upgrade_table(study: Study) -> Table | None:
    """Backbone upgrade: each test backbone with the same checkpoint, against the backbone that it was trained on."""
    methods = [method for method in study.shown if method.trained_on and not method.control]
    groups = []
    for task in study.tasks:
        for home in (method for method in methods if method.backbone == method.trained_on):
            others = [m for m in methods if home.upgraded_to(m) and study.asked(m, task)]
            if others and study.asked(home, task):
                groups.append((task, home, [home, *others]))
    if not groups:
        return None
    several = len({(home.variant, home.trained_on) for _, home, _ in groups}) > 1
    rows = []
    for task, home, members in groups:
        name = f"{task}, {captions.method_name(study, home)}" if several else str(task)
        for method, number in zip(members, study.mark_best([(m, task) for m in members])):
            entries = (number, *_upgrade_entries(study, task, home, method))
            rows.append(Row((name, captions.labels(study, method)[0]), entries))
    ours = "method" if several else captions.method_name(study, groups[0][1])
    rivals = grouped(
        (name, task) for task in dict.fromkeys(task for task, _, _ in groups) if (name := baseline(study, task))
    )
    free = called(next(iter(rivals))) if len(rivals) == 1 else BEST
    free = free if len(free) <= len("prior mean") else BEST
    names = [ours, "Δ to training backbone"]
    if rivals:
        names += [free, f"Δ of {free}", f"{ours} − {free}"]
    else:
        rows = [replace(row, entries=(*row.entries[:2], *row.entries[5:])) for row in rows]
    if any(row.entries[-2] is not None for row in rows):
        names += ["re-trained", "re-trained − swapped in"]
    else:
        rows = [replace(row, entries=row.entries[:-2]) for row in rows]
    return captions.table(
        study,
        "upgrade",
        f"Better backbones without re-training on {captions.data_name(study)}: mIoU in %{captions.trained_on(study)}.",
        ("Task", "Backbone"),
        captions.columns(*names),
        rows,
        BOLD.format(of="backbone"),
        *_without_training(rivals, free),
    )


def _without_training(rivals: Mapping[str, Sequence[Task]], free: str) -> list[str]:
    """The note on methods without training, by the tasks that each is best at, which a column calls `free`."""
    if not rivals:
        return []
    gain = "its Δ is what the backbone alone gives."
    if [called(name) for name in rivals] == [free]:
        return [f"Best of what is finished here without training: {free}; {gain}"]
    parts = (f"{called(name)} ({', '.join(map(str, tasks))})" for name, tasks in rivals.items())
    names = "; ".join(map(called, rivals) if len(rivals) == 1 else parts)
    return [f"The {BEST} without training, of what is finished: {names}; {gain}"]


def _upgrade_entries(study: Study, task: Task, home: MethodKey, method: MethodKey) -> list[Entry]:
    """Δ to the training backbone, the best without training, its Δ, the lead over it; re-trained here, its lead."""
    free = baseline(study, task)
    prior, home_prior = (beside(study, m, free) for m in (method, home))
    own = study.number(prior, task) if prior else None
    lead = study.difference((method, task), (prior, task)) if prior else None
    if method == home:
        return [REFERENCE, own, REFERENCE if own else None, lead, None, None]
    gain = study.difference((method, task), (home, task))
    change = study.difference((prior, task), (home_prior, task)) if prior and home_prior else None
    again = replace(method, trained_on=method.backbone)
    if not study.asked(again, task):
        return [gain, own, change, lead, None, None]
    return [gain, own, change, lead, study.number(again, task), study.difference((again, task), (method, task))]


def shots_table(study: Study) -> Table | None:
    """Shots: backbones × methods by number of shots, for each annotation; None unless three numbers were asked for."""
    by_annotation = grouped((task.annotation, task) for task in study.tasks)
    if max(map(len, by_annotation.values()), default=0) < 3:
        return None
    columns = captions.columns(*(f"{shots}-shot" for shots in sorted({task.shots for task in study.tasks})))
    rows: list[Row] = []
    for annotation, tasks in by_annotation.items():
        methods = [m for m in study.shown if not m.control and any(study.asked(m, task) for task in tasks)]
        known = {f"{task.shots}-shot": _marked(study, methods, task) for task in tasks}
        filled = [(column, known.get(column.header[0], [None] * len(methods))) for column in columns]
        rows += [replace(row, labels=(annotation, *row.labels)) for row in _rows(study, methods, filled)[1]]
    return captions.table(
        study,
        "shots",
        f"Number of shots on {captions.data_name(study)}: mIoU in %{captions.trained_on(study)}.",
        ("Annotation", "Backbone", "Method"),
        columns,
        rows,
        METHOD_OF_BACKBONE,
    )


def annotations_table(study: Study) -> Table | None:
    """Annotations: backbones × methods by annotation × shots, with 0-shot text and its control of wrong class names."""
    methods = [method for method in study.shown if not method.control]
    if len({task.annotation for task in study.tasks}) < 2 or not methods:
        return None
    controls = [wrong_names_of(study, method) for method in methods]
    filled: list[Filled] = []
    notes = [METHOD_OF_BACKBONE]
    for task in study.tasks:
        filled.append((Column((task.annotation, f"{task.shots}-shot"), minor=True), _marked(study, methods, task)))
        if any(control and study.asked(control, task) for control in controls):
            wrong = [study.number(c, task) if c else None for c in controls]
            gaps = [study.difference((m, task), (c, task)) if c else None for m, c in zip(methods, controls)]
            filled.append((Column((task.annotation, "wrong names"), minor=True), wrong))
            filled.append((Column((task.annotation, "difference")), gaps))
            notes[1:] = [WRONG_NAMES]
    columns, rows = _rows(study, methods, filled)
    return captions.table(
        study,
        "annotations",
        f"Annotations on {captions.data_name(study)}: mIoU in %{captions.trained_on(study)}.",
        ("Backbone", "Method"),
        columns,
        rows,
        *notes,
        stacked=True,
    )


def _marked(
    study: Study, methods: Sequence[MethodKey], task: Task, metric: str = "miou", folds: tuple[int, ...] = ()
) -> list[Entry]:
    """A column of numbers, the best of each backbone marked."""
    entries: dict[MethodKey, Entry] = {}
    for members in grouped(((method.backbone, method.weights), method) for method in methods).values():
        entries |= zip(members, study.mark_best([(method, task) for method in members], metric, folds))
    return [entries[method] for method in methods]


def _rows(study: Study, methods: Sequence[MethodKey], filled: Sequence[Filled]) -> tuple[list[Column], list[Row]]:
    """Columns, and a row for each method."""
    entries = zip(*(column for _, column in filled))
    rows = [Row(captions.labels(study, method), row) for method, row in zip(methods, entries)]
    return [column for column, _ in filled], rows


def wrong_names_of(study: Study, method: MethodKey) -> MethodKey | None:
    """The same checkpoints (or training-free method) prompted with wrong class names."""
    for other in study.by_backbone.get((method.backbone, method.weights), []):
        same = other.control and other.method == method.method and other.trained_on == method.trained_on
        if same and study.checkpoints[other] <= study.checkpoints[method]:
            return other
    return None
