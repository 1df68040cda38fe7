"""`cluster.execution.run_cell` on the toy data set and backbone: a real training that takes a second."""

from __future__ import annotations

from typing import Any

from cluster.execution import inputs
from cluster.execution import run_cell as work
from cluster.execution.context import WorkContext
from cluster.options import Work
from diffup.grid.cell import AnyCell
from tests.helpers.toy import ToyBackbone, ToyDataset


def execute(cell: AnyCell, options: WorkContext) -> Any:
    """As `cluster.execution.run_cell.execute`."""
    inputs._open = lambda path: ToyDataset()  # type: ignore[assignment]
    inputs._backbone = lambda *where: ToyBackbone()  # type: ignore[assignment]
    return work.execute(cell, options)


WORK = Work(execute)
