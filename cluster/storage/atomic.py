"""Files that are there in full or not at all, as the result store needs them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

EXCLUSIVE_LOCK = ".exclusive.lock"


def now() -> str:
    """The time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def write_atomically(path: Path, content: bytes, *, exclusive: bool = False) -> bool:
    """Write a file so that readers and crashes see all of it or nothing.

    Args:
        path: where to; parent folders are made.
        content: what to write.
        exclusive: leave a file that exists as it is.

    Returns:
        whether this call's content is now there (False only if `exclusive` and another writer was first).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links: a lock on a file beside it
                with one_at_a_time(path.parent / EXCLUSIVE_LOCK):
                    if os.path.lexists(path):
                        return False
                    os.replace(temporary, path)
        else:
            os.replace(temporary, path)
        _sync_folder(path.parent)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Make a folder, and a file there that is gone again.

    Raises:
        OSError: one of them can't be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
        pass


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock file among the processes of this machine; a process that dies lets go of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems can't sync folders
        pass
    finally:
        os.close(handle)


def to_json(document: dict[str, Any]) -> bytes:
    """A document as JSON with sorted keys; what is not finite, for which JSON has no number, is null."""
    return (json.dumps(_finite(document), indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def file_facts(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file."""
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
