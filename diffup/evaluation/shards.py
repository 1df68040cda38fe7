"""Tensors by id in memory-mapped files that many processes read at once: features by image, prior maps by triple.

A shard is a safetensors file of N rows and a JSON file beside it with the rows' ids and CRC-32s. Both are written whole
or not at all, the JSON last. A row is checked when a process first reads it. A damaged row counts as absent, so it is
computed again, and a mark is left beside its shard. A shard that was replaced is read again. Shards can be deleted at
any time.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from diffup.files import write_in_full

DATA, INDEX, MARK = ".safetensors", ".index.json", ".damaged"
NAME_DIGITS = 16
DTYPES: dict[str, torch.dtype] = {
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64, "I32": torch.int32,
    "U8": torch.uint8,
}  # fmt: skip
Version = tuple[tuple[int, int, int], ...]  # inode, time and size of a shard's two files; () if one is not there


@dataclass(frozen=True)
class Shard:
    """A mapped file: dtype, row shape, offset and row length in bytes of each tensor, and the CRC-32 of each row."""

    path: Path
    content: NDArray[np.uint8]
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...], int, int]]
    crc: list[int]
    version: Version
    good: set[int] = field(default_factory=set)  # rows that were checked

    def row(self, index: int) -> dict[str, Tensor] | None:
        """Views on the file by tensor name; None if the row is damaged."""
        views, crc, known = {}, 0, index in self.good
        for name, (dtype, shape, offset, stride) in self.tensors.items():
            content = self.content[offset + index * stride : offset + (index + 1) * stride]
            if not known:
                crc = zlib.crc32(content.data, zlib.crc32(_meaning(name, dtype, shape), crc))
            views[name] = torch.from_numpy(content).view(dtype).view(shape)
        if not known and crc != self.crc[index]:
            return None
        self.good.add(index)
        return views


@dataclass
class ShardStore:
    """Rows by id in one folder.

    Attributes:
        folder: made when first written to.
        damaged: shards that this process could not read, or found a damaged row in, and that were not replaced since.
    """

    folder: Path
    damaged: set[str] = field(default_factory=set)
    _places: dict[str, tuple[str, int]] = field(default_factory=dict)
    _known: set[str] = field(default_factory=set)
    _shards: dict[str, Shard | None] = field(default_factory=dict)
    _bad: dict[str, Version] = field(default_factory=dict)  # of the damaged shards, when they were found so
    _lost: dict[str, str] = field(default_factory=dict)  # the damaged shard of a row that was damaged

    def refresh(self) -> None:
        """Find shards that were added, removed or replaced; costs one listing and reading new indexes."""
        there = {path.name.removesuffix(INDEX) for path in self.folder.glob(f"*{INDEX}")}
        self._forget(self._known - there)
        for name in [name for name in self.damaged if self._version(name) != self._bad.get(name)]:
            self._forget({name})
        for name in sorted(there - self._known - self.damaged):
            self._learn(name)

    def _learn(self, name: str) -> None:
        version = self._version(name)
        try:
            index = json.loads((self.folder / f"{name}{INDEX}").read_bytes())
            ids = list(index["ids"])
            if (self.folder / f"{name}{DATA}").stat().st_size != index["bytes"]:
                raise ValueError("its size is wrong")
        except (OSError, ValueError, KeyError, TypeError):
            self.damaged.add(name)
            self._bad[name] = version
            return
        self._known.add(name)
        for row, key in enumerate(ids):
            self._places.setdefault(key, (name, row))

    def _forget(self, names: set[str]) -> None:
        if names:
            self._places = {key: place for key, place in self._places.items() if place[0] not in names}
            self._lost = {key: name for key, name in self._lost.items() if name not in names}
            self._known -= names
            self.damaged -= names
            for name in names:
                self._shards.pop(name, None)
                self._bad.pop(name, None)

    def _version(self, name: str) -> Version:
        try:
            files = [(self.folder / f"{name}{suffix}").stat() for suffix in (DATA, INDEX)]
        except OSError:
            return ()
        return tuple((file.st_ino, file.st_mtime_ns, file.st_size) for file in files)

    def _again(self, name: str) -> bool:
        """Whether a shard was replaced since it was opened or found damaged; if so, its index is read again."""
        now, shard = self._version(name), self._shards.get(name)
        if not now or now == self._bad.get(name, shard.version if shard is not None else ()):
            return False
        self._forget({name})
        self._learn(name)
        return True

    def missing(self, ids: Iterable[str]) -> list[str]:
        """Those of `ids` that no shard holds, each once, in order."""
        wanted = dict.fromkeys(ids)
        for name in {self._lost[key] for key in wanted if key in self._lost}:
            self._again(name)
        return [key for key in wanted if key not in self._places]

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The row of an id as views on the file; None if it is absent or damaged."""
        if key in self._lost:
            self._again(self._lost[key])
        if (place := self._places.get(key)) is None:
            return None
        name, index = place
        if name not in self._shards:
            self._shards[name] = _open(self.folder / name, self._version(name))
        shard = self._shards[name]
        row = shard.row(index) if shard is not None else None
        if row is not None:
            return row
        if shard is not None and name not in self.damaged and self._again(name):
            return self.get(key)
        self.damaged.add(name)
        self._bad.setdefault(name, shard.version if shard is not None else self._version(name))
        del self._places[key]
        self._lost[key] = name
        with suppress(OSError):  # for the next launch, which computes the shard's rows again
            (self.folder / f"{name}{MARK}").touch()
        return None

    def marked(self) -> set[str]:
        """Names of the shards in which a process found a damaged row."""
        return {path.name.removesuffix(MARK) for path in self.folder.glob(f"*{MARK}")}

    def write(self, ids: Sequence[str], rows: Mapping[str, Tensor]) -> int:
        """Add a shard of tensors whose first dimension goes over `ids`; returns its size in bytes.

        Raises:
            OSError: it can't be written; nothing is left behind.
        """
        assert ids and len(set(ids)) == len(ids) and all(len(tensor) == len(ids) for tensor in rows.values())
        tensors = {name: tensor.contiguous() for name, tensor in sorted(rows.items())}
        name = shard_name(ids)
        content = save(tensors)
        index = {"ids": list(ids), "bytes": len(content), "crc": _row_sums(tensors)}
        write_in_full(self.folder / f"{name}{DATA}", content)
        write_in_full(self.folder / f"{name}{INDEX}", json.dumps(index).encode())
        (self.folder / f"{name}{MARK}").unlink(missing_ok=True)
        return len(content)

    def remove(self, names: Iterable[str]) -> None:
        """Delete shards; processes that have one mapped can still read it."""
        for name in names:
            for suffix in (INDEX, DATA, MARK):  # without its index a shard is not there
                (self.folder / f"{name}{suffix}").unlink(missing_ok=True)

    def check(self) -> list[str]:
        """Names of the damaged shards; reads all of them."""
        self.refresh()
        bad = self.damaged | self.marked()
        for name in self._known:
            shard = _open(self.folder / name, self._version(name))
            if shard is None or any(shard.row(index) is None for index in range(len(shard.crc))):
                bad.add(name)
        return sorted(bad)


