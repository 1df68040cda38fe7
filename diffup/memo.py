"""Prior maps kept for the next cell: they depend on neither the trained model nor its seed, and cost the most.

Keys name everything that a value depends on, so what is found is, to the byte, what would be computed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, MutableMapping
from typing import Any

from cachetools import LRUCache

LIMIT_BYTES = 1 << 30


class NoMemo(MutableMapping[Hashable, Any]):
    """A memo that keeps nothing."""

    def __getitem__(self, key: Hashable) -> Any:
        raise KeyError(key)

    def __setitem__(self, key: Hashable, value: Any) -> None:
        pass

    def __delitem__(self, key: Hashable) -> None:
        raise KeyError(key)

    def __iter__(self) -> Iterator[Hashable]:
        return iter(())

    def __len__(self) -> int:
        return 0


def prior_memo(limit_bytes: int = LIMIT_BYTES) -> MutableMapping[Hashable, Any]:
    """A memo of values with ``nbytes()``, up to `limit_bytes`; the least recently used leave first."""
    return LRUCache(maxsize=limit_bytes, getsizeof=lambda value: value.nbytes())
