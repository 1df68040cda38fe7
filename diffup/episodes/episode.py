"""An episode, and a manifest: a fixed list of episodes with a hash, kept as Parquet. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from diffup.data.lists import match_images
from diffup.errors import UserError, extra
from diffup.files import replacing

if TYPE_CHECKING:
    import pandas as pd

MANIFEST_KEY = b"diffup.manifest"


@dataclass(frozen=True)
class Episode:
    """Segment `class_index` in `query`, given `supports`.

    Attributes:
        index: number of the episode in its manifest, from 0.
        class_index: 0-based class of the data set.
        query: image id.
        supports: image ids without the query, distinct but in HSNet's episodes; empty for 0 shots.
    """

    index: int
    class_index: int
    query: str
    supports: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """A fixed list of episodes.

    Attributes:
        dataset, protocol: names.
        fold, seed: what the episodes were drawn for.
        episodes: in order of their index.
    """

    dataset: str
    protocol: str
    fold: int
    seed: int
    episodes: tuple[Episode, ...]

    def _head(self) -> dict[str, str | int]:
        return {"dataset": self.dataset, "protocol": self.protocol, "fold": self.fold, "seed": self.seed}

    def hash(self) -> str:
        """First 12 hex digits of the sha256 of everything in it."""
        rows = [[e.index, e.class_index, e.query, list(e.supports)] for e in self.episodes]
        canonical = json.dumps([self._head(), rows], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def named_as(self, image_ids: Iterable[str], where: object) -> Manifest:
        """The same episodes with the images' ids in a data set; arguments and errors: `lists.match_images`."""
        ids = match_images([i for e in self.episodes for i in (e.query, *e.supports)], image_ids, where)
        renamed = (replace(e, query=ids[e.query], supports=tuple(ids[i] for i in e.supports)) for e in self.episodes)
        return replace(self, episodes=tuple(renamed))

    def write(self, path: Path) -> None:
        """Write as Parquet, one row an episode (``episode, class_id, query, supports``), whole or not at all.

        Raises:
            OSError: the file can't be written.
        """
        table = pa.table(
            {
                "episode": pa.array([e.index for e in self.episodes], pa.int64()),
                "class_id": pa.array([e.class_index for e in self.episodes], pa.int64()),
                "query": pa.array([e.query for e in self.episodes], pa.string()),
                "supports": pa.array([list(e.supports) for e in self.episodes], pa.list_(pa.string())),
            },
            metadata={MANIFEST_KEY: json.dumps({**self._head(), "hash": self.hash()}).encode()},
        )
        with replacing(path) as temporary:
            pq.write_table(table, temporary)

    def frame(self) -> pd.DataFrame:
        """One row an episode: ``episode, class_id, query, supports``."""
        with extra("platform"):
            import pandas as pd
        rows = [(e.index, e.class_index, e.query, list(e.supports)) for e in self.episodes]
        return pd.DataFrame(rows, columns=["episode", "class_id", "query", "supports"])

    @staticmethod
    def read(path: Path) -> Manifest:
        """Read what `write` wrote.

        Raises:
            UserError: no Parquet file, not a manifest, or its content does not give the hash it carries.
        """
        try:
            table = pq.read_table(path)
            head = json.loads((table.schema.metadata or {})[MANIFEST_KEY])
            rows = table.to_pylist()
            episodes = tuple(Episode(r["episode"], r["class_id"], r["query"], tuple(r["supports"])) for r in rows)
            manifest = Manifest(head["dataset"], head["protocol"], head["fold"], head["seed"], episodes)
            intact = head["hash"] == manifest.hash()
        except (KeyError, TypeError, OSError, pa.ArrowException, ValueError) as error:
            raise UserError(
                f"{path} is not a manifest of episodes ({error}); delete it and let it be drawn again"
            ) from error
        if not intact:
            raise UserError(f"{path} does not give the hash it carries; delete it and let it be drawn again")
        return manifest
