"""What accuracy costs: parameters, operations, time an episode and hours in all, beside the mIoU."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis import captions
from analysis.places import Subject
from analysis.questions import ordered, shown
from analysis.scores import Study
from analysis.tables import Column, Entry, Number, Row, Table

COLUMNS = (
    ("parameters (M)", "backbone"), ("parameters (M)", "trained"), ("GFLOPs", "encode an image"),
    ("GFLOPs", "match"), ("GFLOPs", "decode"), ("time", "ms an episode"), ("time", "{} hours"), ("", "mIoU"),
)  # fmt: skip
FIGURES = ("backbone_mparams", "decoder_mparams", "encode_gflops", "prior_gflops", "decode_gflops")


def cost_table(study: Study) -> Table | None:
    """Cost of each method on its first task (1-shot mask, if asked), and hours of all its cells; None if unknown."""
    tasks = ordered(list(study.folds_by_task))
    rows, devices = [], set()
    cells = study.cells[study.cells["status"] == "finished"]
    by_subject: dict[Subject, list[int]] = {}
    finished = set(cells["key"])
    for place, seat in enumerate(seat for seat in study.seats if seat.key in finished):
        by_subject.setdefault(seat.subject, []).append(place)
    visual = [task for task in tasks if task.shots] or tasks
    for subject in shown(study):
        task = next((t for t in visual if study.asked(subject, t)), None)
        own = cells.iloc[by_subject.get(subject, [])]
        if subject.control or task is None or own.empty or own["backbone_mparams"].isna().all():
            continue
        at = own[(own["shots"] == task.shots) & (own["annotation"] == task.annotation)]
        devices |= {"GPU" if device.startswith("cuda") else "CPU" for device in own["device"]}
        hours = _number(own["seconds"].sum() / 3600, own, 2)
        entries: list[Entry] = [_mean(at, name, 2) for name in FIGURES]
        milliseconds = 1000 * at["seconds"].sum() / max(1, at["episodes"].sum())
        entries = [entries[0], *entries[1:], _number(milliseconds, at, 1), hours, study.number(subject, task)]
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


def _mean(cells: pd.DataFrame, name: str, decimals: int) -> Number | None:
    known = cells[cells[name].notna()]
    return None if known.empty else _number(float(known[name].mean()), known, decimals)


def _number(value: float, cells: pd.DataFrame, decimals: int) -> Number:
    keys: Sequence[str] = cells["key"].tolist()
    return Number(value=float(value), decimals=decimals, keys=tuple(keys), episodes=int(cells["episodes"].sum()))
