"""Prior maps kept for the next cell: they depend on neither the trained model nor its seed, and cost the most.

Keys name everything that a value depends on, so what is found is, to the byte, what would be computed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar

from cachetools import LRUCache

LIMIT_BYTES = 1 << 30


class Sized(Protocol):
    """A value that knows its size."""

    def nbytes(self) -> int: ...


Value = TypeVar("Value", bound=Sized)
Keep = Callable[[Hashable, Callable[[], Any]], Any]


def afresh(key: Hashable, make: Callable[[], Value]) -> Value:
    """A `Keep` that keeps nothing."""
    return make()


class PriorMemo:
    """Values by key, up to a number of bytes; the least recently used leave first."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._kept: LRUCache[Hashable, Any] = LRUCache(maxsize=limit_bytes, getsizeof=lambda value: value.nbytes())

    def of(self, source: Hashable) -> Keep:
        """A function (key, make) that gives the value of (`source`, key), made by ``make()`` if it isn't kept."""

        def keep(key: Hashable, make: Callable[[], Value]) -> Value:
            found: Value | None = self._kept.get((source, key))
            if found is None:
                found = make()
                if found.nbytes() <= self._kept.maxsize:
                    self._kept[source, key] = found
            return found

        return keep
