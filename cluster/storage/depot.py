"""What machines that share nothing but an object store share besides results: shards, and half-done work.

Below the results' prefix lie ``features/<folder>/``, as in a results directory, and in a cell's folder its ``parts/``
and the state of its training. A shard goes up as soon as it is written, its index last; a worker brings what its
machine lacks to the machine's own folder before it maps it. All of this saves time only: what can't be brought is made
again.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cluster.storage.atomic import one_at_a_time, write_atomically
from cluster.storage.feature_cache import ABOUT, KEPT_FREE, USED, Listed, to_clean
from cluster.storage.mirror import push_file
from cluster.storage.remote import Facts, RemotePlace
from cluster.storage.results import PARTS
from diffup.evaluation.shards import DATA, INDEX

FEATURES = "features"
STATE = "checkpoint/state.pt"  # of a training that goes on
STREAMS = 4  # shards that come down at a time; each is in memory while it does


@dataclass(frozen=True)
class Depot:
    """The shards in an object store, and a machine's folder of them.

    Attributes:
        remote: URI of the results.
        root: the machine's folder of all shards.
    """

    remote: str
    root: Path

    @property
    def place(self) -> RemotePlace:
        """Where the shards lie."""
        return RemotePlace(self.remote).below(FEATURES)

    def ids(self, folder: str) -> set[str]:
        """The rows that shards up there hold, read from their indexes.

        Raises:
            OSError: the object store does not answer.
        """
        return _ids(self.place, self.place.names(f"{folder}/"))

    def pull(self, folder: str) -> int:
        """Bring the shards that this machine lacks, as far as its disk has room; returns how many.

        Shards that other weights made stay where they are.

        Raises:
            OSError: the object store does not answer, or the disk is full.
        """
        place, here = self.place, self.root / folder
        about = place.read(f"{folder}/{ABOUT}")
        if about is None:
            return 0
        self.root.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(self.root / f".{folder}.lock"):
            if not write_atomically(here / ABOUT, about, exclusive=True) and (here / ABOUT).read_bytes() != about:
                return 0
            there = place.names(f"{folder}/")
            room = int(shutil.disk_usage(self.root).free * (1 - KEPT_FREE))
            wanted = []
            for name in sorted(n.removesuffix(INDEX) for n in there if n.endswith(INDEX)):
                size = there[f"{name}{DATA}"].bytes if f"{name}{DATA}" in there else room
                if not (self.root / f"{name}{INDEX}").exists() and size < room:
                    room -= size
                    wanted.append(name)
            with ThreadPoolExecutor(STREAMS) as pool:
                list(pool.map(lambda n: place.fetch([f"{n}{DATA}", f"{n}{INDEX}"], self.root, last=INDEX), wanted))
        return len(wanted)

    def push(self, folder: str, shard: str) -> None:
        """Give a shard that was written here to the others.

        Raises:
            OSError: the object store does not answer.
        """
        here, place = self.root / folder, self.place
        about = (here / ABOUT).read_bytes()
        if not place.write(f"{folder}/{ABOUT}", about, exclusive=True) and place.read(f"{folder}/{ABOUT}") != about:
            return  # made by other weights under the same name
        for suffix in (DATA, INDEX):
            place.write(f"{folder}/{shard}{suffix}", (here / f"{shard}{suffix}").read_bytes())

    def drop(self, folder: str, shards: Iterable[str]) -> None:
        """Delete shards up there that are damaged here.

        Raises:
            OSError: the object store does not answer.
        """
        for shard in shards:
            for suffix in (INDEX, DATA):  # without its index a shard is not there
                self.place.delete(f"{folder}/{shard}{suffix}")

    def mark_used(self, folders: Iterable[str]) -> None:
        """As `cluster.storage.feature_cache.mark_used`, up there."""
        with contextlib.suppress(OSError):
            for folder in folders:
                self.place.write(f"{folder}/{USED}", b"")


def _ids(place: RemotePlace, there: Mapping[str, Facts]) -> set[str]:
    """The rows of the shards among objects."""
    names = [n for n in there if n.endswith(INDEX) and f"{n.removesuffix(INDEX)}{DATA}" in there]
    found = set[str]()
    for name, content in place.contents(names):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            index = json.loads(content)
            if there[f"{name.removesuffix(INDEX)}{DATA}"].bytes == index["bytes"]:
                found.update(index["ids"])
    return found


def listed(place: RemotePlace) -> list[Listed]:
    """As `cluster.storage.feature_cache.listed`, of the shards in an object store.

    Raises:
        OSError: the object store does not answer.
    """
    there, ages = place.names(), place.ages("")
    found = []
    for folder in sorted({name.partition("/")[0] for name in there if name.endswith(f"/{ABOUT}")}):
        own = {name: facts for name, facts in there.items() if name.startswith(f"{folder}/")}
        size = sum(facts.bytes for name, facts in own.items() if name.endswith(DATA))
        idle = min(ages[name] for name in (f"{folder}/{ABOUT}", f"{folder}/{USED}") if name in ages)
        found.append(Listed(Path(folder), size, len(_ids(place, own)), idle))
    return sorted(found, key=lambda each: -each.idle)


def clean(place: RemotePlace, *, limit_bytes: int | None = None, older_than: float | None = None) -> list[Listed]:
    """As `cluster.storage.feature_cache.clean`, in an object store; machines' own copies stay.

    Raises:
        OSError: the object store does not answer.
    """
    gone = to_clean(listed(place), limit_bytes, older_than)
    for each in gone:  # indexes first: without its index a shard is not there
        for name in sorted(place.names(f"{each.folder}/"), key=lambda name: not name.endswith(INDEX)):
            place.delete(name)
    return gone


def push_part(remote: str, results: Path, key: str, names: Iterable[str]) -> None:
    """Give an evaluated part to the others, its last file last.

    Raises:
        OSError: the object store does not answer.
    """
    for name in names:
        push_file(RemotePlace(remote), results, f"{key}/{PARTS}/{name}")


def pull_parts(remote: str, results: Path, key: str) -> None:
    """Bring the parts of a cell that this machine lacks.

    Raises:
        OSError: the object store does not answer.
    """
    place = RemotePlace(remote)
    new = [name for name in place.names(f"{key}/{PARTS}/") if not (results / name).exists()]
    place.fetch(new, results, last=".json")


def drop_parts(remote: str, key: str) -> None:
    """Delete the parts of a finished cell; some that stay do no harm."""
    with contextlib.suppress(OSError):
        for name in RemotePlace(remote).names(f"{key}/{PARTS}/"):
            RemotePlace(remote).delete(name)


@dataclass(frozen=True)
class TrainingState:
    """The state that a training goes on from, after its machine was lost; errors cost steps, never the training."""

    remote: str
    results: Path
    key: str

    def bring(self) -> None:
        """To this machine, if it has none of its own."""
        name = f"{self.key}/{STATE}"
        if self.remote and not (self.results / name).exists():
            with contextlib.suppress(OSError):
                RemotePlace(self.remote).fetch([name], self.results)

    def keep(self) -> None:
        """Up there."""
        if self.remote:
            with contextlib.suppress(OSError):
                push_file(RemotePlace(self.remote), self.results, f"{self.key}/{STATE}")

    def drop(self) -> None:
        """Once it is not needed."""
        if self.remote:
            with contextlib.suppress(OSError):
                RemotePlace(self.remote).delete(f"{self.key}/{STATE}")
