"""What a protocol alone does to a figure: one checkpoint a fold, evaluated under several protocols.

    python experiments/protocol_study.py --dataset DIR/dataset.json --weights-dir DIR --results DIR
    python -m analysis spread --results DIR --out DIR

With the defaults, a fold: 1 training cell (under ``paired``), and for each protocol its own number of episodes and all
of its episode seeds: 1 and 5 masks, DiffUp and the prior mean, tested on the backbone of the training. On a data set of
the user's own that is 1000 episodes each, 52 evaluation cells a fold. Nothing has a bank, which each protocol would
draw by a rule of its own. ``hsnet`` needs ``--lists`` on the benchmarks.
The table says for each protocol what it gives, and how far that is from ``paired``; for protocols with several seeds
also what the best of them gives, which some papers report.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import diffup.checkout  # noqa: F401
from analysis.printing import printed
from cluster.cli import DatasetOptions, Grid, Study, run
from cluster.options import CountOrNone, Folder, Name, Names, NumbersOrNone
from diffup.grid.axes import PRIOR_MEAN, Backbone, evaluation_cells, tasks, training_cell
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data, open_data
from diffup.training import recipes

if TYPE_CHECKING:
    from analysis.tables.table import Table

PROTOCOLS = ("paired", "hsnet", "pfenet", "bam", "panet")
SHOTS = (1, 5)
BACKBONE = "resnet50"


def grid(
    data: Sequence[Data], backbone: Backbone, *, folds: Sequence[int], episodes: int = 0, seed: int = 0
) -> list[AnyCell]:
    """One training cell a fold under the first protocol, evaluated under all of them.

    Args:
        data: the same data set under each protocol.
        backbone: of training and tests.
        folds: which.
        episodes: per evaluation cell; 0: as many as the protocol has.
        seed: of training.
    """
    from diffup.episodes.protocols import get_protocol

    recipe = recipes.BENCHMARKS.get(data[0].name, recipes.photographs()).changed(input={"bank": 0})
    cells: list[AnyCell] = []
    for fold in folds:
        trained = training_cell(data[0], fold, backbone, recipe, seed=seed)
        cells.append(trained)
        for part in data:
            protocol = get_protocol(part.protocol)
            number = episodes or protocol.episode_count(part.name)
            for episode_seed in protocol.seeds:
                for what in ({"trained": trained}, {"sample": PRIOR_MEAN}):
                    cells += evaluation_cells(
                        part, fold, [backbone], tasks(SHOTS, ("mask",)), config=recipe.input, episodes=number,
                        episode_seed=episode_seed, **what,
                    )  # fmt: skip
    return cells


@dataclass(frozen=True, kw_only=True)
class ProtocolStudy(DatasetOptions):
    """Options of this grid."""

    episodes: CountOrNone = None
    """per cell (default: as many as the protocol has)"""
    protocols: Names = PROTOCOLS
    """the first one trains"""
    lists: Folder = None
    """HSNet's splits, for hsnet"""
    backbone: Name = BACKBONE
    """of training and tests"""
    folds: NumbersOrNone = None
    """which folds (default: all)"""


def build(asked: ProtocolStudy) -> Grid:
    """The grid on the data set under each protocol."""
    from diffup.data.dataset import open_dataset, resolve_dataset

    path = resolve_dataset(asked.dataset)
    dataset = open_dataset(path)
    data = [
        open_data(path, shots=max(SHOTS), protocol=name, lists=asked.lists, dataset=dataset)
        for name in dict.fromkeys(asked.protocols)
    ]
    (backbone,) = asked.find_backbones([asked.backbone]).values()
    folds = data[0].chosen_folds(asked.folds)
    cells = grid(data, backbone, folds=folds, episodes=asked.episodes or 0, seed=asked.seed)
    return cells, {name: path for part in data for name, path in part.files().items()}


def tables(results: Path, keys: list[str]) -> list[Table]:
    """What each protocol gives, and how far that is from the first."""
    from analysis.tables.protocol_spread import spread_tables

    return list(spread_tables(results, keys=keys))


STUDY = Study(name="protocol_study", description=__doc__, options=ProtocolStudy, build=build, report=printed(tables))

if __name__ == "__main__":
    sys.exit(run(STUDY))
