"""What is known of one cell, read from its folder and checked."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.storage.atomic import read_json, to_json
from cluster.storage.layout import CHECKPOINT_FILES, ERROR, RESULT

NO_REASON = "it came out as no finite number"


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


def read_record(folder: Path, *, verify: bool, partial: bool) -> Record:
    """The record of the cell with this folder; see `cluster.storage.results.Store.read`.

    Args:
        folder: of the cell; its name is the cell's key.
        verify: whether the hash of files that have not been written since ``result.json`` is checked.
        partial: whether a checkpoint need not be here.
    """
    key = folder.name
    try:
        with open(f"{folder}/{RESULT}", "rb") as file:
            text = file.read()
            written = os.fstat(file.fileno()).st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return read_error(folder)
    try:
        result = json.loads(text)
        if result["key"] != key or result["status"] != "finished" or not isinstance(result["metrics"], dict):
            raise ValueError("it is not the result of this cell")
        if "checksum" in result and not _checksum_holds(text, result):
            raise ValueError("its checksum is wrong")
        for name, facts in result.get("files", {}).items():
            if partial and name in CHECKPOINT_FILES:
                continue  # a copy has those that were needed here; they are checked when they are downloaded
            there = os.stat(f"{folder}/{name}")
            good = there.st_size == facts["bytes"]
            if good and (verify or there.st_mtime_ns > written):
                content = (folder / name).read_bytes()
                good = hashlib.sha256(content).hexdigest() == facts["sha256"]
            if not good:
                return Record(key=key, status="damaged", why=f"{folder}/{name} is not what {RESULT} names")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Record(key=key, status="damaged", why=f"{folder}/{RESULT} can't be read: {error}")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:  # others are of the storage
        return Record(key=key, status="damaged", why=f"{error.filename}: {error.strerror}")
    return Record(key=key, status="finished", result=result)


def read_error(folder: Path) -> Record:
    """The record of a cell that is not finished: ``"failed"`` or ``"missing"``."""
    document = read_json(folder / ERROR)
    if "error" not in document:
        return Record(key=folder.name, status="missing")
    return Record(key=folder.name, status="failed", result=document)


def checksum(document: dict[str, Any]) -> str:
    """The checksum of a ``result.json`` without it."""
    return hashlib.sha256(to_json(document)).hexdigest()[:12]


def _checksum_holds(text: bytes, result: dict[str, Any]) -> bool:
    """Whether ``result.json`` is what was written; its checksum is taken from it."""
    claimed = str(result.pop("checksum"))
    line = f' "checksum": "{claimed}",\n'.encode()  # as `to_json` writes it: without the line, the text was summed
    return hashlib.sha256(text.replace(line, b"", 1)).hexdigest()[:12] == claimed or checksum(result) == claimed
