"""A cache bounded in bytes that evicts the least recently used values."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

from torch import Tensor

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteLRU(Generic[K, V]):
    """Values by key, up to some bytes; the newest value is kept whatever its size.

    Args:
        limit_bytes: of all values together.
        size: bytes of a value.
        evicted: gets what no longer fits.
    """

    def __init__(
        self, limit_bytes: int, size: Callable[[V], int], evicted: Callable[[K, V], object] = lambda key, value: None
    ) -> None:
        self.limit, self.bytes = limit_bytes, 0
        self._size, self._evicted = size, evicted
        self._kept: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: K) -> bool:
        return key in self._kept

    def get(self, key: K) -> V | None:
        """The value, which counts as used now; None if it is not kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: K, value: V) -> V:
        """Keep a value, and return it."""
        if key in self._kept:
            self.bytes -= self._size(self._kept.pop(key))
        self._kept[key] = value
        self.bytes += self._size(value)
        while self.bytes > self.limit and len(self._kept) > 1:
            oldest, dropped = self._kept.popitem(last=False)
            self.bytes -= self._size(dropped)
            self._evicted(oldest, dropped)
        return value


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Bytes that tensors keep in memory: of a view, all that it is a view of."""
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)
