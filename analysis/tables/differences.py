"""Paired differences as tables: what the project claims, with verdicts, and what each variant of DiffUp changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from analysis.tables import captions
from analysis.tables.main import MASK, wrong_names_of
from analysis.tables.places import METHODS, Task, grouped, ordered
from analysis.tables.scores import Place, Study
from analysis.tables.table import UNDECIDED, Column, Number, Row, Table, differs

BASE = "diffup"
ONE_SHOT, ZERO_SHOT, WITH_TEXT = Task(1, MASK), Task(0, "text"), Task(1, f"{MASK}+text")
UNDECIDED_NOTE = (
    "Undecided: no p-value that so few query images (or resamples) allow is small enough for so many claims."
)


def claims_table(study: Study) -> Table | None:
    """The claims that the study's cells allow, with their verdicts; None without one."""
    claims = [claim for claim in _claims(study) if study.asked(*claim[1])]
    gaps = [study.difference(first, second) for _, first, second in claims]
    rows = [
        Row((text,), (study.number(*first), study.number(*second), gap, _verdict(gap, apart)))
        for (text, first, second), gap, apart in zip(claims, gaps, differs(gaps))
    ]
    if not rows:
        return None
    return captions.table(
        study,
        "claims",
        f"Paired differences on {captions.data_name(study)}: mIoU in %.",
        ("Claim",),
        [Column(("first",), True), Column(("second",), True), Column(("difference",)), Column(("holds",))],
        rows,
        f"Holds: yes, the difference is above 0 (p < 0.05 after Holm's correction over the {len(rows)} claims of this "
        "table, so that more claims need clearer differences); reversed, it is below; no, neither is shown; "
        "uncorrected, its own interval alone excludes 0.",
        *([UNDECIDED_NOTE] if any(row.entries[3] == "undecided" for row in rows) else []),
    )


def _claims(study: Study) -> Iterator[tuple[str, Place, Place]]:
    """Text, first and second side of each claim; the first side may not have been asked for."""
    methods = [method for method in study.shown if method.variant == "diffup" and not method.control]
    for home in (method for method in methods if method.backbone == method.trained_on):
        for other in (m for m in study.shown if m.variant != "diffup" and not m.control and home.beside(m)):
            if study.asked(other, ONE_SHOT):
                ours, theirs = captions.method_name(study, home), captions.method_name(study, other)
                yield f"{ours} beats {theirs} on {home.backbone} ({ONE_SHOT})", (home, ONE_SHOT), (other, ONE_SHOT)
        for better in filter(home.upgraded_to, methods):
            text = f"{better.backbone} beats {home.backbone}, trained on {home.backbone} ({ONE_SHOT})"
            yield text, (better, ONE_SHOT), (home, ONE_SHOT)
    for method in (method for method in methods if study.asked(method, ONE_SHOT)):
        text = f"{WITH_TEXT} beats {ONE_SHOT} on {captions.labels(study, method)[0]}"
        yield text, (method, WITH_TEXT), (method, ONE_SHOT)
    for method in methods:
        wrong = wrong_names_of(study, method)
        if wrong and study.asked(wrong, ZERO_SHOT):
            text = f"right class names beat wrong ones on {captions.labels(study, method)[0]} ({ZERO_SHOT})"
            yield text, (method, ZERO_SHOT), (wrong, ZERO_SHOT)


def _verdict(gap: Number | None, apart: bool | None) -> str:
    if gap is None:
        return "not run"
    if gap.value != gap.value:
        return "undefined"
    if apart is UNDECIDED:
        return "undecided"
    if not apart:
        return "uncorrected" if gap.excludes_zero else "no"
    return "yes" if gap.value > 0 else "reversed"


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
