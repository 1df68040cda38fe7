"""The faults: each does its damage when it is called, says to what, and knows how and when it is undone."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.faults.grids import Driver, Place
from tools.faults.processes import Process, marked, send

POLL = 0.02
SHORTEST, LONGEST = 2.0, 6.0  # seconds that a server or a node stays away, and that a disk stays full
BALLAST = ".ballast"
NOT_WORK = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::SPILL", "ray::RESTORE")


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A fault that has happened.

    Attributes:
        target: what was hit.
        undo: brings it back.
        after: seconds until then.
        at_least: whether it is undone then and not before, even where the driver has ended.
    """

    target: str
    undo: Callable[[], None] = lambda: None
    after: float = 0.0
    at_least: bool = False


Fault = Callable[[Place, Driver, random.Random], Hit | None]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of fault.

    Attributes:
        words: for the table.
        fault: does it while a driver runs; None if there is nothing to hit (any more).
        damage: or damages a file between two runs: returns what, and the cells that it belongs to.
        root: whether it needs root and namespaces.
        busy: whether the moment is drawn from the time in which cells run, in place of all of the driver's.
    """

    words: str
    fault: Fault | None = None
    damage: Callable[[Place, random.Random, str], tuple[str, list[str]]] | None = None
    root: bool = False
    busy: bool = False


def _workers(place: Place) -> list[Process]:
    """Processes that run cells, in the order of their ids."""
    busy = [p for p in marked(place.lab.mark) if p.command.startswith("ray::") and not p.command.startswith(NOT_WORK)]
    trials = [process for process in busy if "Trial" in process.command]
    return sorted(trials or busy, key=lambda process: process.pid)


def kill_worker(place: Place, driver: Driver, draw: random.Random) -> Hit | None:
    """SIGKILL of a process that runs a cell; waits for one."""
    while driver.alive:
        if found := _workers(place):
            victim = draw.choice(found)
            send([victim], signal.SIGKILL)
            return Hit(target=f"{victim.command.split()[0]} {victim.pid} on {victim.part}")
        time.sleep(POLL)
    return None


def kill_raylet(place: Place, driver: Driver, draw: random.Random) -> Hit | None:
    """SIGKILL of a worker node's raylet; the node starts again later."""
    name = draw.choice(place.lab.names())
    pid = place.lab.raylet(name)
    if not driver.alive or not pid:
        return None
    os.kill(pid, signal.SIGKILL)
    return Hit(
        target=f"raylet {pid} of {name}",
        undo=lambda: place.lab.start_node(name),
        after=draw.uniform(SHORTEST, LONGEST),
    )


def _signal_driver(driver: Driver, number: signal.Signals) -> Hit | None:
    if not driver.alive:
        return None
    driver.process.send_signal(number)
    return Hit(target=f"driver {driver.process.pid}")


def kill_driver(place: Place, driver: Driver, draw: random.Random) -> Hit | None:
    """SIGKILL of the driver."""
    return _signal_driver(driver, signal.SIGKILL)


def stop_driver(place: Place, driver: Driver, draw: random.Random) -> Hit | None:
    """SIGTERM of the driver, as schedulers send it before they preempt."""
    return _signal_driver(driver, signal.SIGTERM)


def kill_server(place: Place, driver: Driver, draw: random.Random) -> Hit | None:
    """SIGKILL of all processes of the MLflow server; it starts again later, on the same database."""
    found = marked(place.lab.mark, "server")
    if not driver.alive or not found:
        return None
    send(found, signal.SIGKILL)
    pids = ", ".join(str(process.pid) for process in found)
    return Hit(target=f"MLflow server {pids}", undo=place.lab.start_server, after=draw.uniform(SHORTEST, LONGEST))


def fill_disk(place: Place, driver: Driver, draw: random.Random) -> Hit | None:
    """Fill the small disk that the results lie on; it is freed later."""
    disk = place.lab.disk
    assert disk is not None
    if not driver.alive:
        return None
    ballast, size = disk / BALLAST, 0
    with ballast.open("wb", buffering=0) as file:
        for block in (1 << 20, 1 << 12):
            try:
                while True:
                    size += file.write(b"\0" * block)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    return Hit(
        target=f"{size / 2**20:.1f} MiB of ballast",
        undo=lambda: ballast.unlink(missing_ok=True),
        after=draw.uniform(SHORTEST, LONGEST),
    )


def cut_network(place: Place, driver: Driver, draw: random.Random, *, seconds: float = 30.0) -> Hit | None:
    """Cut the link between a worker node and all others for a while."""
    network, number = place.lab.network, draw.randint(1, place.lab.workers)
    assert network is not None
    if not driver.alive:
        return None
    network.cut(number)
    return Hit(
        target=f"link of worker{number} for {seconds:.0f} s",
        undo=lambda: network.join(number),
        after=seconds,
        at_least=True,
    )


def _owner(place: Place, path: Path) -> list[str]:
    """The cell whose folder holds a file."""
    first = path.relative_to(place.results).parts[0]
    return [first] if (place.results / first / "cell.json").is_file() else []


def truncate(place: Place, draw: random.Random, shards: str) -> tuple[str, list[str]]:
    """Cut off the end of a result file."""
    patterns = ("*/result.json", "*/episodes.parquet", "*/checkpoint/model.safetensors")
    path = draw.choice(sorted(path for path in place.results.glob(draw.choice(patterns))) or _results(place))
    size = path.stat().st_size
    length = draw.randrange(size)
    os.truncate(path, length)
    return f"{path.relative_to(place.results)}: {length} of {size} bytes left", _owner(place, path)


def _results(place: Place) -> list[Path]:
    return sorted(place.results.glob("*/result.json"))


def flip(place: Place, draw: random.Random, shards: str) -> tuple[str, list[str]]:
    """Flip one bit of a file in a shard folder; without shards, of an episode table."""
    found = sorted(path for path in place.results.glob(shards) if path.is_file() and path.stat().st_size)
    path = draw.choice(found or sorted(place.results.glob("*/episodes.parquet")))
    position, bit = draw.randrange(path.stat().st_size), draw.randrange(8)
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))
    with contextlib.suppress(OSError):  # a disk that flips a bit tells nobody: the file's times stay
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return f"{path.relative_to(place.results)}: bit {bit} of byte {position}", _owner(place, path)


KINDS: dict[str, Kind] = {
    "worker": Kind(words="SIGKILL of a trial's worker", fault=kill_worker, busy=True),
    "driver": Kind(words="SIGKILL of the driver", fault=kill_driver),
    "sigterm": Kind(words="SIGTERM of the driver", fault=stop_driver),
    "raylet": Kind(words="SIGKILL of a worker node's raylet", fault=kill_raylet),
    "server": Kind(words="SIGKILL of the MLflow server", fault=kill_server),
    "disk": Kind(words="full disk", fault=fill_disk, root=True),
    "network": Kind(words="network of a node cut for 30 s", fault=cut_network, root=True),
    "truncate": Kind(words="truncated result file", damage=truncate),
    "bitflip": Kind(words="flipped bit in a shard or episode table", damage=flip),
}
