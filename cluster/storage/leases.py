"""Who is at work on what: a lease is a file with a heartbeat, so that several drivers can share one results directory.

The holder of a name is whoever wrote its highest generation, ``<name>.<generation>``, which is written only if it isn't
there. A holder writes it again every few seconds; one that has not been written for `STALE` seconds may be succeeded by
the next generation. So of any number that ask at once exactly one gets the lease, also when it is taken over. A holder
that was only slow does its work twice over at worst: results are written once, by whoever is first.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from cluster.storage.atomic import now
from cluster.storage.backend import Place
from diffup.errors import UserError

STALE = 60.0  # seconds without a sign of life after which a lease may be taken over
BEAT = 10.0  # seconds between signs of life


@dataclass
class Lease:
    """A name that this process holds; it beats until it is released."""

    place: Place
    name: str
    generation: int
    content: bytes
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self, beat: float = BEAT) -> Lease:
        """Begin to beat, in a thread of its own."""
        self._thread = threading.Thread(target=self._beat, args=(beat,), daemon=True, name=f"lease {self.name}")
        self._thread.start()
        return self

    def _beat(self, every: float) -> None:
        while not self._ended.wait(every):
            with contextlib.suppress(
                OSError, ValueError
            ):  # a full disk or a cut network: the next beat may come through
                if self.lost():
                    return
                self.place.write(f"{self.name}.{self.generation}", self.content)

    def lost(self) -> bool:
        """Whether a successor has taken it over."""
        return max(_generations(self.place, self.name), default=self.generation) > self.generation

    def release(self) -> None:
        """Stop beating and let it go; generations before it go too, first."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()  # a beat in flight would write the file again after it is deleted
        with contextlib.suppress(OSError, ValueError):
            for generation in sorted(_generations(self.place, self.name)):
                if generation <= self.generation:
                    self.place.delete(f"{self.name}.{generation}")


def _generations(place: Place, name: str) -> dict[int, float]:
    """Age in seconds by generation."""
    found = {}
    for file, age in place.ages(f"{name}.").items():
        tail = file.removeprefix(f"{name}.")
        if tail.isdigit():
            found[int(tail)] = age
    return found


def acquire(place: Place, name: str, owner: str = "", *, stale: float = STALE, beat: float = BEAT) -> Lease | None:
    """The lease of `name`, or None while another holds it.

    A holder that is known to be dead is succeeded at once: a process of this machine that is gone, or one of the same
    `owner`, who has only one at a time.

    Args:
        place: where leases lie.
        name: what is leased; plain characters without a dot.
        owner: the launch that asks.
        stale: seconds after which another's is taken over.
        beat: seconds between signs of life.

    Raises:
        OSError: the place can't be written.
    """
    held = _generations(place, name)
    newest = max(held, default=0)
    if held and held[newest] < stale:
        holder = _content(place, f"{name}.{newest}")
        if not _dead(holder) and not (owner and holder.get("owner") == owner):
            return None
    document = {"owner": owner, "host": _machine(), "pid": os.getpid(), "since": now(), "id": uuid.uuid4().hex}
    content = json.dumps(document).encode()
    if not place.write(f"{name}.{newest + 1}", content, exclusive=True):
        return None
    return Lease(place, name, newest + 1, content).start(beat)


def held(place: Place, names: set[str] | None = None, *, stale: float = STALE) -> set[str]:
    """Names that somebody holds and beats for, of `names` or of all."""
    newest: dict[str, tuple[int, float]] = {}
    for file, age in place.ages("").items():
        name, dot, tail = file.rpartition(".")
        if dot and tail.isdigit() and (names is None or name in names):
            newest[name] = max(newest.get(name, (0, 0.0)), (int(tail), age))
    fresh = {name: generation for name, (generation, age) in newest.items() if age < stale}
    return {name for name, generation in fresh.items() if not _dead(_content(place, f"{name}.{generation}"))}


@lru_cache(maxsize=1)
def _machine() -> str:
    """Names what a process id means something on: a boot of a machine, and a namespace of processes in it."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.stat('/proc/self/ns/pid').st_ino}"
    return platform.node()


def _content(place: Place, file: str) -> dict[str, Any]:
    try:
        document = json.loads(place.read(file) or b"{}")
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _dead(holder: dict[str, Any]) -> bool:
    """Whether a holder is a process of this machine that is no more."""
    machine = _machine()
    if machine == platform.node() or holder.get("host") != machine or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


@contextlib.contextmanager
def alone(place: Place, name: str, owner: str, where: object) -> Iterator[Lease]:
    """Hold a lease for the time of a block.

    Raises:
        UserError: another holds it.
    """
    lease = acquire(place, name, owner)
    if lease is None:
        raise UserError(f"another {name} is using {where}; wait for it, or give another directory with --results")
    try:
        yield lease
    finally:
        lease.release()


@contextlib.contextmanager
def waited_for(
    place: Place, name: str, owner: str, waiting: Callable[[], None], *, stopping: Callable[[], bool] = lambda: False,
    every: float = 2.0, stale: float = STALE,
) -> Iterator[Lease | None]:  # fmt: skip
    """Hold a lease for the time of a block, once it is free; None if it was not before `stopping`.

    Args:
        waiting: called once if another holds it.
    """
    told = False
    while (lease := acquire(place, name, owner, stale=stale)) is None:
        if stopping():
            yield None
            return
        if not told:
            waiting()
            told = True
        time.sleep(every)
    try:
        yield lease
    finally:
        lease.release()
