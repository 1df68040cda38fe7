"""A results folder that was copied or moved takes its runs along: MLflow records artifacts by absolute path."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cluster.storage.layout import IDENTITY

ARTIFACTS = "mlartifacts"
PLACES = (("experiments", "artifact_location"), ("runs", "artifact_uri"))


def relocate(database: Path) -> int:
    """Make paths of artifacts those of the results folder that the database is in, where they were of its original.

    The original is known by the id in its ``store.json``, which a copy has too; artifacts of other results that are
    logged to this database stay where they are, and so do those of a folder that is not there and of another name.

    Args:
        database: ``mlflow.db`` in a results folder.

    Returns:
        how many paths were changed.
    """
    root, changed = database.parent, 0
    here = (root / ARTIFACTS).as_uri()
    if not database.is_file() or not (root / ARTIFACTS).is_dir():
        return 0
    with closing(sqlite3.connect(database)) as connection, connection:
        query = "select distinct artifact_location from experiments where artifact_location like ?"
        try:
            known = [str(row[0]) for row in connection.execute(query, (f"file:%/{ARTIFACTS}",))]
        except sqlite3.OperationalError:  # no schema yet
            return 0
        for before in known:
            if before != here and _is_original(_path(before).parent, root):
                for table, column in PLACES:
                    below = f"substr({column}, 1, {len(before) + 1})"
                    moved = f"update {table} set {column} = ? || substr({column}, ?) where {column} = ? or {below} = ?"
                    values = (here, len(before) + 1, before, f"{before}/")
                    changed += connection.execute(moved, values).rowcount
    return changed


def _path(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


def _is_original(folder: Path, root: Path) -> bool:
    """Whether results in `folder` are those of `root` before it was moved or copied."""
    identity = _identity(folder)
    return not folder.is_dir() if identity is None else identity == _identity(root)


def _identity(root: Path) -> object:
    try:
        return json.loads((root / IDENTITY).read_bytes())
    except (OSError, ValueError):
        return None
