"""The result store: one folder per cell, the source of truth that plans, tables and MLflow are made from.

``<root>/<key>/`` has ``cell.json`` (what was asked), ``episodes.parquet`` (one row per episode; evaluation cells),
``checkpoint/`` (training cells), ``panels/*.jpg`` and ``result.json``. Every file is written atomically;
``result.json`` comes last and names the others with size and hash. So a cell is finished or it isn't, whatever was
killed and whenever. A failed cell has ``error.json`` instead. ``<root>/store.json`` identifies the store
(`Store.identity`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.code_version import code_hash
from cluster.storage.atomic import check_writable, file_facts, now, read_json, to_json, write_atomically
from cluster.storage.backend import Backend, is_uri
from cluster.storage.layout import (
    CELL,
    CHECKPOINT_FILES,
    EPISODES,
    ERROR,
    IDENTITY,
    LEASES,
    LOGGED,
    RESULT,
    WEIGHTS,
)
from cluster.storage.record import NO_REASON, Record, checksum, read_error, read_record
from cluster.storage.sync import Sync, copy_folder
from diffup.errors import UserError
from diffup.grid.cell import CELL_VERSION, KEY_LENGTH, AnyCell, TrainingCell, cell_from_dict, cell_to_dict
from diffup.home import expanded

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

SCHEMA = 1


@dataclass(frozen=True)
class Store:
    """The result store in one folder (absolute, so that it means the same in a trial).

    Attributes:
        root: the folder.
        remote: URI of the object store that the folder is this machine's copy of, ``""`` if it is the store itself.
            `update` and `publish` keep them alike.
    """

    root: Path
    remote: str = ""

    def __post_init__(self) -> None:
        assert self.root.is_absolute(), self.root

    @staticmethod
    def at(where: str | Path) -> Store:
        """The store in a folder, or this machine's copy of the one at a URI."""
        if isinstance(where, str) and is_uri(where):
            return Store(copy_folder(where), where)
        return Store(expanded(Path(where)))

    @property
    def sync(self) -> Sync:
        """The folder and what machines share."""
        return Sync(self.root, self.remote)

    @property
    def leases(self) -> Backend:
        """Where launches note what they work on."""
        return self.sync.backend.below(LEASES)

    def update(self, keys: Iterable[str] | None = None, *, checkpoint: str = "") -> None:
        """Bring what other machines wrote: some cells, or all; and a training cell's checkpoint."""
        self.sync.pull(keys)
        if checkpoint:
            self.sync.fetch_checkpoint(checkpoint)

    def publish(self, key: str) -> None:
        """Publish a cell that was finished or has failed here; of several that finish it the first one stands."""
        self.sync.publish(key)

    def publish_file(self, name: str) -> None:
        """Publish one file, if the object store can be used."""
        with contextlib.suppress(OSError):
            self.sync.upload(name)

    @contextlib.contextmanager
    def read_only(self) -> Iterator[Store]:
        """The store as it is after `update`, without writing anything but a temporary folder.

        Raises:
            UserError: the object store can't be read.
        """
        with self.sync.preview() as folder:
            yield Store(folder, self.remote)

    def identity(self) -> str:
        """A random id in ``store.json``, made when it is first asked for: the same on all machines, after a move too.

        Raises:
            OSError: it can't be read or written.
            UserError: the file is damaged.
        """
        path = self.root / IDENTITY
        if not path.is_file():
            self.sync.download(IDENTITY)
        if not path.is_file():
            made = to_json({"schema": SCHEMA, "id": uuid.uuid4().hex})
            self.sync.backend.write(IDENTITY, made, exclusive=True)
            self.sync.download(IDENTITY)
        try:
            identity = json.loads(path.read_bytes())["id"]
            if not isinstance(identity, str) or not identity:
                raise ValueError("its id is no text")
            return identity
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} can't be read: {error}; without it, all cells get new MLflow runs") from error

    def folder(self, key: str) -> Path:
        """Folder of one cell."""
        return self.root / key

    def make_writable(self) -> None:
        """Make the root and make sure that files can be written and linked there.

        Raises:
            UserError: it can't be written.
        """
        try:
            check_writable(self.root)
        except OSError as error:
            raise UserError(
                f"results directory {self.root} is not writable ({error.strerror or error}); "
                f"choose another with --results DIR"
            ) from error

    def read(self, key: str, *, verify: bool = True) -> Record:
        """State of one cell; every file that ``result.json`` names is checked by size and hash.

        Args:
            verify: without it, the hash of files that have not been written since ``result.json`` is not checked. Plans
                of many thousand cells do that; tables check what they read in any case.

        Raises:
            OSError: the storage can't be used, which says nothing about the cell.
        """
        return read_record(self.folder(key), verify=verify, partial=self.sync.is_copy)

    def cell_keys(self) -> Iterator[str]:
        """Keys of all folders that may hold a cell."""
        if not self.root.is_dir():
            return
        with os.scandir(self.root) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if len(entry.name) == KEY_LENGTH and entry.is_dir() and (Path(entry.path) / CELL).is_file():
                    yield entry.name

    def read_cell(self, key: str) -> dict[str, Any]:
        """The document in ``cell.json``; empty if there is none that can be read."""
        return read_json(self.folder(key) / CELL)

    def write_cell(self, cell: AnyCell) -> None:
        """Say what the folder is for, before work starts."""
        write_atomically(self.folder(cell.key()) / CELL, to_json(cell_document(cell)))

    def write_result(
        self,
        cell: AnyCell,
        *,
        metrics: dict[str, float],
        provenance: dict[str, Any],
        started: str,
        undefined: Mapping[str, str] | None = None,
        episodes: pd.DataFrame | None = None,
        panels: dict[str, Image.Image] | None = None,
    ) -> bool:
        """Write all of a finished cell, ``result.json`` last and once.

        Metrics that are not finite are left out of ``metrics`` and named in ``undefined``, with the reason given here.

        Returns:
            False if another writer had finished the cell before; then its files stay.
        """
        key, folder = cell.key(), self.folder(cell.key())
        if self.read(key).status == "finished":
            return False
        self.write_cell(cell)
        names = list(CHECKPOINT_FILES) if isinstance(cell, TrainingCell) else []
        if episodes is not None:
            import io

            buffer = io.BytesIO()
            episodes.to_parquet(buffer, index=False)
            write_atomically(folder / EPISODES, buffer.getvalue())
            names.append(EPISODES)
        for name, image in (panels or {}).items():
            (folder / "panels").mkdir(exist_ok=True)
            image.save(folder / "panels" / f"{name}.jpg", quality=85)
        files = {name: file_facts(folder / name) for name in names if (folder / name).is_file()}
        known = {name: value for name, value in metrics.items() if math.isfinite(value)}
        reasons = {name: (undefined or {}).get(name, NO_REASON) for name in metrics if name not in known}
        document = {
            "schema": SCHEMA,
            "key": key,
            "status": "finished",
            "metrics": known,
            **({"undefined": reasons} if reasons else {}),
            "provenance": provenance,
            "files": files,
            "started": started,
            "finished": now(),
        }
        (folder / ERROR).unlink(missing_ok=True)
        content = to_json({**document, "checksum": checksum(document)})
        if write_atomically(folder / RESULT, content, exclusive=True):
            return True
        if self.read(key).status != "damaged":
            return False
        return write_atomically(folder / RESULT, content)  # two finished at once: the files are ours by now

    def write_error(self, cell: AnyCell, error: str, traceback: str, *, passing: bool = False) -> int:
        """Record a failed attempt; a finished cell is left alone.

        Args:
            passing: the reason may pass, such as a full disk.

        Returns:
            number of failed attempts so far.
        """
        folder = self.folder(cell.key())
        attempts = int(read_error(folder).result.get("attempts", 0)) + 1
        self.write_cell(cell)
        document = {"schema": SCHEMA, "error": error, "traceback": traceback, "attempts": attempts, "time": now()}
        write_atomically(folder / ERROR, to_json({**document, "code_hash": code_hash(), "passing": passing}))
        return attempts

    def forget_result(self, key: str) -> None:
        """Delete a damaged ``result.json``; a checkpoint to resume from stays.

        In an object store it is deleted only if it is damaged there too.
        """
        if self.sync.refetch(key) and self.read(key).status == "finished":
            return
        (self.folder(key) / RESULT).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (self.folder(key) / LOGGED).unlink(missing_ok=True)
        self.sync.remove(f"{key}/{RESULT}")

    def forget(self, key: str) -> None:
        """Delete a cell with all it has, in one rename."""
        folder = self.folder(key)
        self.sync.remove(f"{key}/", first=RESULT)
        if folder.exists():
            trash = self.root / f".trash-{key}-{uuid.uuid4().hex[:8]}"
            folder.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)

    def pin_weights(self, backbone: str, weights: str, loaded_hash: str) -> None:
        """Remember which weights a name stood for; a later run that loads others is refused.

        Raises:
            UserError: the same backbone and identity meant other weights before.
        """
        slug = hashlib.sha256(f"{backbone} {weights}".encode()).hexdigest()[:12]
        name, shared = f"{WEIGHTS}/{slug}.json", self.sync.backend
        document = {"backbone": backbone, "weights": weights, "loaded_hash": loaded_hash}
        if shared.write(name, to_json(document), exclusive=True):
            return
        before = json.loads(shared.read(name) or b"{}").get("loaded_hash", loaded_hash)
        if before != loaded_hash:
            raise UserError(
                f"backbone {backbone!r} with weights {weights!r} loaded {loaded_hash}, but results in {self.root} were "
                f"made with {before}; use another results directory, or a weights file of known content (--weights-dir)"
            )

    def mark_logged(self, key: str, uri: str, run_id: str) -> None:
        """Remember the MLflow run of a cell, so that no later launch logs it again."""
        write_atomically(self.folder(key) / LOGGED, to_json({"tracking_uri": uri, "run_id": run_id}))

    def logged(self, key: str, uri: str) -> str:
        """Id of the cell's run in this tracking store, ``""`` if none is known."""
        note = read_json(self.folder(key) / LOGGED)
        return str(note.get("run_id", "")) if note.get("tracking_uri") == uri else ""


def cell_document(cell: AnyCell) -> dict[str, Any]:
    """What ``cell.json`` holds: the cell, its key and the version of the identity."""
    return {**cell_to_dict(cell), "key": cell.key(), "cell_version": CELL_VERSION}


def cell_of(document: dict[str, Any]) -> AnyCell:
    """Inverse of `cell_document`; see `diffup.grid.cell.cell_from_dict` for errors."""
    return cell_from_dict({name: value for name, value in document.items() if name not in ("key", "cell_version")})
