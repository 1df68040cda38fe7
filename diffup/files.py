"""Paths that callers give, and files that are there in full or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from diffup.errors import UserError


def write_in_full(path: Path, content: bytes) -> None:
    """Write a file under another name, sync it and rename it; nothing is left behind if that fails.

    Raises:
        OSError: it can't be written, with the reason's number: a full disk is ``ENOSPC``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def as_path(value: object, argument: str) -> Path:
    """A path that a caller gave, with ``~`` expanded.

    Raises:
        UserError: it is no path, or the home folder is unknown; the message names the argument.
    """
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{argument} must be a path, not {value!r:.60} ({type(value).__name__})")
    try:
        return Path(value).expanduser()
    except (RuntimeError, TypeError) as error:  # no such user or no home; a path of bytes
        raise UserError(f"{argument}, {value!r:.200}: {error}; write the path in full") from error
