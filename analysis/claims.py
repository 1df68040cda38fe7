"""What the project claims, each as a paired difference with the verdict of its interval."""

from __future__ import annotations

from analysis import captions
from analysis.places import Subject, Task
from analysis.questions import MASK, beside, shown, upgrades, wrong_names_of
from analysis.scores import Study
from analysis.tables import Column, Row, Table


def claims_table(study: Study) -> Table | None:
    """What the project claims, each as a paired difference with the verdict of its interval."""
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
    rows = []
    for text, first, second in claims:
        gap = study.difference(first, second)
        verdict = "not run" if gap is None else "yes" if gap.low > 0 else "reversed" if gap.high < 0 else "no"
        rows.append(Row((text,), (study.number(*first), study.number(*second), gap, verdict)))
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
            "Holds: yes, the interval of the difference lies above 0; no, it includes 0; reversed, it lies below.",
        ),
    )
