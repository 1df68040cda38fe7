"""The grids under test, as scripts like any other: ``tools/faults/grid.py fake|quickstart NAME --results DIR``.

``fake`` has 2 training and 28 evaluation cells of fake work (`tools.faults.work`) that log their executions;
``quickstart`` is ``experiments/quickstart.py`` with its own options. Both under a name that is the MLflow experiment.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.cli import Grid, GridOptions, Study, run
from cluster.options import Count
from diffup.config import InputConfig
from diffup.grid.axes import PRIOR_MEAN, Backbone, evaluation_cells, tasks, training_cell
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data
from diffup.training.recipes import Recipe

DATA = Data(name="faults", fingerprint="0" * 12)
INPUT = InputConfig(input_size=32, feature_grid=8)
BACKBONES = ("resnet18", "resnet34")


def grid(episodes: int) -> list[AnyCell]:
    """2 training cells; for each 2 backbones × (1, 5 shots × mask, box; 1-shot scribble); the prior mean besides, and
    once more on another fold with twice the episodes."""
    backbones = [Backbone(name=name, weights="random:0") for name in BACKBONES]
    cells: list[AnyCell] = []
    for variant in ("diffup", "one_step"):
        trained = training_cell(DATA, 0, backbones[0], Recipe(input=INPUT), variant=variant)
        what = tasks((1, 5), ("mask", "box")) + tasks((1,), ("scribble",))
        cells += [
            trained,
            *evaluation_cells(DATA, 0, backbones, what, config=INPUT, episodes=episodes, trained=trained),
        ]
    what = tasks((1, 5), ("mask",))
    for fold, count in enumerate((episodes, 2 * episodes)):
        cells += evaluation_cells(DATA, fold, backbones, what, config=INPUT, episodes=count, sample=PRIOR_MEAN)
    return cells


@dataclass(frozen=True, kw_only=True)
class FakeOptions(GridOptions):
    """Options of the fake grid."""

    episodes: Count = 20
    log: Path
    """folder where executions are logged"""


def build(asked: FakeOptions) -> Grid:
    """The fake grid."""
    return grid(asked.episodes), {DATA.name: asked.log / "dataset.json"}


def main() -> int:
    """``grid.py fake|quickstart NAME …``."""
    which, name, *arguments = sys.argv[1:]
    study: Study[Any]
    if which == "fake":
        from tools.faults.work import WORK

        study = Study(name=name, description=__doc__, options=FakeOptions, build=build, work=WORK)
    else:
        from experiments import quickstart

        study = replace(quickstart.STUDY, name=name)
    return run(study, arguments)


if __name__ == "__main__":
    sys.exit(main())
