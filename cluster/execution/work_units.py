"""What is handed to a worker at a time: a whole cell, or some episodes of a long one.

The parts of a cell lie in ``<key>/parts/`` until the last is there; then they are put together, in order, to exactly
what one piece would have given. A part is there in full or not at all, and what a killed launch has evaluated stays.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.code_version import code_hash
from cluster.storage.atomic import to_json, write_atomically
from cluster.storage.layout import PARTS
from cluster.storage.results import Store, cell_document
from diffup.grid.cell import AnyCell, Cell, TrainingCell, cell_from_dict

NOT_IDENTITY = ("key", "cell_version")


@dataclass(frozen=True)
class Piece:
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

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {"cell": cell_document(self.cell), "start": self.start, "end": self.end}

    @staticmethod
    def from_dict(document: dict[str, Any]) -> Piece:
        """Inverse of `to_dict`."""
        return Piece(read_cell(document["cell"]), document["start"], document["end"])


def read_cell(document: dict[str, Any]) -> AnyCell:
    """The cell in a `cell_document`."""
    return cell_from_dict({name: value for name, value in document.items() if name not in NOT_IDENTITY})


def pieces(cells: Iterable[AnyCell], shard_episodes: int, batch_size: int) -> Iterator[Piece]:
    """Cells in order, long ones cut.

    Args:
        shard_episodes: the most episodes a piece, rounded up to whole batches so that each batch holds the same
            episodes as in one piece; 0: cut nothing.
        batch_size: episodes at a time.
    """
    step = -(-shard_episodes // batch_size) * batch_size
    for cell in cells:
        if isinstance(cell, TrainingCell) or not step or cell.episodes <= step:
            yield Piece(cell)
            continue
        for start in range(0, cell.episodes, step):
            yield Piece(cell, start, min(start + step, cell.episodes))


def ranges(cell: Cell, shard_episodes: int, batch_size: int) -> list[tuple[int, int]]:
    """The pieces of one cell as ranges of episodes."""
    return [(piece.start, piece.end) for piece in pieces([cell], shard_episodes, batch_size)]


def _paths(store: Store, piece: Piece) -> tuple[Path, Path]:
    folder = store.folder(piece.cell.key()) / PARTS
    return folder / f"{piece.start}-{piece.end}.parquet", folder / f"{piece.start}-{piece.end}.json"


def write_part(store: Store, piece: Piece, part: Any, how: dict[str, Any]) -> None:
    """Keep an evaluated part.

    Args:
        part: with ``episodes``, ``provenance`` and ``seconds`` (`cluster.execution.run_cell.Part`).
        how: what another piece must agree in to be put together with it.
    """
    data, facts = _paths(store, piece)
    buffer = io.BytesIO()
    part.episodes.to_parquet(buffer, index=False)
    content = buffer.getvalue()
    write_atomically(data, content)
    document = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "provenance": part.provenance,
        "seconds": part.seconds,
        "how": {**how, "code_hash": code_hash()},
    }
    write_atomically(facts, to_json(document))
    store.sync.upload(*(path.relative_to(store.root).as_posix() for path in (data, facts)))


def bring_parts(store: Store, key: str) -> None:
    """Have what others evaluated of a cell here.

    Raises:
        OSError: the object store can't be used.
    """
    store.sync.download(f"{key}/{PARTS}/", last=".json")


def read_part(store: Store, piece: Piece, how: dict[str, Any]) -> tuple[Any, dict[str, Any], float] | None:
    """Episodes, provenance and seconds of a part; None if it is not there, damaged, or made in another way."""
    import pandas as pd

    data, facts = _paths(store, piece)
    try:
        document = json.loads(facts.read_bytes())
        content = data.read_bytes()
        if document["how"] != {**how, "code_hash": code_hash()}:
            return None
        if hashlib.sha256(content).hexdigest() != document["sha256"]:
            return None
        return pd.read_parquet(io.BytesIO(content)), document["provenance"], float(document["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget_parts(store: Store, key: str) -> None:
    """Drop the parts of a cell that is finished."""
    with suppress(OSError):  # those that stay in an object store do no harm
        store.sync.remove(f"{key}/{PARTS}/")
    shutil.rmtree(store.folder(key) / PARTS, ignore_errors=True)
