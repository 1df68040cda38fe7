"""The feature cache: folders of shards with pixels of one data set and input size, features of one data set and
backbone, or prior maps of one annotation.

A folder's name tells people what it holds; its ``about.json`` has everything that its content depends on. In an object
store the cache is ``<results>/features``: a shard is uploaded as soon as it is written, its index last, and a worker
downloads what its machine lacks before it maps it. Deleting a folder loses nothing but time: what is in no shard is
computed.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cluster.storage.atomic import one_at_a_time, read_json, to_json, write_atomically
from cluster.storage.backend import Backend, Entry, remove
from cluster.storage.sync import Sync
from diffup.evaluation.shards import DATA, INDEX, ShardStore

ABOUT, USED = "about.json", "used"
PIXELS, VISUAL, TEXT, PRIORS, TEXT_PRIORS = "pixels", "features", "text", "priors", "text-priors"
KEPT_FREE = 0.2  # of the free disk: shards never take it
STREAMS = 4  # shards that are downloaded, and in memory, at a time
OPEN = 16  # stores that a process keeps: the list of a large one's rows takes hundreds of megabytes
_stores: OrderedDict[Path, ShardStore] = OrderedDict()


@dataclass(frozen=True)
class Spec:
    """What a folder of shards holds.

    Attributes:
        kind: `PIXELS`, or `VISUAL` or `TEXT` features, by image; `PRIORS` or `TEXT_PRIORS` by triple.
        title: a few words for the folder's name.
        facts: everything that the content depends on but the weights that a name on a hub stands for, as sorted JSON.
    """

    kind: str
    title: str
    facts: str

    @staticmethod
    def of(kind: str, title: Sequence[object], facts: dict[str, Any]) -> Spec:
        """A spec of plain JSON facts."""
        return Spec(kind, "-".join(str(part) for part in title), json.dumps({"kind": kind, **facts}, sort_keys=True))

    @cached_property
    def name(self) -> str:
        """Of the folder."""
        digest = hashlib.sha256(self.facts.encode()).hexdigest()[:10]
        return f"{self.kind}-{re.sub(r'[^A-Za-z0-9_.]+', '-', self.title)[:60]}-{digest}"

    def open(self, root: Path, identity: str) -> ShardStore | None:
        """The store, if it was made with the same weights.

        Args:
            root: of all stores.
            identity: of the encoder (`diffup.evaluation.encode.Encoder`), which names the weights that were loaded.
        """
        folder = root / self.name
        if read_json(folder / ABOUT).get("identity") != identity:
            return None
        store = _opened(folder)
        store.refresh()
        return store

    def make(self, root: Path, identity: str) -> ShardStore:
        """The store to write to; shards of other weights are removed.

        Raises:
            OSError: the folder can't be written.
        """
        if (store := self.open(root, identity)) is not None:
            return store
        folder = root / self.name
        document = {**json.loads(self.facts), "identity": identity}
        if not write_atomically(folder / ABOUT, to_json(document), exclusive=True):
            if (store := self.open(root, identity)) is not None:  # another worker was first
                return store
            shutil.rmtree(folder, ignore_errors=True)
            write_atomically(folder / ABOUT, to_json(document))
        return _opened(folder)


def _opened(folder: Path) -> ShardStore:
    """One store per folder and process: its maps and its list of shards are kept, of those used last."""
    store = _stores.setdefault(folder, ShardStore(folder))
    _stores.move_to_end(folder)
    while len(_stores) > OPEN:
        _stores.popitem(last=False)
    return store


def mark_used(cache: Sync, name: str) -> None:
    """Record that a launch needs a folder now, for `clean`."""
    with suppress(OSError):
        (cache.root / name).mkdir(parents=True, exist_ok=True)
        (cache.root / name / USED).touch()
        cache.upload(f"{name}/{USED}")


def absent(cache: Sync, name: str, ids: Iterable[str]) -> list[str]:
    """Those of `ids` that machines that share the cache find in no shard of a folder; damaged shards are removed.

    Raises:
        OSError: the object store can't be used.
    """
    store = ShardStore(cache.root / name)
    store.refresh()
    damaged = store.damaged | store.marked()
    store.remove(damaged)
    for shard in damaged:
        cache.remove(f"{name}/{shard}.", first=INDEX)  # without its index a shard does not exist
    held = _rows(cache.backend, cache.backend.entries(f"{name}/"))
    return [key for key in ids if key not in held]


def pull(cache: Sync, name: str) -> int:
    """Download the shards of a folder that are missing here, as far as the disk has room; returns how many.

    Shards of other weights than those here are left out.

    Raises:
        OSError: the object store can't be used, or the disk is full.
    """
    about, here = cache.backend.read(f"{name}/{ABOUT}") if cache.is_copy else None, cache.root / name
    if about is None:
        return 0
    with one_at_a_time(cache.root / f".{name}.lock"):
        if not write_atomically(here / ABOUT, about, exclusive=True) and (here / ABOUT).read_bytes() != about:
            return 0
        there = cache.backend.entries(f"{name}/")
        room = int(shutil.disk_usage(cache.root).free * (1 - KEPT_FREE))
        wanted = []
        for shard in sorted(n.removesuffix(INDEX) for n in there if n.endswith(INDEX)):
            size = there[f"{shard}{DATA}"].bytes if f"{shard}{DATA}" in there else room
            if not (cache.root / f"{shard}{INDEX}").exists() and size < room:
                room -= size
                wanted.append(shard)
        with ThreadPoolExecutor(STREAMS) as pool:
            list(pool.map(lambda shard: cache.fetch([f"{shard}{DATA}", f"{shard}{INDEX}"], last=INDEX), wanted))
    return len(wanted)


def push(cache: Sync, name: str, shard: str) -> None:
    """Publish a shard that was written here, unless the object store has the folder of other weights.

    Raises:
        OSError: the object store can't be used.
    """
    if cache.is_copy:
        about = (cache.root / name / ABOUT).read_bytes()
        backend, where = cache.backend, f"{name}/{ABOUT}"
        if backend.write(where, about, exclusive=True) or backend.read(where) == about:
            cache.upload(f"{name}/{shard}{DATA}", f"{name}/{shard}{INDEX}")


def _rows(backend: Backend, there: Mapping[str, Entry]) -> set[str]:
    """The ids of the rows of the shards among `there`."""
    found = set[str]()
    for name, content in backend.contents(name for name in there if name.endswith(INDEX)):
        with suppress(ValueError, KeyError, TypeError):
            index = json.loads(content)
            if there[f"{name.removesuffix(INDEX)}{DATA}"].bytes == index["bytes"]:
                found.update(index["ids"])
    return found


@dataclass(frozen=True)
class Listed:
    """One folder of shards: its size, and seconds since it was last used."""

    name: str
    bytes: int
    rows: int
    idle: float


def listed(backend: Backend) -> list[Listed]:
    """All folders of shards in a feature cache, the least recently used first.

    Raises:
        OSError: the storage can't be used.
    """
    there, found = backend.entries(), []
    for folder in sorted({name.partition("/")[0] for name in there if name.endswith(f"/{ABOUT}")}):
        own = {name: entry for name, entry in there.items() if name.startswith(f"{folder}/")}
        size = sum(entry.bytes for name, entry in own.items() if name.endswith(DATA))
        used = max(own[name].written for name in (f"{folder}/{ABOUT}", f"{folder}/{USED}") if name in own)
        found.append(Listed(folder, size, len(_rows(backend, own)), time.time() - used))
    return sorted(found, key=lambda each: -each.idle)


def clean(backend: Backend, *, limit_bytes: int | None = None, older_than: float | None = None) -> list[Listed]:
    """Delete the least recently used folders of a feature cache; machines' own copies of them stay.

    Args:
        backend: the cache.
        limit_bytes: until what is left is at most this much.
        older_than: those that no launch has used for this many seconds.

    Returns:
        what was deleted.

    Raises:
        OSError: the storage can't be used.
    """
    there, gone = listed(backend), []
    total = sum(each.bytes for each in there)
    for each in there:
        over = limit_bytes is not None and total > limit_bytes
        if over or (older_than is not None and each.idle > older_than):
            total -= each.bytes
            remove(backend, f"{each.name}/", first=INDEX)
            gone.append(each)
    return gone


def check(root: Path, name: str) -> int:
    """Read all shards of a folder and remove the damaged ones; returns how many."""
    store = _opened(root / name)
    bad = store.check()
    store.remove(bad)
    return len(bad)
