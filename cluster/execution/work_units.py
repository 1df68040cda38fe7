"""Work units, which is what a worker runs at a time: a whole cell, or some episodes of a long one.

The parts of a cell are in ``<key>/parts/`` until the last one is there; then they are merged, in order, to exactly what
one unit would have given. A part is written in full or not at all, and what a killed launch has evaluated is kept.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.code_version import code_hash
from cluster.storage.atomic import to_json, write_atomically
from cluster.storage.layout import PARTS
from cluster.storage.results import Store
from diffup.grid.cell import AnyCell, Cell, TrainingCell

if TYPE_CHECKING:
    import pandas as pd

    from cluster.execution.context import WorkContext


@dataclass(frozen=True)
class WorkUnit:
    """A cell, or its episodes from `start` to `end`.

    Attributes:
        end: 0: the whole cell.
    """

    cell: AnyCell
    start: int = 0
    end: int = 0

    @property
    def name(self) -> str:
        """The cell's key, or key and first episode."""
        return f"{self.cell.key()}@{self.start}" if self.end else self.cell.key()

    @property
    def whole(self) -> bool:
        """Whether it is the whole cell."""
        return not self.end

    @property
    def share(self) -> float:
        """Of the cell's episodes."""
        return (self.end - self.start) / self.cell.episodes if self.end and isinstance(self.cell, Cell) else 1.0


@dataclass(frozen=True)
class Part:
    """Some episodes of a cell: their rows, provenance, and seconds of work."""

    episodes: pd.DataFrame
    provenance: dict[str, Any]
    seconds: float


def pass_of(unit: WorkUnit) -> tuple[object, ...] | None:
    """Units of equal passes share queries, images and backbone, so that one pass over the episodes, or over the same
    range of them, serves them all; None for what shares nothing: trainings, foreign methods."""
    cell = unit.cell
    if not isinstance(cell, Cell) or cell.sample.method == "adapter":
        return None
    held_out = (cell.hold_out, cell.train_seed) if cell.classes == "held_out" else ()
    encoder = replace(cell.input.encoder, companion="", companion_weights="")  # whether text is read too is no matter
    return (
        cell.dataset, cell.dataset_hash, cell.protocol, cell.fold, cell.episode_seed, cell.classes, held_out,
        cell.tested, cell.backbone, cell.weights, encoder, unit.start, unit.end,
    )  # fmt: skip


def work_units(cells: Iterable[AnyCell], shard_episodes: int, batch_size: int) -> Iterator[WorkUnit]:
    """Cells in order, long ones split.

    Args:
        cells: in order.
        shard_episodes: the most episodes per unit, rounded up to whole batches, so that each batch has the same
            episodes as in one unit; 0: split nothing.
        batch_size: episodes at a time.
    """
    step = -(-shard_episodes // batch_size) * batch_size
    for cell in cells:
        if isinstance(cell, TrainingCell) or not step or cell.episodes <= step:
            yield WorkUnit(cell)
            continue
        for start in range(0, cell.episodes, step):
            yield WorkUnit(cell, start, min(start + step, cell.episodes))


def _paths(store: Store, unit: WorkUnit) -> tuple[Path, Path]:
    folder = store.folder(unit.cell.key()) / PARTS
    return folder / f"{unit.start}-{unit.end}.parquet", folder / f"{unit.start}-{unit.end}.json"


def _how(context: WorkContext) -> dict[str, Any]:
    """What must be the same in all parts of a cell."""
    how = {"batch_size": context.batch_size, "device": context.device, "threads": context.threads}
    return {**how, "code_hash": code_hash()}


def write_part(unit: WorkUnit, part: Part, context: WorkContext) -> None:
    """Keep an evaluated part."""
    store, (data, facts) = context.store, _paths(context.store, unit)
    buffer = io.BytesIO()
    part.episodes.to_parquet(buffer, index=False)
    content = buffer.getvalue()
    write_atomically(data, content)
    document = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "provenance": part.provenance,
        "seconds": part.seconds,
        "how": _how(context),
    }
    write_atomically(facts, to_json(document))
    store.sync.upload(*(path.relative_to(store.root).as_posix() for path in (data, facts)))


def parts_of(units: Iterable[WorkUnit], context: WorkContext) -> list[Part] | None:
    """Parts of one cell that are kept, also those that others have evaluated; None if one of them is not there,
    damaged, or made in another way.

    Raises:
        OSError: the object store can't be used.
    """
    found, store = list[Part](), context.store
    for place, unit in enumerate(units):
        if not place:
            store.sync.download(f"{unit.cell.key()}/{PARTS}/", last=".json")
        part = _read_part(store, unit, _how(context))
        if part is None:
            return None
        found.append(part)
    return found


def _read_part(store: Store, unit: WorkUnit, how: dict[str, Any]) -> Part | None:
    import pandas as pd

    data, facts = _paths(store, unit)
    try:
        document = json.loads(facts.read_bytes())
        content = data.read_bytes()
        if document["how"] != how or hashlib.sha256(content).hexdigest() != document["sha256"]:
            return None
        return Part(pd.read_parquet(io.BytesIO(content)), document["provenance"], float(document["seconds"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget_parts(store: Store, key: str) -> None:
    """Drop the parts of a cell that is finished."""
    with suppress(OSError):  # those that stay in an object store do no harm
        store.sync.remove(f"{key}/{PARTS}/")
    shutil.rmtree(store.folder(key) / PARTS, ignore_errors=True)
