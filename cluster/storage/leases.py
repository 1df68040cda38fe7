"""Leases: locks with a heartbeat, so that launches on several machines can share one results directory.

The holder of a name is the writer of its highest generation, ``<name>.<generation>``, which is written only if it
doesn't exist. A holder writes it again every few seconds; one that has not been written for `STALE` seconds may be
succeeded by the next generation. So of any number that ask at once exactly one gets the lease, also when it is taken
over. A holder that was only slow does its work twice at worst: results are written once, by the first.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from cluster.storage.atomic import now
from cluster.storage.backend import Backend, ages
from diffup.errors import UserError

STALE = 60.0  # seconds without a sign of life after which a lease may be taken over
BEAT = 10.0  # seconds between signs of life


@dataclass
class Lease:
    """A name that this process holds; a thread renews it until it is released."""

    backend: Backend
    name: str
    generation: int
    content: bytes
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self, beat: float = BEAT) -> Lease:
        """Begin to renew it, in a thread of its own."""
        self._thread = threading.Thread(target=self._beat, args=(beat,), daemon=True, name=f"lease {self.name}")
        self._thread.start()
        return self

    def _beat(self, every: float) -> None:
        while not self._ended.wait(every):
            with contextlib.suppress(OSError, ValueError):  # a full disk or a cut network: the next beat may succeed
                if self.lost():
                    return
                self.backend.write(f"{self.name}.{self.generation}", self.content)

    def lost(self) -> bool:
        """Whether a successor has taken it over."""
        return _newest(self.backend.entries(f"{self.name}.")).get(self.name, 0) > self.generation

    def release(self) -> None:
        """Stop renewing it and delete it; generations before it are deleted first."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()  # a beat in flight would write the file again after it is deleted
        with contextlib.suppress(OSError, ValueError):
            there = self.backend.entries(f"{self.name}.")
            for generation in range(1, self.generation + 1):
                if f"{self.name}.{generation}" in there:
                    self.backend.delete(f"{self.name}.{generation}")


def _newest(files: Iterable[str]) -> dict[str, int]:
    """The highest generation of each leased name."""
    newest: dict[str, int] = {}
    for file in files:
        name, _, tail = file.rpartition(".")
        if tail.isdigit():
            newest[name] = max(newest.get(name, 0), int(tail))
    return newest


def acquire(backend: Backend, name: str, owner: str = "", *, stale: float = STALE, beat: float = BEAT) -> Lease | None:
    """The lease of `name`, or None while another holds it.

    A holder that is known to be dead is succeeded at once: a process of this machine that has ended, or one of the
    same `owner`, which has only one at a time.

    Args:
        backend: where leases are kept.
        name: what is leased; plain characters without a dot.
        owner: the launch that asks.
        stale: seconds after which another's is taken over.
        beat: seconds between signs of life.

    Raises:
        OSError: the storage can't be written.
    """
    there = ages(backend, f"{name}.")
    newest = _newest(there).get(name, 0)
    if newest and there[f"{name}.{newest}"] < stale:
        holder = _content(backend, f"{name}.{newest}")
        if not _dead(holder) and not (owner and holder.get("owner") == owner):
            return None
    document = {"owner": owner, "host": _machine(), "pid": os.getpid(), "since": now(), "id": uuid.uuid4().hex}
    content = json.dumps(document).encode()
    if not backend.write(f"{name}.{newest + 1}", content, exclusive=True):
        return None
    return Lease(backend, name, newest + 1, content).start(beat)


def held(backend: Backend, *, stale: float = STALE) -> set[str]:
    """Names that are held and renewed."""
    there = ages(backend)
    files = {name: f"{name}.{generation}" for name, generation in _newest(there).items()}
    fresh = {name: file for name, file in files.items() if there[file] < stale}
    return {name for name, file in fresh.items() if not _dead(_content(backend, file))}


@lru_cache(maxsize=1)
def _machine() -> str:
    """What a process id is unique on: a boot of a machine, and a namespace of processes in it."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.stat('/proc/self/ns/pid').st_ino}"
    return platform.node()


def _content(backend: Backend, file: str) -> dict[str, Any]:
    try:
        document = json.loads(backend.read(file) or b"{}")
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _dead(holder: dict[str, Any]) -> bool:
    """Whether a holder is a process of this machine that has ended."""
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
def alone(backend: Backend, name: str, owner: str, where: object) -> Iterator[Lease]:
    """Hold a lease for the time of a block.

    Raises:
        UserError: another holds it.
    """
    lease = acquire(backend, name, owner)
    if lease is None:
        raise UserError(f"another {name} is using {where}; wait for it, or give another directory with --results")
    try:
        yield lease
    finally:
        lease.release()


@contextlib.contextmanager
def waited_for(
    backend: Backend, name: str, owner: str, waiting: Callable[[], None], *,
    stopping: Callable[[], bool] = lambda: False, every: float = 2.0, stale: float = STALE,
) -> Iterator[Lease | None]:  # fmt: skip
    """Hold a lease for the time of a block, as soon as it is free; None if it is not free before `stopping`.

    Args:
        waiting: called once if another holds it.
    """
    told = False
    while (lease := acquire(backend, name, owner, stale=stale)) is None:
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
