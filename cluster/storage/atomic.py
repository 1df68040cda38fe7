"""Atomic files: written in full or not at all, also exclusively; and JSON as the result store writes it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from diffup.files import synced_copy

EXCLUSIVE_LOCK = ".exclusive.lock"


def now() -> str:
    """The time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def write_atomically(path: Path, content: bytes, *, exclusive: bool = False) -> bool:
    """Write a file so that readers and crashes see all of it or nothing.

    Args:
        path: of the file; parent folders are made.
        content: of the file.
        exclusive: leave a file that exists as it is.

    Returns:
        False only if `exclusive` and the file exists.
    """
    with synced_copy(path, content) as copy:
        if not exclusive:
            os.replace(copy, path)
        else:
            try:
                os.link(copy, path)
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links
                with one_at_a_time(path.parent / EXCLUSIVE_LOCK):
                    if os.path.lexists(path):
                        return False
                    os.replace(copy, path)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems can't sync folders
            os.fsync(handle)
    finally:
        os.close(handle)
    return True


def check_writable(folder: Path) -> None:
    """Raise OSError if a folder can't be made or takes no file."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
        pass


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock file among the processes of this machine; the lock ends with its process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def to_json(document: dict[str, Any]) -> bytes:
    """A document as JSON with sorted keys; numbers that are not finite, which JSON has not, become null."""
    return (json.dumps(_finite(document), indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none that can be read."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def file_facts(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file."""
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
