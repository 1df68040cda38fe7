"""What the project claims, each as a paired difference with a verdict, Holm's correction over all of them."""

from __future__ import annotations

from analysis.tables import captions
from analysis.tables.main import MASK, beside, shown, upgrades, wrong_names_of
from analysis.tables.places import Subject, Task
from analysis.tables.scores import UNDECIDED, Study, differs
from analysis.tables.table import Column, Number, Row, Table

UNDECIDED_NOTE = (
    "Undecided: no p-value that so few query images (or resamples) allow is small enough for so many claims."
)


def claims_table(study: Study) -> Table | None:
    """The claims that the study's cells allow, with their verdicts; None without one."""
    one_shot, zero_shot = Task(1, MASK), Task(0, "text")
    claims: list[tuple[str, tuple[Subject, Task], tuple[Subject, Task]]] = []
    methods = [s for s in shown(study) if s.variant == "diffup" and not s.control]
    for home in (s for s in methods if s.backbone == s.trained_on):
        baselines = [s for s in shown(study) if s.variant != "diffup" and not s.control and beside(home, s)]
        for other in baselines:
            if study.asked(home, one_shot) and study.asked(other, one_shot):
                ours, theirs = captions.method_name(study, home), captions.method_name(study, other)
                text = f"{ours} beats {theirs} on {home.backbone} ({one_shot})"
                claims.append((text, (home, one_shot), (other, one_shot)))
        for upgrade in (s for s in methods if upgrades(home, s) and study.asked(s, one_shot)):
            text = f"{upgrade.backbone} beats {home.backbone}, trained on {home.backbone} ({one_shot})"
            claims.append((text, (upgrade, one_shot), (home, one_shot)))
    with_text = Task(1, f"{MASK}+text")
    for subject in (s for s in methods if study.asked(s, with_text) and study.asked(s, one_shot)):
        text = f"{with_text} beats {one_shot} on {captions.labels(study, subject)[0]}"
        claims.append((text, (subject, with_text), (subject, one_shot)))
    for subject in methods:
        wrong = wrong_names_of(study, subject)
        if wrong and study.asked(subject, zero_shot) and study.asked(wrong, zero_shot):
            text = f"right class names beat wrong ones on {captions.labels(study, subject)[0]} ({zero_shot})"
            claims.append((text, (subject, zero_shot), (wrong, zero_shot)))
    gaps = [study.difference(first, second) for _, first, second in claims]
    rows = []
    for (text, first, second), gap, apart in zip(claims, gaps, differs(gaps)):
        rows.append(Row((text,), (study.number(*first), study.number(*second), gap, _verdict(gap, apart))))
    if not rows:
        return None
    data = captions.data_name(study)
    return Table(
        name="claims",
        caption=f"Paired differences on {data}: mIoU in %.",
        labels=("Claim",),
        columns=(Column(("first",), True), Column(("second",), True), Column(("difference",)), Column(("holds",))),
        rows=tuple(rows),
        notes=(
            *captions.notes(study, rows),
            "Holds: yes, the difference is above 0 (p < 0.05 after Holm's correction over the claims of this table); "
            "reversed, it is below; no, neither is shown.",
            *([UNDECIDED_NOTE] if any(row.entries[3] == "undecided" for row in rows) else []),
        ),
    )


def _verdict(gap: Number | None, apart: bool | None) -> str:
    if gap is None:
        return "not run"
    if gap.value != gap.value:
        return "undefined"
    if apart is UNDECIDED:
        return "undecided"
    return "no" if not apart else "yes" if gap.value > 0 else "reversed"
