"""A stand-in for `cluster.execution.run_cell` whose cells cost nothing; a cell's variant says how it behaves.

Each execution leaves a line ``key pid`` in ``executions.log`` beside the results, so that tests can count them.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image

from cluster.options import Work
from diffup.grid.cell import AnyCell, Cell, TrainingCell

if TYPE_CHECKING:
    from cluster.execution.context import WorkContext
    from cluster.execution.run_cell import Part


@dataclass(frozen=True)
class Outcome:
    """The same fields as the real one."""

    metrics: dict[str, float]
    episodes: pd.DataFrame | None
    provenance: dict[str, object]
    panels: dict[str, Image.Image]


class OutOfMemoryError(RuntimeError):
    """Has the name of CUDA's."""


def evaluate_part(cell: Cell, context: WorkContext, start: int, end: int) -> Part:
    """The rows of some episodes."""
    with (context.results.parent / "executions.log").open("a") as log:
        log.write(f"{cell.key()}@{start} {os.getpid()}\n")
    if cell.variant == "slow":
        time.sleep(0.3)
    from cluster.execution.run_cell import Part

    return Part(counts(cell)[start:end], {"device": context.device}, 0.1)


def conclude(cell: Cell, context: WorkContext, parts: list[Part]) -> Outcome:
    """All of them, in order."""
    table = pd.concat([part.episodes for part in parts], ignore_index=True)
    assert list(table["episode"]) == list(range(cell.episodes))
    provenance: dict[str, object] = {"device": context.device, "weights_hash": "abc", "threads": context.threads}
    metrics = {"miou": float(100 * table["inter_fg"].sum() / table["union_fg"].sum()), "seconds": 0.1}
    return Outcome(metrics, table, provenance, {"episode_0000": Image.new("RGB", (8, 8))})


def execute(cell: AnyCell, context: WorkContext) -> Outcome:
    """Counts that are a function of the cell's key; trouble as its variant says."""
    with (context.results.parent / "executions.log").open("a") as log:
        log.write(f"{cell.key()} {os.getpid()}\n")
    if cell.variant == "fails":
        raise ValueError(f"cell {cell.key()} fails on purpose")
    if cell.variant == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if cell.variant == "slow":
        time.sleep(0.5)
    if cell.variant == "endless":
        time.sleep(1000)
    if cell.variant == "greedy" and context.batch_size > 2:
        raise OutOfMemoryError("out of memory")
    provenance: dict[str, object] = {"device": context.device, "weights_hash": "abc", "threads": context.threads}
    if isinstance(cell, TrainingCell):
        folder = context.results / cell.key() / "checkpoint"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(cell.key().encode())
        (folder / "config.json").write_text("{}")
        return Outcome({"loss": 0.5, "seconds": 0.1}, None, provenance, {})
    if cell.checkpoint:
        assert (context.results / cell.checkpoint / "checkpoint" / "model.safetensors").is_file()
    table = counts(cell)
    metrics = {"miou": float(100 * table["inter_fg"].sum() / table["union_fg"].sum()), "seconds": 0.1}
    return Outcome(metrics, table, provenance, {"episode_0000": Image.new("RGB", (8, 8))})


def execute_together(
    cells: Sequence[Cell], context: WorkContext, start: int = 0, end: int = 0
) -> Iterator[tuple[Cell, Outcome | Part | Exception]]:
    """One after the other, each as it is alone."""
    for cell in cells:
        try:
            yield cell, evaluate_part(cell, context, start, end) if end else execute(cell, context)
        except Exception as error:
            yield cell, error


def counts(cell: Cell) -> pd.DataFrame:
    """A cell's rows."""
    rng = np.random.default_rng(int(cell.key(), 16))
    inter = rng.integers(1, 100, cell.episodes)
    return pd.DataFrame(
        {
            "episode": range(cell.episodes),
            "class_id": [i % 4 for i in range(cell.episodes)],
            "class_name": [f"class {i % 4}" for i in range(cell.episodes)],
            "inter_fg": inter,
            "union_fg": inter + rng.integers(0, 100, cell.episodes),
            "seconds": rng.random(cell.episodes),
        }
    )


WORK = Work(execute, evaluate_part, conclude, execute_together)
