"""Files that are there in full or not at all, and stay there when the machine goes down."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


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
