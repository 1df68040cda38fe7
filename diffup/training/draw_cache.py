"""A disk cache of drawn training steps: they depend on no trained weight, cost the most, and serve other trainings too.

Keys name everything that a value depends on, so what is read is, to the byte, what would be computed. The folder can be
deleted at any time. Its size is kept in one of its files, for all processes that write to it.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from diffup.files import write_in_full

LIMIT_BYTES = 20 << 30
DIGITS = 32  # of a file's name
UNUSED = 86400.0  # seconds without use after which a value may be evicted
LOOK_AGAIN = 60.0  # seconds until a process that found the folder full checks it again
COUNT = "bytes"  # file with the bytes that the folder holds
SUFFIX, SUM_BYTES = ".drawn", 4  # a file is the CRC-32 of a safetensors file, and that file

Keep = Callable[[object, type[Any], Callable[[], Any]], Any]


def afresh(key: object, kind: type[Any], make: Callable[[], Any]) -> Any:
    """A `Keep` that keeps nothing."""
    return make()


class DrawCache:
    """Dataclasses of tensors in files, one a key, shared by all processes that name the same folder.

    Args:
        folder: made when first written to.
        limit_bytes: that its files take at most, whatever the number of processes. When it is reached, values that
            were not used for `UNUSED` seconds are evicted; if that frees too little, nothing more is written.
    """

    def __init__(self, folder: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder, self.limit = folder, limit_bytes
        self._full_until = 0.0

    def of(self, source: object) -> Keep:
        """A function (key, kind, make) that reads the value of (`source`, key), or makes it by ``make()`` and keeps it.

        Args:
            source: common to all keys; its ``repr``, like that of a key, must be unique.
        """

        def keep(key: object, kind: type[Any], make: Callable[[], Any]) -> Any:
            name = hashlib.sha256(repr((source, key, kind.__name__)).encode()).hexdigest()[:DIGITS]
            path = self.folder / name[:2] / f"{name}{SUFFIX}"
            try:
                found = kind(**_read(path))
                with suppress(OSError):
                    os.utime(path)  # used now
                return found
            except (OSError, ValueError, SafetensorError, TypeError):  # not there, damaged, or of another version
                value = make()
            self._write(path, value)
            return value

        return keep

    def _write(self, path: Path, value: Any) -> None:
        if time.monotonic() < self._full_until:
            return
        tensors = {field.name: getattr(value, field.name).contiguous() for field in dataclasses.fields(value)}
        own = sum(tensor.nbytes for tensor in tensors.values())
        content = save(tensors)
        content = zlib.crc32(content).to_bytes(SUM_BYTES, "little") + content
        with suppress(OSError):  # a full or read-only disk costs time, not results
            self.folder.mkdir(parents=True, exist_ok=True)
            with _alone(self.folder):
                held = self._held()
                if held is None or held + len(content) > self.limit:
                    held = self._make_room(len(content))
                if held + (len(content) if held else own) > self.limit:  # alone, a value may exceed it by its header
                    self._full_until = time.monotonic() + LOOK_AGAIN
                    return
                write_in_full(path, content)
                (self.folder / COUNT).write_text(str(held + len(content)))

    def _held(self) -> int | None:
        """Bytes in the folder by its counter, which deleted files make too high; None without a counter."""
        try:
            return int((self.folder / COUNT).read_text())
        except (OSError, ValueError):
            return None

    def _make_room(self, size: int) -> int:
        """Measure the folder and evict unused values while it has no room for `size`; the bytes that remain."""
        files = sorted(_files(self.folder), key=lambda file: file[1])
        held = sum(file_size for _, _, file_size in files)
        for path, used, file_size in files:
            if held + size <= self.limit or time.time() - used < UNUSED:
                break
            path.unlink(missing_ok=True)
            held -= file_size
        return held


def _files(folder: Path) -> Iterator[tuple[Path, float, int]]:
    """Path, time of last use and bytes of each value."""
    for path in folder.rglob(f"*{SUFFIX}"):
        with suppress(FileNotFoundError):  # deleted meanwhile
            facts = path.stat()
            yield path, facts.st_mtime, facts.st_size


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder among the processes that write to it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: the count may then be short by what is written at once
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors in a file.

    Raises:
        OSError, ValueError, SafetensorError: it is not there, or damaged.
    """
    kept = path.read_bytes()
    if int.from_bytes(kept[:SUM_BYTES], "little") != zlib.crc32(kept[SUM_BYTES:]):
        raise ValueError(f"{path} is not what was written")
    return load(kept[SUM_BYTES:])
