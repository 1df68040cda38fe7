"""Paths given by callers, and files written whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffup.errors import UserError

PART = ".part"  # the end of a file that is being written


@contextmanager
def part_of(path: Path) -> Iterator[Path]:
    """The name of a new file beside `path`, to be written and renamed to `path`; it is removed if it was not.

    Raises:
        OSError: the folder can't be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PART}")
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write to, which takes the place of `path` when the block ends well, and goes otherwise."""
    with part_of(path) as part:
        yield part
        os.replace(part, path)


@contextmanager
def synced_copy(path: Path, content: bytes) -> Iterator[Path]:
    """A file beside `path` that holds `content` on the disk, to be renamed to `path`; see `part_of`.

    Raises:
        OSError: it can't be written, with the reason's number: a full disk is ``ENOSPC``.
    """
    with part_of(path) as part:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield part


def write_in_full(path: Path, content: bytes) -> None:
    """Write all of a file or nothing; see `synced_copy`."""
    with synced_copy(path, content) as part:
        os.replace(part, path)


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
