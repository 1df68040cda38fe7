"""A search that really trains, on toys: ``python toy_search.py --results DIR [--kill-after N]`` (see `toy_work`).

Configuration 1 learns next to nothing, 3 too much. With ``--kill-after`` the driver kills itself after so many scores.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from analysis.printing import printed
from analysis.tables.held_out import search_tables
from cluster.cli import Grid, Study, run
from cluster.hpo import launch
from cluster.hpo.trials import Candidate, Record, Search, searches_of
from diffup.config import ModelConfig, TrainConfig
from diffup.grid.axes import evaluation_cells, training_cell
from diffup.grid.cell import AnyCell, Cell, TrainingCell
from diffup.training.recipes import Recipe
from experiments import search as script
from tests.helpers.toy import ToyDataset
from tests.helpers.toy_grid import BACKBONE, DATA, INPUT
from tests.helpers.toy_work import WORK

RATES = (3e-3, 1e-7, 1e-2, 30.0)
STEPS, SIZES = 24, (48, 96)
NAME = "toy-resnet18-fold0-seed0"


def cells(rate: float, hold_out: int = 1, episodes: int = 4, steps: int = STEPS) -> tuple[TrainingCell, list[Cell]]:
    """The training cell of this learning rate, and those that score it."""
    train = TrainConfig(steps=steps, batch_size=4, max_shots=2, learning_rate=rate, hold_out=hold_out)
    recipe = Recipe(input=INPUT, model=ModelConfig(decoder_grid=16, width=16), train=train)
    cell = training_cell(DATA, 0, BACKBONE, recipe)
    evaluate = partial(evaluation_cells, DATA, 0, [BACKBONE], [(1, "mask")], episodes=episodes, held_out=hold_out)
    small, large = (dataclasses.replace(INPUT, input_size=size) for size in SIZES)
    return cell, [*evaluate(config=small, trained=cell), *evaluate(config=large, trained=cell)]


def candidate(rate: float, hold_out: int = 1, episodes: int = 4, steps: int = STEPS) -> Candidate:
    """A configuration of this learning rate."""
    cell, validation = cells(rate, hold_out, episodes, steps)
    return Candidate(cell=cell, values={"learning_rate": rate}, validation=tuple(validation))


def grid(rates: tuple[float, ...] = RATES) -> list[AnyCell]:
    """The cells of these learning rates."""
    made: list[AnyCell] = []
    for trained, validation in map(cells, rates):
        made += [trained, *validation]
    return made


def search(rates: tuple[float, ...] = RATES) -> Search:
    """Configurations of these learning rates."""
    dataset: Any = ToyDataset()
    (found,) = searches_of(grid(rates), {"toy": dataset}, reduction=2, milestones=3)
    return found


@dataclass(frozen=True, kw_only=True)
class ToyOptions(script.SearchOptions):
    """Options of the toy search."""

    kill_after: int = 0


def build(asked: ToyOptions) -> Grid:
    """The toy search."""
    return grid(), {"toy": Path("/nowhere/dataset.json")}


def launch_toy(*args: Any, **options: Any) -> int:
    """As `cluster.hpo.launch.launch_searches`."""
    launch.__dict__.update(resolve_dataset=Path, open_dataset=lambda path: ToyDataset())
    return launch.launch_searches(*args, **options, reduction=2, milestones=3)


STUDY = Study(
    name="search", description="", options=ToyOptions, build=build, launch=launch_toy, report=printed(search_tables),
    work=WORK,
)  # fmt: skip


def main() -> int:
    """Run the toy search."""
    arguments = ["--embedded", "--max-concurrent", "1", *sys.argv[1:]]
    asked = STUDY.parse(arguments)
    if asked.kill_after:
        honest = Record.add

        def add(self: Record, key: str, score: Any) -> bool:
            done = honest(self, key, score)
            if sum(len(entry["scores"]) for entry in self.entries.values()) >= asked.kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        Record.add = add  # type: ignore[method-assign]
    return run(STUDY, arguments)


if __name__ == "__main__":
    sys.exit(main())
