"""`cluster.work` on the toy data set and backbone of the unit tests: a real training that takes a second."""

from __future__ import annotations

from typing import Any

from cluster import context, work
from cluster.work import WorkContext
from experiments.cell import AnyCell
from tests.unit.toy import ToyBackbone, ToyDataset

__all__ = ["WorkContext", "execute"]


def execute(cell: AnyCell, options: WorkContext) -> Any:
    """As `cluster.work.execute`."""
    context._open = lambda path: ToyDataset()  # type: ignore[assignment]
    context._backbone = lambda *where: ToyBackbone()  # type: ignore[assignment]
    return work.execute(cell, options)
