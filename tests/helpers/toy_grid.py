"""A grid that really trains and evaluates, on toys: ``python toy_grid.py --results DIR`` (see `toy_work`)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cluster.cli import parser, run
from diffup.config import InputConfig, ModelConfig, TrainConfig
from diffup.grid.axes import Backbone, evaluation_cells, training_cell
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data

DATA = Data(name="toy", folds=3)
INPUT = InputConfig(input_size=64, feature_grid=8, feature_dtype="float32")
MODEL = ModelConfig(decoder_grid=16, width=16)
TRAIN = TrainConfig(steps=4, batch_size=4, max_shots=3)
BACKBONE = Backbone(name="resnet18", weights="random:0")


def grid(episodes: int = 6) -> list[AnyCell]:
    """One training and one evaluation cell."""
    trained = training_cell(DATA, 0, BACKBONE, config=INPUT, model=MODEL, train=TRAIN)
    tasks = [(1, "mask")]
    return [trained, *evaluation_cells(DATA, 0, [BACKBONE], tasks, config=INPUT, episodes=episodes, trained=trained)]


def main() -> int:
    """Run the toy grid."""

    def build(args: argparse.Namespace) -> tuple[list[AnyCell], dict[str, Path]]:
        return grid(args.episodes), {"toy": Path("/nowhere/dataset.json")}

    return run("toy", parser("toy", __doc__ or "", episodes=6).parse_args(), build, work="tests.helpers.toy_work")


if __name__ == "__main__":
    sys.exit(main())
