"""What accuracy costs: parameters, operations, time per episode and hours in all, beside the mIoU."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from analysis.tables import captions
from analysis.tables.places import grouped
from analysis.tables.scores import Study
from analysis.tables.table import Column, Entry, Number, Row, Table

COLUMNS = (
    ("parameters (M)", "backbone"), ("parameters (M)", "trained"), ("GFLOPs", "encode an image"),
    ("GFLOPs", "match"), ("GFLOPs", "decode"), ("time", "ms an episode"), ("time", "{} hours"), ("", "mIoU"),
)  # fmt: skip
FIGURES = ("backbone_mparams", "decoder_mparams", "encode_gflops", "prior_gflops", "decode_gflops")

Facts = dict[Hashable, Any]  # a cell: columns of `Results.cells`


def cost_table(study: Study) -> Table | None:
    """Cost of each method on its first task (1-shot mask, if asked), and hours of all its cells; None if unknown."""
    rows, devices = [], set()
    facts: list[Facts] = study.cells[["key", "status", "device", "seconds", "episodes", *FIGURES]].to_dict("records")
    cells = grouped((cell.method, (cell.task, fact)) for cell, fact in zip(study.scored, facts))
    visual = [task for task in study.tasks if task.shots] or study.tasks
    for method in study.shown:
        task = next((t for t in visual if study.asked(method, t)), None)
        finished = [(of, fact) for of, fact in cells[method] if fact["status"] == "finished"]
        own, here = [fact for _, fact in finished], [fact for of, fact in finished if of == task]
        if method.control or task is None or not _known("backbone_mparams", own):
            continue
        devices |= {"GPU" if fact["device"].startswith("cuda") else "CPU" for fact in own}
        entries: list[Entry] = []
        for name in FIGURES:
            known = _known(name, here)
            entries.append(_number(known, _sum(name, known) / len(known), 2) if known else None)
        entries.append(_number(here, 1000 * _sum("seconds", here) / max(1, _sum("episodes", here)), 1))
        entries.append(_number(own, _sum("seconds", own) / 3600, 2))
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


def _known(name: str, cells: list[Facts]) -> list[Facts]:
    return [fact for fact in cells if fact[name] == fact[name]]


def _sum(name: str, cells: list[Facts]) -> float:
    return float(sum(fact[name] for fact in cells))


def _number(cells: list[Facts], value: float, decimals: int) -> Number:
    keys, episodes = tuple(fact["key"] for fact in cells), sum(fact["episodes"] for fact in cells)
    return Number(value=float(value), decimals=decimals, keys=keys, episodes=episodes)
