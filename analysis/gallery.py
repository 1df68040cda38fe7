"""Which panels to show, by rule: the worst, median and best of the episodes that every backbone shows.

Every cell keeps panels of its manifest's first episodes (`diffup.panels.SHARED`), which nobody chose, and of its own
worst, median and best. Of the former those are shown that are worst, median and best by their mean IoU over the
backbones compared, so that all backbones are shown on the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis import captions
from analysis.frame import Results
from analysis.places import Subject, Task
from analysis.plots import home_of
from analysis.questions import ordered, shown
from analysis.scores import Study
from diffup.metrics import episode_ious

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


def gallery(results: Results, study: Study) -> list[Shown]:
    """The panels of DiffUp, or of the first method where it was not run, on all backbones, by task and fold."""
    home, found = home_of(study), []
    rows = [s for s in shown(study) if s.variant == "diffup" and s.trained_on == home and not s.control]
    rows = rows or [s for s in shown(study) if s.method == shown(study)[0].method and not s.control]
    for task in ordered(list(study.folds_by_task)):
        for fold in study.folds_by_task[task]:
            members = {s: key for s in rows if (key := _key(study, s, task, fold))}
            for rank, episode in _chosen(results, list(members.values())).items():
                for subject, key in members.items():
                    found.append(_shown(results, study, subject, key, task, fold, rank, episode))
    return found


def _key(study: Study, subject: Subject, task: Task, fold: int) -> str:
    """The subject's first cell there, of the first training and episode seed; ``""`` without one."""
    seeds = study.runs.get((subject, task), {}).get(fold, {})
    return seeds[min(seeds)][0] if seeds else ""


def _panels(results: Results, key: str) -> dict[int, Path]:
    found = {}
    for path in sorted((results.root / key / "panels").glob("episode_*.*")):
        number = path.stem.removeprefix("episode_")
        if number.isdecimal():
            found[int(number)] = path
    return found


def _chosen(results: Results, keys: Sequence[str]) -> dict[str, int]:
    """Episodes by rank; empty where the cells have no panel in common."""
    if not keys:
        return {}
    common = sorted(set.intersection(*(set(_panels(results, key)) for key in keys)))
    ious = []
    for key in keys:
        counts = results.counts[key]
        by_episode = dict(zip(counts.episode.tolist(), episode_ious(counts.counts[:, 0], counts.counts[:, 1])))
        common = [episode for episode in common if episode in by_episode]
        ious.append(by_episode)
    if not common:
        return {}
    means = [float(np.mean([by_episode[episode] for by_episode in ious])) for episode in common]
    order = np.argsort(means, kind="stable")
    places = {"worst": order[0], "median": order[len(order) // 2], "best": order[-1]}
    return {rank: common[places[rank]] for rank in RANKS}


def _shown(
    results: Results, study: Study, subject: Subject, key: str, task: Task, fold: int, rank: str, episode: int
) -> Shown:
    counts = results.counts[key]
    row = int(np.searchsorted(counts.episode, episode))
    iou = 100 * float(episode_ious(counts.counts[row, 0], counts.counts[row, 1])[0])
    backbone, method = captions.labels(study, subject)
    path = _panels(results, key)[episode]
    return Shown(path, str(task), fold, rank, backbone, method, episode, iou, key)
