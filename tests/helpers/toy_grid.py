"""A grid that really trains and evaluates, on toys: ``python toy_grid.py --results DIR`` (see `toy_work`)."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from cluster.cli import Grid, GridOptions, Study, run
from cluster.options import Count
from diffup.config import InputConfig, ModelConfig, TrainConfig
from diffup.grid.axes import Backbone, evaluation_cells, training_cell
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data
from diffup.training.recipes import Recipe

DATA = Data(name="toy", folds=3)
INPUT = InputConfig(input_size=64, feature_grid=8, feature_dtype="float32")
MODEL = ModelConfig(decoder_grid=16, width=16)
TRAIN = TrainConfig(steps=4, batch_size=4, max_shots=3)
BACKBONE = Backbone(name="resnet18", weights="random:0")


def grid(episodes: int = 6) -> list[AnyCell]:
    """One training and one evaluation cell."""
    trained = training_cell(DATA, 0, BACKBONE, Recipe(input=INPUT, model=MODEL, train=TRAIN))
    tasks = [(1, "mask")]
    return [trained, *evaluation_cells(DATA, 0, [BACKBONE], tasks, config=INPUT, episodes=episodes, trained=trained)]


@dataclass(frozen=True, kw_only=True)
class ToyOptions(GridOptions):
    """Options of the toy grid."""

    episodes: Count = 6


def build(asked: ToyOptions) -> Grid:
    """The toy grid."""
    return grid(asked.episodes), {"toy": Path("/nowhere/dataset.json")}


if __name__ == "__main__":
    from tests.helpers.toy_work import WORK

    sys.exit(run(Study(name="toy", description=__doc__, options=ToyOptions, build=build, work=WORK)))
