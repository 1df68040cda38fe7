"""What each variant of DiffUp changes, as paired differences to DiffUp itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from analysis.tables import captions
from analysis.tables.places import METHODS, Task, grouped, ordered
from analysis.tables.scores import Study
from analysis.tables.table import Number, Row, Table

BASE = "diffup"


def ablations(study: Study) -> Table | None:
    """Every variant of DiffUp with the training backbone that has most of them; None without one."""
    variants = grouped(
        (method.trained_on, method.variant)
        for method in study.methods
        if method.method == BASE and method.variant != BASE and not method.control
    )
    if not variants:
        return None
    home = max(variants, key=lambda name: len(variants[name]))
    names = [BASE, *dict.fromkeys(variants[home])]
    own = study.cells["variant"].isin(names) & (study.cells["trained_on"] == home)
    part = replace(study, cells=study.cells[own & (study.cells["class_names"] == "given")].reset_index(drop=True))
    asked = {task for m in part.methods if m.variant != BASE for task in part.folds_by_task if part.asked(m, task)}
    return ablation_table(part, base=BASE, order=names, tasks=ordered(asked))


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
    for backbone, members in grouped((method.backbone, method) for method in study.methods).items():
        home = next((method for method in members if method.variant == base), None)
        for method in sorted(members, key=lambda m: rank.get(m.variant, len(rank))):
            numbers: list[Number | None] = [None] * len(tasks)
            if not any(study.asked(method, task) for task in tasks):
                continue
            if method == home:
                numbers = [study.number(method, task) for task in tasks]
            elif home is not None:
                numbers = [study.difference((method, task), (home, task)) for task in tasks]
            rows.append(Row((backbone, METHODS.get(method.variant, method.variant)), tuple(numbers)))
    return captions.table(
        study,
        "ablations",
        f"Ablation on {captions.data_name(study)}: mIoU in % of {METHODS.get(base, base)}, and each variant's "
        "paired difference to it.",
        ("Backbone", "Variant"),
        captions.columns(*map(str, tasks)),
        rows,
    )
