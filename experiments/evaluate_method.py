"""A method of your own beside every training-free rival, on the same episodes, without a grid script.

    diffup eval my_package.my_module:my_method --dataset DIR/dataset.json --shots 1,5 --annotations mask,box
    python experiments/evaluate_method.py my_package.my_module:my_method --dataset shapes4i --backbones tiny_resnet

The method is a function ``(query, supports, cues) → probability`` (`diffup.evaluation.adapter`), by the path of its
module, or the name of an entry point of group ``diffup.methods``; the folder that the command is started in is looked
through for the module, too. Nothing is trained: one cell per fold, shots and annotation for the method, and eight for
each backbone, its rivals: prototype, INSID3's rule, prior mean, and absolute evidence in five forms. Run again, only
what is missing is evaluated; an edited method is evaluated again, its rivals are not.

Expect a table per task: mIoU with its 95 % interval of each, and the paired difference of the method to it, over the
same episodes and resampled together; a star marks an interval without 0, *differs* what stays so after Holm's
correction over its table (p < 0.05).
Seconds per episode and cell are those of the method, and some 0.1 s for a rival on ResNet-50 and 2 cores.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

import diffup.checkout  # noqa: F401
from analysis.printing import printed
from cluster.cli import DatasetOptions, Grid, ProtocolOptions, Study, run
from cluster.options import CountOrNone, Name, Names, Numbers, NumbersOrAll, Seconds, Text
from diffup.config import InputConfig, SampleConfig, check_annotation
from diffup.grid.axes import OWN, RIVALS, Backbone, adapter, evaluation_cells, tasks, unique
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data

if TYPE_CHECKING:
    from analysis.tables.places import MethodKey, Task
    from analysis.tables.scores import Study as Scored
    from analysis.tables.table import Table

EPISODES, BANK = 300, 60


def grid(
    data: Data,
    method: SampleConfig,
    *,
    name: str,
    backbones: Sequence[Backbone],
    tested: Sequence[tuple[int, str]],
    folds: Sequence[int],
    episodes: int = EPISODES,
    bank: int = BANK,
) -> list[AnyCell]:
    """The method and its rivals.

    Args:
        data: with its folds.
        method: of `diffup.grid.axes.adapter`.
        name: of its rows.
        backbones: of the rivals.
        tested: pairs of shots and annotation.
        folds: which.
        episodes: per cell.
        bank: images of the bank; 0: without the rivals that read one.
    """
    cells: list[AnyCell] = []
    for fold in folds:
        made = partial(evaluation_cells, data, fold, tasks=tested, episodes=episodes)
        cells += made(backbones=[OWN], config=InputConfig(), sample=method, variant=name)
        for variant, (sample, reads_bank) in RIVALS.items():
            if bank or not reads_bank:
                config = replace(InputConfig(), bank=bank if reads_bank else 0)
                cells += made(backbones=backbones, config=config, sample=sample, variant=variant)
    return unique(cells)


@dataclass(frozen=True, kw_only=True)
class EvaluateMethod(DatasetOptions, ProtocolOptions):
    """Options of this study."""

    steps: tyro.conf.Suppress[CountOrNone] = None
    time_budget: tyro.conf.Suppress[Seconds] = None
    function: tyro.conf.Positional[Name]
    """package.module:function, or an entry point of group diffup.methods"""
    episodes: CountOrNone = None
    """per cell (default: 300; with another protocol than paired as many as it has)"""
    shots: Numbers = (1, 5)
    """numbers of supports"""
    annotations: Names = ("mask",)
    """of the supports: mask, box, scribble, or mixes such as mask+box"""
    backbones: Names = ("resnet50",)
    """of the rivals"""
    folds: NumbersOrAll = ()
    """which (default: all)"""
    bank: int = BANK
    """images that rivals of absolute evidence may know; 0: leave out those that need some"""
    version: Text = ""
    """of the method, where it lies in several files (default: the hash of its own)"""


def build(asked: EvaluateMethod) -> Grid:
    """The study of the method that is asked for."""
    method = adapter(asked.function, version=asked.version)
    for shots, annotation in (tested := tasks(asked.shots, asked.annotations)):
        check_annotation(annotation, shots)
    found = asked.find_backbones(asked.backbones)
    data = asked.open(asked.dataset, shots=max(asked.shots))
    cells = grid(
        data,
        method,
        name=asked.function.rpartition(":")[2],
        backbones=[found[name] for name in asked.backbones],
        tested=tested,
        folds=data.chosen_folds(asked.folds or None),
        episodes=asked.episodes_of(data.name, EPISODES),
        bank=asked.bank,
    )
    return cells, data.files()


def comparison(results: Path, keys: list[str]) -> Iterable[Table]:
    """A table per task: each rival's figure and the method's paired difference to it.

    DiffUp is among the rivals where another study has evaluated it on the same episodes in the same folder.
    """
    from analysis.results import load_results, only
    from analysis.tables.scores import studies

    found = load_results(results)
    cells = found.cells
    mine = cells["key"].isin(keys)
    same = (cells["variant"] == "diffup") & cells["manifest_hash"].isin(set(cells[mine]["manifest_hash"]) - {""})
    for study in studies(only(found, cells[mine | same]["key"])):
        (own,) = (method for method in study.methods if method.method == "adapter")
        yield from (_compared(study, own, task) for task in study.tasks if study.asked(own, task))


def _compared(study: Scored, own: MethodKey, task: Task) -> Table:
    from analysis.tables import captions
    from analysis.tables.table import MISSING, Row, differs

    rivals = [method for method in study.methods if method != own and study.asked(method, task)]
    gaps = [study.difference((own, task), (rival, task)) for rival in rivals]
    rows = [Row(("", own.variant), (study.number(own, task), "", ""))]
    for rival, gap, apart in zip(rivals, gaps, differs(gaps)):
        verdict = MISSING if gap is None else "undecided" if apart is None else "yes" if apart else "no"
        rows.append(Row(captions.labels(study, rival), (study.number(rival, task), gap, verdict)))
    return captions.table(
        study,
        f"method_{task}".replace(" ", "_"),
        f"{own.variant} on {captions.data_name(study)}, {task}: mIoU in %, and its paired difference to each rival.",
        ("Backbone", "Method"),
        captions.columns("mIoU", "difference", "differs"),
        rows,
        "Differs: the paired difference is not 0 (p < 0.05 after Holm's correction over the rivals of this table).",
    )


STUDY = Study(
    name="evaluate_method", description=__doc__, options=EvaluateMethod, build=build, report=printed(comparison)
)

if __name__ == "__main__":
    sys.exit(run(STUDY))
