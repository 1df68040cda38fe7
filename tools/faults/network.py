"""Several hosts on one machine: network namespaces on a bridge, whose links can be cut. Needs root and iproute2."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from dataclasses import dataclass

INSTALL = "needs root and iproute2 (apt-get install iproute2)"


def possible() -> bool:
    """Whether this user can make network namespaces here."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True, timeout=20)
    return done.returncode == 0


def _ip(*words: str, check: bool = True) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30)
    if check and done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


@dataclass(frozen=True, kw_only=True)
class Network:
    """A bridge on this host and a namespace for each worker node.

    Attributes:
        name: at most eight characters, the start of all device names (the kernel allows fifteen).
        prefix: the first three numbers of all addresses, ``"10.a.b"``.
        workers: how many namespaces.
    """

    name: str
    prefix: str
    workers: int

    @property
    def host(self) -> str:
        """Address of this host on the bridge."""
        return self.address(0)

    def address(self, worker: int) -> str:
        """Address of a worker node, counted from 1; 0 is the head, on this host."""
        return f"{self.prefix}.{worker + 1}"

    def namespace(self, worker: int) -> str:
        """Name of a worker's namespace."""
        return f"{self.name}n{worker}"

    def _link(self, worker: int) -> str:
        return f"{self.name}v{worker}"

    def make(self) -> None:
        """Make the bridge, the namespaces and the links between them."""
        _ip("link", "add", self.name, "type", "bridge")
        _ip("addr", "add", f"{self.host}/24", "dev", self.name)
        _ip("link", "set", self.name, "up")
        for worker in range(1, self.workers + 1):
            space, outside, inside = self.namespace(worker), self._link(worker), f"{self.name}p{worker}"
            _ip("netns", "add", space)
            _ip("link", "add", outside, "type", "veth", "peer", "name", inside)
            _ip("link", "set", inside, "netns", space)
            _ip("link", "set", outside, "master", self.name)
            _ip("link", "set", outside, "up")
            _ip("-n", space, "addr", "add", f"{self.address(worker)}/24", "dev", inside)
            for device in (inside, "lo"):
                _ip("-n", space, "link", "set", device, "up")

    def remove(self) -> None:
        """Remove all of it, whatever is there."""
        for worker in range(1, self.workers + 1):
            _ip("link", "del", self._link(worker), check=False)
            _ip("netns", "del", self.namespace(worker), check=False)
        _ip("link", "del", self.name, check=False)

    def cut(self, worker: int) -> None:
        """Cut the link between a worker and all others: packets are lost, nothing is refused."""
        _ip("link", "set", self._link(worker), "down")

    def join(self, worker: int) -> None:
        """Join it again."""
        _ip("link", "set", self._link(worker), "up")


def free_network(workers: int) -> Network:
    """A network of names and addresses that are free here; not made yet."""
    routes = _ip("route") + _ip("addr")
    draw = random.SystemRandom()
    while True:
        prefix = f"10.{draw.randrange(64, 250)}.{draw.randrange(250)}"
        if f"{prefix}." not in routes:
            break
    return Network(name=f"df{draw.randrange(16**4):04x}", prefix=prefix, workers=workers)
