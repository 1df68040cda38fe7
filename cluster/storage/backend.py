"""Where small shared files lie, as the few operations that leases need; a folder here, an object store elsewhere."""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cluster.storage.atomic import write_atomically


class Place(Protocol):
    """Named contents that several machines see alike."""

    def read(self, name: str) -> bytes | None:
        """The content, None if there is none."""

    def write(self, name: str, content: bytes, *, exclusive: bool = False) -> bool:
        """Write all or nothing; with `exclusive` only if there is nothing yet. Returns whether it was written."""

    def ages(self, prefix: str) -> dict[str, float]:
        """Seconds since each name with this prefix was last written, by the place's own clock."""

    def delete(self, name: str) -> None:
        """Remove it, if it is there."""


@dataclass(frozen=True)
class FolderPlace:
    """A folder that all machines mount."""

    root: Path

    def read(self, name: str) -> bytes | None:
        """See `Place`."""
        try:
            return (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, content: bytes, *, exclusive: bool = False) -> bool:
        """See `Place`."""
        return write_atomically(self.root / name, content, exclusive=exclusive)

    def ages(self, prefix: str) -> dict[str, float]:
        """See `Place`; the file server's clock is read off a file written now."""
        found = {}
        for path in self.root.glob(f"{prefix}*"):
            with suppress(FileNotFoundError):
                found[path.name] = path.stat().st_mtime
        if not found:
            return {}
        probe = self.root / f".clock-{uuid.uuid4().hex[:8]}"
        try:
            probe.touch()
            now = probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)
        return {name: now - written for name, written in found.items()}

    def delete(self, name: str) -> None:
        """See `Place`."""
        (self.root / name).unlink(missing_ok=True)
