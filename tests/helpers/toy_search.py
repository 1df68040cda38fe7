"""A search that really trains, on toys: ``python toy_search.py --results DIR [--kill-after N]`` (see `toy_work`).

Configuration 1 learns next to nothing, 3 too much. With ``--kill-after`` the driver kills itself after so many scores.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.hpo.trials import Candidate, Record, Search, halvings, validation_classes
from cluster.options import parse
from diffup.config import ModelConfig, TrainConfig
from diffup.grid.axes import evaluation_cells, training_cell
from diffup.training.recipes import Recipe
from experiments import search as script
from tests.helpers.toy import ToyDataset
from tests.helpers.toy_grid import BACKBONE, DATA, INPUT
from tests.helpers.toy_work import WORK

RATES = (3e-3, 1e-7, 1e-2, 30.0)
STEPS, SIZES = 24, (48, 96)


def candidate(rate: float, hold_out: int = 1, episodes: int = 4, steps: int = STEPS) -> Candidate:
    """A configuration of this learning rate."""
    train = TrainConfig(steps=steps, batch_size=4, max_shots=2, learning_rate=rate, hold_out=hold_out)
    recipe = Recipe(input=INPUT, model=ModelConfig(decoder_grid=16, width=16), train=train)
    cell = training_cell(DATA, 0, BACKBONE, config=recipe.input, model=recipe.model, train=recipe.train)
    validation = [
        found
        for size in SIZES
        for found in evaluation_cells(
            DATA, 0, [BACKBONE], [(1, "mask")], config=dataclasses.replace(INPUT, input_size=size), episodes=episodes,
            trained=cell, held_out=hold_out,
        )
    ]  # fmt: skip
    return Candidate(cell=cell, values={"learning_rate": rate}, validation=tuple(validation))


def search(rates: tuple[float, ...] = RATES) -> Search:
    """Configurations of these learning rates."""
    candidates = [candidate(rate) for rate in rates]
    dataset: Any = ToyDataset()
    classes = validation_classes(dataset, candidates[0].validation)
    return Search(name="toy", candidates=candidates, milestones=halvings(STEPS, 2, 3), reduction=2, classes=classes)


@dataclass(frozen=True, kw_only=True)
class ToyOptions(script.SearchOptions):
    """Options of the toy search."""

    kill_after: int = 0


def build(asked: script.SearchOptions) -> script.Searches:
    """The toy search."""
    return [search()], {"toy": Path("/nowhere/dataset.json")}


def main() -> int:
    """Run the toy search."""
    arguments = ["--embedded", "--max-concurrent", "1", *sys.argv[1:]]
    asked = parse(ToyOptions, arguments, prog="toy_search.py", description="")
    if asked.kill_after:
        honest = Record.add

        def add(self: Record, key: str, score: Any) -> bool:
            done = honest(self, key, score)
            if sum(len(entry["scores"]) for entry in self.entries.values()) >= asked.kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        Record.add = add  # type: ignore[method-assign]
    return script.run(asked, build, WORK)


if __name__ == "__main__":
    sys.exit(main())
