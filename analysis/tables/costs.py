"""What accuracy costs: parameters, operations, time an episode and hours in all, beside the mIoU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.tables import captions
from analysis.tables.main import ordered, shown
from analysis.tables.places import Subject
from analysis.tables.scores import Study
from analysis.tables.table import Column, Entry, Number, Row, Table

COLUMNS = (
    ("parameters (M)", "backbone"), ("parameters (M)", "trained"), ("GFLOPs", "encode an image"),
    ("GFLOPs", "match"), ("GFLOPs", "decode"), ("time", "ms an episode"), ("time", "{} hours"), ("", "mIoU"),
)  # fmt: skip
FIGURES = ("backbone_mparams", "decoder_mparams", "encode_gflops", "prior_gflops", "decode_gflops")
OTHERS = ("key", "status", "device", "seconds", "episodes")

Facts = dict[str, list[Any]]  # columns of cells


def cost_table(study: Study) -> Table | None:
    """Cost of each method on its first task (1-shot mask, if asked), and hours of all its cells; None if unknown."""
    tasks = ordered(list(study.folds_by_task))
    rows, devices = [], set()
    facts = {name: study.cells[name].tolist() for name in (*FIGURES, *OTHERS)}
    by_subject: dict[Subject, list[int]] = {}
    for place, seat in enumerate(study.seats):
        if facts["status"][place] == "finished":
            by_subject.setdefault(seat.subject, []).append(place)
    visual = [task for task in tasks if task.shots] or tasks
    for subject in shown(study):
        task = next((t for t in visual if study.asked(subject, t)), None)
        own = by_subject.get(subject, [])
        if subject.control or task is None or all(_missing(facts["backbone_mparams"][i]) for i in own):
            continue
        at = [i for i in own if study.seats[i].task == task]
        devices |= {"GPU" if facts["device"][i].startswith("cuda") else "CPU" for i in own}
        seconds, episodes = (sum(facts[name][i] for i in at) for name in ("seconds", "episodes"))
        entries: list[Entry] = [_mean(facts, name, at) for name in FIGURES]
        entries.append(_number(facts, 1000 * seconds / max(1, episodes), at, 1))
        entries.append(_number(facts, sum(facts["seconds"][i] for i in own) / 3600, own, 2))
        entries.append(study.number(subject, task))
        rows.append(Row((*captions.labels(study, subject), str(task)), tuple(entries)))
    if not rows:
        return None
    unit = "-and-".join(sorted(devices))
    return Table(
        name="cost",
        caption=f"What accuracy costs on {captions.data_name(study)}{captions.trained_on(study)}.",
        labels=("Backbone", "Method", "Task"),
        columns=tuple(Column((upper, name.format(unit))) for upper, name in COLUMNS),
        rows=tuple(rows),
        notes=(
            *captions.notes(study, rows),
            "A multiply-add is two operations. Match: the prior maps of an episode's supports; decode: fusing and all "
            "steps of the sampler. Parameters of a backbone are those of its image encoder, classifier included.",
            "Milliseconds are wall time of evaluation as the grid ran it, with whatever was encoded before and shared "
            "by cells; hours are the sum over all cells of the row, training not counted.",
        ),
    )


def _missing(value: float) -> bool:
    return value != value


def _mean(facts: Facts, name: str, places: Sequence[int]) -> Number | None:
    known = [i for i in places if not _missing(facts[name][i])]
    return _number(facts, sum(facts[name][i] for i in known) / len(known), known, 2) if known else None


def _number(facts: Facts, value: float, places: Sequence[int], decimals: int) -> Number:
    keys = tuple(facts["key"][i] for i in places)
    return Number(value=float(value), decimals=decimals, keys=keys, episodes=sum(facts["episodes"][i] for i in places))
