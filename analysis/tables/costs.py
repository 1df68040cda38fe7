"""What accuracy costs: parameters, operations, time per episode and hours in all, beside the mIoU."""

from __future__ import annotations

import pandas as pd

from analysis.tables import captions
from analysis.tables.places import grouped
from analysis.tables.scores import Study
from analysis.tables.table import Column, Entry, Number, Row, Table

COLUMNS = (
    ("parameters (M)", "backbone"), ("parameters (M)", "trained"), ("GFLOPs", "encode an image"),
    ("GFLOPs", "match"), ("GFLOPs", "decode"), ("time", "ms an episode"), ("time", "{} hours"), ("", "mIoU"),
)  # fmt: skip
FIGURES = ("backbone_mparams", "decoder_mparams", "encode_gflops", "prior_gflops", "decode_gflops")


def cost_table(study: Study) -> Table | None:
    """Cost of each method on its first task (1-shot mask, if asked), and hours of all its cells; None if unknown."""
    rows, devices = [], set()
    places = grouped((cell.method, row) for row, cell in enumerate(study.scored))
    visual = [task for task in study.tasks if task.shots] or study.tasks
    for method in study.shown:
        task = next((t for t in visual if study.asked(method, t)), None)
        own = study.cells.iloc[places[method]]
        own = own[own["status"] == "finished"]
        if method.control or task is None or own["backbone_mparams"].isna().all():
            continue
        here = own[(own["shots"] == task.shots) & (own["annotation"] == task.annotation)]
        devices |= {"GPU" if device.startswith("cuda") else "CPU" for device in own["device"]}
        entries: list[Entry] = []
        for name in FIGURES:
            known = here[here[name].notna()]
            entries.append(_number(known, sum(known[name]) / len(known), 2) if len(known) else None)
        entries.append(_number(here, 1000 * sum(here["seconds"]) / max(1, sum(here["episodes"])), 1))
        entries.append(_number(own, sum(own["seconds"]) / 3600, 2))
        entries.append(study.number(method, task))
        rows.append(Row((*captions.labels(study, method), str(task)), tuple(entries)))
    if not rows:
        return None
    unit = "-and-".join(sorted(devices))
    return captions.table(
        study,
        "cost",
        f"What accuracy costs on {captions.data_name(study)}{captions.trained_on(study)}.",
        ("Backbone", "Method", "Task"),
        [Column((upper, name.format(unit))) for upper, name in COLUMNS],
        rows,
        "A multiply-add is two operations. Match: the prior maps of an episode's supports; decode: fusing and all "
        "steps of the sampler. Parameters of a backbone are those of its image encoder, classifier included.",
        "Milliseconds are wall time of evaluation as the grid ran it, with whatever was encoded before and shared "
        "by cells; hours are the sum over all cells of the row, training not counted.",
    )


def _number(cells: pd.DataFrame, value: float, decimals: int) -> Number:
    return Number(value=float(value), decimals=decimals, keys=tuple(cells["key"]), episodes=int(sum(cells["episodes"])))
