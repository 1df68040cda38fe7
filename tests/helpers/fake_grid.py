"""A grid of fake cells as a script: ``python fake_grid.py --results DIR --variants a,b,c`` (see `fake_work`)."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cluster.cli import Grid, GridOptions, Study, run
from cluster.options import Count, Names
from diffup.config import InputConfig
from diffup.grid.axes import PRIOR_MEAN, Backbone, evaluation_cells, tasks, training_cell
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data
from diffup.training.recipes import Recipe

DATA = Data(name="fake", fingerprint="0" * 12)
INPUT = InputConfig(input_size=32, feature_grid=8)


def grid(variants: tuple[str, ...], episodes: int = 20, training: str = "diffup") -> list[AnyCell]:
    """One training cell, and per variant one cell for each of two backbones × two shots; prior_mean besides."""
    backbones = [Backbone(name=name, weights="random:0") for name in ("resnet18", "resnet34")]
    trained = training_cell(DATA, 0, backbones[0], Recipe(input=INPUT), variant=training)
    evaluate = partial(evaluation_cells, DATA, 0, backbones, config=INPUT, episodes=episodes)
    cells: list[AnyCell] = [trained]
    for variant in variants:
        cells += evaluate(tasks((1, 5), ("mask",)), trained=trained, variant=variant)
    return cells + evaluate(tasks((1,), ("mask",)), sample=PRIOR_MEAN)


@dataclass(frozen=True, kw_only=True)
class FakeOptions(GridOptions):
    """Options of the fake grid."""

    episodes: Count = 20
    variants: Names = ("diffup",)
    training: str = "diffup"


def build(asked: FakeOptions) -> Grid:
    """The fake grid."""
    return grid(asked.variants, asked.episodes, asked.training), {"fake": Path("/nowhere/dataset.json")}


if __name__ == "__main__":
    from tests.helpers.fake_work import WORK

    sys.exit(run(Study(name="fake", description=__doc__, options=FakeOptions, build=build, work=WORK)))