def shard_name(ids: Sequence[str]) -> str:
    """The name of the shard that holds these rows in this order."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:NAME_DIGITS]


def _row_sums(tensors: Mapping[str, Tensor]) -> list[int]:
    sums = [0] * len(next(iter(tensors.values())))
    for name, tensor in tensors.items():
        meaning = _meaning(name, tensor.dtype, tuple(tensor.shape[1:]))
        for index, row in enumerate(tensor.flatten(1).view(torch.uint8).numpy()):
            sums[index] = zlib.crc32(row.data, zlib.crc32(meaning, sums[index]))
    return sums


def _meaning(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> bytes:
    """What a row's bytes stand for, which its checksum covers too."""
    return f"{name} {dtype} {shape}".encode()


def _open(stem: Path, version: Version) -> Shard | None:
    path = stem.with_name(stem.name + DATA)
    try:
        index = json.loads(stem.with_name(stem.name + INDEX).read_bytes())
        content: NDArray[np.uint8] = np.memmap(path, np.uint8, mode="c")  # private pages: nothing is written back
        length = int.from_bytes(content[:8].tobytes(), "little")
        header: dict[str, Any] = json.loads(content[8 : 8 + length].tobytes())
        tensors = {}
        for name in sorted(set(header) - {"__metadata__"}):
            start, end = header[name]["data_offsets"]
            count, *shape = header[name]["shape"]
            if count != len(index["crc"]) or 8 + length + end > len(content):
                return None
            tensors[name] = (DTYPES[header[name]["dtype"]], tuple(shape), 8 + length + start, (end - start) // count)
        return Shard(path, content, tensors, index["crc"], version)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None
