"""What each variant of DiffUp changes, as paired differences to DiffUp itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from analysis.tables import captions
from analysis.tables.main import ordered
from analysis.tables.places import METHODS, Task
from analysis.tables.scores import Study
from analysis.tables.table import Column, Number, Row, Table

BASE = "diffup"


def ablations(study: Study) -> Table | None:
    """Every variant of DiffUp with the training backbone that has most of them; None without one."""
    variants: dict[str, list[str]] = {}
    for subject in study.subjects:
        if subject.method == BASE and subject.variant != BASE and not subject.control:
            variants.setdefault(subject.trained_on, []).append(subject.variant)
    if not variants:
        return None
    home = max(variants, key=lambda name: len(variants[name]))
    names = [BASE, *dict.fromkeys(variants[home])]
    own = study.cells["variant"].isin(names) & (study.cells["trained_on"] == home)
    part = replace(
        study, cells=study.cells[own & (study.cells["class_names"] == "given")].reset_index(drop=True), _numbers={}
    )
    asked = {task for s in part.subjects if s.variant != BASE for task in part.folds_by_task if part.asked(s, task)}
    return ablation_table(part, base=BASE, order=names, tasks=ordered(list(asked)))


def ablation_table(study: Study, *, base: str, order: Sequence[str], tasks: Sequence[Task] = ()) -> Table:
    """What each variant changes: paired differences to `base` with the same test backbone, by task; the base as it is.

    Args:
        study: cells of the base and its variants, all of one training backbone.
        base: variant that the others are measured against.
        order: of the variants; unknown ones come last.
        tasks: columns; all of the study by default.
    """
    tasks = list(tasks) or list(study.folds_by_task)
    rank = {name: place for place, name in enumerate(order)}
    rows = []
    for backbone in dict.fromkeys(s.backbone for s in study.subjects):
        here = sorted(
            (s for s in study.subjects if s.backbone == backbone), key=lambda s: rank.get(s.variant, len(rank))
        )
        home = next((s for s in here if s.variant == base), None)
        for subject in here:
            numbers: list[Number | None] = [None] * len(tasks)
            if not any(study.asked(subject, task) for task in tasks):
                continue
            if subject == home:
                numbers = [study.number(subject, task) for task in tasks]
            elif home is not None:
                numbers = [study.difference((subject, task), (home, task)) for task in tasks]
            rows.append(Row((backbone, METHODS.get(subject.variant, subject.variant)), tuple(numbers)))
    return Table(
        name="ablations",
        caption=f"Ablation on {captions.data_name(study)}: mIoU in % of {METHODS.get(base, base)}, and each variant's "
        "paired difference to it.",
        labels=("Backbone", "Variant"),
        columns=tuple(Column((str(task),)) for task in tasks),
        rows=tuple(rows),
        notes=tuple(captions.notes(study, rows)),
    )
