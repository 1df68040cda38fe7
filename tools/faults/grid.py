"""The grids under test, as scripts like any other: ``tools/faults/grid.py fake|quickstart NAME --results DIR``.

``fake`` has 2 training and 24 evaluation cells of fake work (`tools.faults.work`) that log their executions;
``quickstart`` is ``experiments/quickstart.py`` with its own options. Both under a name that is the MLflow experiment.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.cli import parser, run
from diffup.config import InputConfig
from diffup.grid.axes import PRIOR_MEAN, Backbone, evaluation_cells, tasks, training_cell
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data

DATA = Data(name="faults", fingerprint="0" * 12)
INPUT = InputConfig(input_size=32, feature_grid=8)
BACKBONES = ("resnet18", "resnet34")


def grid(episodes: int) -> list[AnyCell]:
    """2 training cells; for each 2 backbones × (1, 5 shots × mask, box; 1-shot scribble); the prior mean besides."""
    backbones = [Backbone(name=name, weights="random:0") for name in BACKBONES]
    cells: list[AnyCell] = []
    for variant in ("diffup", "one_step"):
        trained = training_cell(DATA, 0, backbones[0], config=INPUT, variant=variant)
        what = tasks((1, 5), ("mask", "box")) + tasks((1,), ("scribble",))
        cells += [
            trained,
            *evaluation_cells(DATA, 0, backbones, what, config=INPUT, episodes=episodes, trained=trained),
        ]
    what = tasks((1, 5), ("mask",))
    return cells + evaluation_cells(DATA, 0, backbones, what, config=INPUT, episodes=episodes, sample=PRIOR_MEAN)


def fake(name: str, arguments: Sequence[str]) -> int:
    """Run the fake grid; its executions are logged in the folder that ``--log`` names."""
    options = parser(name, __doc__ or "", episodes=20)
    options.add_argument("--log", type=Path, required=True, metavar="DIR")

    def build(args: argparse.Namespace) -> tuple[list[AnyCell], dict[str, Path]]:
        return grid(args.episodes), {DATA.name: args.log / "dataset.json"}

    return run(name, options.parse_args(arguments), build, work="tools.faults.work")


def quickstart(name: str, arguments: Sequence[str]) -> int:
    """Run the real quickstart under another name."""
    from experiments import quickstart

    quickstart.NAME = name
    return quickstart.main(arguments)


def main() -> int:
    """``grid.py fake|quickstart NAME …``."""
    which, name, *arguments = sys.argv[1:]
    return {"fake": fake, "quickstart": quickstart}[which](name, arguments)


if __name__ == "__main__":
    sys.exit(main())
