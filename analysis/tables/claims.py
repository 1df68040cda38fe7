"""What the project claims, each as a paired difference with a verdict, Holm's correction over all of them."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.tables import captions
from analysis.tables.main import MASK, wrong_names_of
from analysis.tables.places import Task
from analysis.tables.scores import Place, Study
from analysis.tables.table import UNDECIDED, Column, Number, Row, Table, differs

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
        "Holds: yes, the difference is above 0 (p < 0.05 after Holm's correction over the claims of this table); "
        "reversed, it is below; no, neither is shown.",
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
    return "no" if not apart else "yes" if gap.value > 0 else "reversed"
