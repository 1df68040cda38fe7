"""Which panels to show, by rule: the worst, median and best of the episodes that every backbone shows.

Every cell keeps panels of its manifest's first episodes (`diffup.evaluation.panels.SHARED`), without selection, and of
its own worst, median and best. Of the former those are shown that are worst, median and best by their mean IoU over the
backbones compared, so that all backbones are shown on the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.plots.looks import home_of
from analysis.results import Results
from analysis.tables import captions
from analysis.tables.places import MethodKey, Task
from analysis.tables.scores import Study
from diffup.config import support_kinds
from diffup.evaluation.metrics import episode_ious

RANKS = ("worst", "median", "best")
RULE = (
    "Of the first episodes of each manifest, which nobody chose, the worst, median and best by mean IoU over the "
    "backbones shown."
)


@dataclass(frozen=True)
class Shown:
    """A panel.

    Attributes:
        path: of the image.
        task, fold, rank, backbone, method: what it is of.
        episode: its id.
        iou: of the episode, in percent.
        key: of the cell.
        supports: whether the panel shows any.
    """

    path: Path
    task: str
    fold: int
    rank: str
    backbone: str
    method: str
    episode: int
    iou: float
    key: str
    supports: bool


def gallery(results: Results, study: Study) -> list[Shown]:
    """The panels of DiffUp, or of the first method where it was not run, on all backbones, by task and fold."""
    home, found = home_of(study), []
    methods = [m for m in study.shown if m.variant == "diffup" and m.trained_on == home and not m.control]
    methods = methods or [m for m in study.shown if m.method == study.shown[0].method and not m.control]
    for task in study.tasks:
        for fold in study.folds_by_task[task]:
            keys = {m: key for m in methods if (key := _key(study, m, task, fold))}
            panels = {key: _panels(results, key) for key in keys.values()}
            ious = {key: _ious(results, key) for key in panels}
            supports = bool(support_kinds(task.annotation, task.shots))
            for rank, episode in _chosen(panels, ious).items():
                for method, key in keys.items():
                    backbone, name = captions.labels(study, method)
                    iou = 100 * ious[key][episode]
                    path = panels[key][episode]
                    found.append(Shown(path, str(task), fold, rank, backbone, name, episode, iou, key, supports))
    return found


def _key(study: Study, method: MethodKey, task: Task, fold: int) -> str:
    """The method's first cell there, of the first training and episode seed; ``""`` without one."""
    seeds = study.runs.get((method, task), {}).get(fold, {})
    return seeds[min(seeds)][0] if seeds else ""


def _panels(results: Results, key: str) -> dict[int, Path]:
    paths = {path.stem.removeprefix("episode_"): path for path in (results.root / key / "panels").glob("episode_*.*")}
    return {int(number): paths[number] for number in sorted(paths) if number.isdecimal()}


def _ious(results: Results, key: str) -> dict[int, float]:
    counts = results.counts[key]
    return dict(zip(counts.episode.tolist(), episode_ious(counts.counts[:, 0], counts.counts[:, 1]).tolist()))


def _chosen(panels: dict[str, dict[int, Path]], ious: dict[str, dict[int, float]]) -> dict[str, int]:
    """Episodes by rank; empty where the cells have no panel in common."""
    common = sorted(set.intersection(*(set(panels[key]) & set(ious[key]) for key in panels))) if panels else []
    if not common:
        return {}
    order = np.argsort([float(np.mean([of[episode] for of in ious.values()])) for episode in common], kind="stable")
    return {rank: common[order[place]] for rank, place in zip(RANKS, (0, len(order) // 2, -1))}
