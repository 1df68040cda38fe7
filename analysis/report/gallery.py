"""Which panels to show, by rule: the worst, median and best of the episodes that every backbone shows.

Every cell keeps panels of its manifest's first episodes (`diffup.evaluation.panels.SHARED`), which nobody chose, and of
its own worst, median and best. Of the former those are shown that are worst, median and best by their mean IoU over the
backbones compared, so that all backbones are shown on the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from analysis.plots.study import home_of
from analysis.results import Results
from analysis.tables import captions
from analysis.tables.main import ordered, shown
from analysis.tables.places import Subject, Task
from analysis.tables.scores import Study
from diffup.evaluation.metrics import episode_ious

RANKS = ("worst", "median", "best")
LINE = 26  # pixels of the text above a panel
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


def sheets(panels: Sequence[Shown]) -> dict[str, bytes]:
    """One picture a task, JPEG by name, of the first fold's panels: rank by rank, a row a backbone."""
    made: dict[str, bytes] = {}
    for task in dict.fromkeys(panel.task for panel in panels):
        here = [panel for panel in panels if panel.task == task]
        rows = [panel for panel in here if panel.fold == here[0].fold]
        images = [_labelled(panel) for panel in rows]
        sheet = Image.new("RGB", (max(i.width for i in images), sum(i.height for i in images)), "white")
        top = 0
        for image in images:
            sheet.paste(image, (0, top))
            top += image.height
        buffer = BytesIO()
        sheet.save(buffer, format="JPEG", quality=85)
        made[f"panels_{re.sub(r'[^A-Za-z0-9]+', '_', task)}"] = buffer.getvalue()
    return made


def _labelled(panel: Shown) -> Image.Image:
    """A panel with a line of text above it."""
    image = Image.open(panel.path)
    whole = Image.new("RGB", (image.width, image.height + LINE), "white")
    text = f"{panel.rank}: {panel.method} on {panel.backbone}, fold {panel.fold}, episode {panel.episode}"
    ImageDraw.Draw(whole).text((0, 8), text, fill="black", font=ImageFont.load_default(12))
    whole.paste(image, (0, LINE))
    return whole
