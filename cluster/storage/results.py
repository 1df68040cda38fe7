"""The result store: one folder per cell, the source of truth that plans, tables and MLflow are made from.

``<root>/<key>/`` holds ``cell.json`` (what was asked), ``episodes.parquet`` (one row per episode; evaluation cells),
``checkpoint/`` (training cells), ``panels/*.jpg`` and ``result.json``. Every file is written under a temporary name,
synced and renamed; ``result.json`` comes last and names the others with size and hash. So a cell is finished or it
isn't, whatever was killed and whenever. A failed cell has ``error.json`` instead. ``<root>/store.json`` tells the store
from others (`Store.identity`).
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.code_version import code_hash
from cluster.storage.atomic import check_writable, file_facts, now, to_json, write_atomically
from cluster.storage.backend import FolderPlace, Place
from cluster.storage.remote import RemotePlace
from diffup.errors import UserError
from diffup.grid.cell import CELL_VERSION, KEY_LENGTH, AnyCell, TrainingCell, cell_to_dict

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

SCHEMA = 1
CELL, EPISODES, RESULT, ERROR, LOGGED = "cell.json", "episodes.parquet", "result.json", "error.json", "mlflow.json"
IDENTITY = "store.json"
CHECKPOINT_FILES = ("checkpoint/model.safetensors", "checkpoint/config.json")
NO_REASON = "it came out as no finite number"
LAUNCHES, WEIGHTS, LEASES, TUNE, PARTS = "launches", "weights", ".leases", ".tune", "parts"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What the store knows of one key.

    Attributes:
        status: ``"finished"``, ``"failed"``, ``"damaged"`` (counts as not finished) or ``"missing"``.
        result: ``result.json`` of a finished cell, ``error.json`` of a failed one, else empty.
        why: what is wrong with a damaged one.
    """

    key: str
    status: str
    result: dict[str, Any] = field(default_factory=dict)
    why: str = ""

    @property
    def passing(self) -> bool:
        """Whether a failure had a reason that may have passed, such as a full disk; a plan runs the cell again."""
        return bool(self.result.get("passing"))

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of a finished cell, else empty; undefined ones are not among them."""
        metrics: dict[str, float | None] = self.result.get("metrics", {})
        return {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}

    @property
    def undefined(self) -> dict[str, str]:
        """Why metrics that a finished cell should have are undefined, by name."""
        named = {name: NO_REASON for name in self.result.get("metrics", {}) if name not in self.metrics}  # NaN, before
        return {**named, **self.result.get("undefined", {})}


@dataclass(frozen=True)
class Store:
    """The result store under one folder (absolute, so that it means the same in a trial).

    Attributes:
        root: the folder.
        remote: URI of an object store of which the folder is this machine's mirror, ``""`` if it is the store itself.
            `update` and `publish` keep them alike.
    """

    root: Path
    remote: str = ""

    def __post_init__(self) -> None:
        assert self.root.is_absolute(), self.root

    @property
    def leases(self) -> Place:
        """Where launches say what they are at."""
        if self.remote:
            return RemotePlace(self.remote).below(LEASES)
        return FolderPlace(self.root / LEASES)

    def update(self, keys: Iterable[str] | None = None, *, checkpoint: str = "") -> None:
        """Bring what others wrote to this machine: some cells, or all; and a training cell's checkpoint."""
        if self.remote:
            from cluster.storage import mirror

            place = RemotePlace(self.remote)
            mirror.pull(place, self.root, keys)
            if checkpoint:
                mirror.fetch_checkpoint(place, self.root, checkpoint)

    def publish(self, key: str) -> None:
        """Give a cell that was finished or has failed here to the others; the first of several wins."""
        if self.remote:
            from cluster.storage import mirror

            place = RemotePlace(self.remote)
            if (self.folder(key) / RESULT).is_file():
                if not mirror.push(place, self.root, key):
                    (self.folder(key) / RESULT).unlink()
                    mirror.pull(place, self.root, [key])
            else:
                mirror.push_file(place, self.root, f"{key}/{CELL}")
                mirror.push_file(place, self.root, f"{key}/{ERROR}")

    def publish_file(self, name: str) -> None:
        """Give one file to the others."""
        if self.remote:
            from cluster.storage import mirror

            with contextlib.suppress(OSError):
                mirror.push_file(RemotePlace(self.remote), self.root, name)

    def identity(self) -> str:
        """A random id in ``store.json``, made when it is first asked for: the same on all machines, after a move too.

        Raises:
            OSError: it can't be read or written.
            UserError: the file is damaged.
        """
        path, made = self.root / IDENTITY, to_json({"schema": SCHEMA, "id": uuid.uuid4().hex})
        if not path.is_file():
            if self.remote:
                place = RemotePlace(self.remote)
                if place.read(IDENTITY) is None:
                    place.write(IDENTITY, made, exclusive=True)
                place.fetch([IDENTITY], self.root)
            else:
                write_atomically(path, made, exclusive=True)
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
            verify: without it the hash is left out for files that have not been written since ``result.json`` was,
                which comes last: what a plan of many thousand cells does. Tables check what they read in any case.
        """
        folder = f"{self.root}/{key}"
        try:
            with open(f"{folder}/{RESULT}", "rb") as file:
                text = file.read()
                written = os.fstat(file.fileno()).st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            return self._read_error(key)
        try:
            result = json.loads(text)
            if result["key"] != key or result["status"] != "finished" or not isinstance(result["metrics"], dict):
                raise ValueError("it is not the result of this cell")
            if "checksum" in result and not _checksum_holds(text, result):
                raise ValueError("its checksum is wrong")
            for name, facts in result.get("files", {}).items():
                if self.remote and name in CHECKPOINT_FILES:  # it comes down, checked, when a cell needs it
                    continue  # a mirror has the checkpoints that were needed here
                there = os.stat(f"{folder}/{name}")
                good = there.st_size == facts["bytes"]
                if good and (verify or there.st_mtime_ns > written):
                    content = Path(folder, name).read_bytes()
                    good = hashlib.sha256(content).hexdigest() == facts["sha256"]
                if not good:
                    return Record(key=key, status="damaged", why=f"{folder}/{name} is not what {RESULT} names")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return Record(key=key, status="damaged", why=f"{folder}/{RESULT} can't be read: {error}")
        except OSError as error:
            return Record(key=key, status="damaged", why=f"{error.filename}: {error.strerror}")
        return Record(key=key, status="finished", result=result)

    def _read_error(self, key: str) -> Record:
        try:
            document = json.loads((self.folder(key) / ERROR).read_bytes())
            document["error"]
        except (ValueError, KeyError, TypeError, OSError):
            return Record(key=key, status="missing")
        return Record(key=key, status="failed", result=document)

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
        try:
            document = json.loads((self.folder(key) / CELL).read_bytes())
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}

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
        content = to_json({**document, "checksum": _checksum(document)})
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
        attempts = int(self._read_error(cell.key()).result.get("attempts", 0)) + 1
        self.write_cell(cell)
        document = {"schema": SCHEMA, "error": error, "traceback": traceback, "attempts": attempts, "time": now()}
        write_atomically(folder / ERROR, to_json({**document, "code_hash": code_hash(), "passing": passing}))
        return attempts

    def forget_result(self, key: str) -> None:
        """Drop a damaged ``result.json``; a checkpoint to resume from stays.

        Where results are in an object store, it is dropped there only if it is damaged there too.
        """
        if self.remote:
            from cluster.storage import mirror

            mirror.refetch(RemotePlace(self.remote), self.root, key)
            if self.read(key).status == "finished":
                return
        (self.folder(key) / RESULT).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (self.folder(key) / LOGGED).unlink(missing_ok=True)
        if self.remote:
            RemotePlace(self.remote).delete(f"{key}/{RESULT}")

    def forget(self, key: str) -> None:
        """Drop a cell with all it holds, in one rename."""
        folder = self.folder(key)
        if self.remote:
            from cluster.storage import mirror

            mirror.drop(RemotePlace(self.remote), key)
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
        path = self.root / WEIGHTS / f"{slug}.json"
        document = {"backbone": backbone, "weights": weights, "loaded_hash": loaded_hash}
        if self.remote:
            place, name = RemotePlace(self.remote), f"{WEIGHTS}/{slug}.json"
            if place.write(name, to_json(document), exclusive=True):
                return
            before = json.loads(place.read(name) or b"{}").get("loaded_hash", loaded_hash)
        elif write_atomically(path, to_json(document), exclusive=True):
            return
        else:
            before = json.loads(path.read_bytes())["loaded_hash"]
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
        try:
            note = json.loads((self.folder(key) / LOGGED).read_bytes())
            return str(note["run_id"]) if note["tracking_uri"] == uri else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""


def _checksum(document: dict[str, Any]) -> str:
    return hashlib.sha256(to_json(document)).hexdigest()[:12]


def _checksum_holds(text: bytes, result: dict[str, Any]) -> bool:
    """Whether ``result.json`` is what was written; its checksum is taken from it."""
    claimed = str(result.pop("checksum"))
    line = f' "checksum": "{claimed}",\n'.encode()  # as `to_json` writes it: without the line, the text was summed
    return hashlib.sha256(text.replace(line, b"", 1)).hexdigest()[:12] == claimed or _checksum(result) == claimed


def cell_document(cell: AnyCell) -> dict[str, Any]:
    """What ``cell.json`` holds: the cell, its key and the version of the identity."""
    return {**cell_to_dict(cell), "key": cell.key(), "cell_version": CELL_VERSION}
