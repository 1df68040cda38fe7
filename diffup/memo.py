"""A training's drawn steps kept on disk for other trainings: they depend on no trained weight, and cost the most.

Keys name everything that a value depends on, so what is read is, to the byte, what would be computed. Deleting the
folder loses nothing but time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from diffup.files import write_in_full

LIMIT_BYTES = 20 << 30
DIGITS = 32  # of a file's name
SUFFIX, SUM_BYTES = ".drawn", 4  # a file is the CRC-32 of a safetensors file, and that file

Keep = Callable[[object, type[Any], Callable[[], Any]], Any]


def afresh(key: object, kind: type[Any], make: Callable[[], Any]) -> Any:
    """A `Keep` that keeps nothing."""
    return make()


class PriorMemo:
    """Dataclasses of tensors in files, one a key, shared by all processes that name the same folder.

    Args:
        folder: made when first written to.
        limit_bytes: nothing more is written once the folder holds this much.
    """

    def __init__(self, folder: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder, self.limit = folder, limit_bytes
        self._held = sum(path.stat().st_size for path in folder.rglob(f"*{SUFFIX}")) if folder.exists() else 0

    def of(self, source: object) -> Keep:
        """A function (key, kind, make) that reads the value of (`source`, key), or makes it by ``make()`` and keeps it.

        Args:
            source: what all keys share; like a key, its ``repr`` must tell it from all others.
        """

        def keep(key: object, kind: type[Any], make: Callable[[], Any]) -> Any:
            name = hashlib.sha256(repr((source, key, kind.__name__)).encode()).hexdigest()[:DIGITS]
            path = self.folder / name[:2] / f"{name}{SUFFIX}"
            try:
                return kind(**_read(path))
            except (OSError, ValueError, SafetensorError, TypeError):  # not there, damaged, or of another version
                value = make()
            self._write(path, value)
            return value

        return keep

    def _write(self, path: Path, value: Any) -> None:
        tensors = {field.name: getattr(value, field.name).contiguous() for field in dataclasses.fields(value)}
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self._held + size > self.limit:
            return
        content = save(tensors)
        with suppress(OSError):  # a full or read-only disk costs time, not results
            write_in_full(path, zlib.crc32(content).to_bytes(SUM_BYTES, "little") + content)
            self._held += size


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors in a file.

    Raises:
        OSError, ValueError, SafetensorError: it is not there, or damaged.
    """
    kept = path.read_bytes()
    if int.from_bytes(kept[:SUM_BYTES], "little") != zlib.crc32(kept[SUM_BYTES:]):
        raise ValueError(f"{path} is not what was written")
    return load(kept[SUM_BYTES:])
