"""A real Ray of several nodes, an MLflow server and a small disk, all on this machine and all this harness's alone.

With root and iproute2 each worker node lives in a network namespace with an address of its own, so that its network can
be cut. Without, the nodes are raylets on loopback addresses. Each has a temporary folder of its own.

What is made is written to ``state.json`` in a locked folder before it is made: `leftovers` removes what a harness that
was killed has left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tools.faults.network import Network, free_network
from tools.faults.processes import MARK, end, free_ports, listening, marked, waited

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "dff-"
BASE = Path("/tmp")  # Ray's sockets need short paths: at most 107 characters
START = 120.0  # seconds for a node or the server to come up, on a machine that does other things too
# Ray takes 127.0.0.1 for "this host" and puts its outward address in its place; it leaves others of loopback alone.
LOOPBACK = "127.0.0.{}"
OBJECT_STORE = 100_000_000
BINARIES = Path(sys.executable).parent
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "HF_HUB_OFFLINE": "1",
    **{name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")},
}


@dataclass(kw_only=True)
class Lab:
    """What faults are injected into.

    Attributes:
        folder: short path; its name is the mark of all processes.
        out: logs of nodes and server.
        network: None without root: then all nodes share loopback.
        disk: a small file system of its own, None without root.
        workers: number of worker nodes.
        cpus: of each node.
    """

    folder: Path
    out: Path
    network: Network | None
    disk: Path | None
    workers: int
    cpus: int
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    port: int = 0
    client_port: int = 0
    server_port: int = 0

    @property
    def mark(self) -> str:
        """Of all processes of this harness, see `tools.faults.processes`."""
        return self.folder.name

    @property
    def host(self) -> str:
        """Address of the head node."""
        return self.network.host if self.network else LOOPBACK.format(2)

    @property
    def server_host(self) -> str:
        """Address of the MLflow server: loopback, or the bridge, which the namespaces alone can reach."""
        return self.network.host if self.network else LOOPBACK.format(1)

    @property
    def tracking_uri(self) -> str:
        """Of the MLflow server."""
        return f"http://{self.server_host}:{self.server_port}"

    def environment(self, part: str) -> dict[str, str]:
        """For a process of this harness: marked, with the cluster's token, and with nothing of the user's own."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "TUNE_"))}
        paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        return {
            "DIFFUP_HOME": str(self.out / "home"),
            **kept,
            **QUIET,
            MARK: f"{self.mark}/{part}",
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
            "PATH": os.pathsep.join([str(BINARIES), os.environ.get("PATH", "")]),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
        }

    def driver_environment(self) -> dict[str, str]:
        """For a driver: it joins this cluster."""
        return {**self.environment("driver"), "RAY_ADDRESS": f"{self.host}:{self.port}"}

    def names(self) -> list[str]:
        """Worker nodes."""
        return [f"worker{number}" for number in range(1, self.workers + 1)]

    def start(self) -> None:
        """Start the head, the workers and the server, and wait until all are up."""
        (self.port, self.client_port), (self.server_port,) = free_ports(2, self.host), free_ports(1, self.server_host)
        self.start_server()
        self._start_node("head")
        if not self._node_up("head"):
            raise RuntimeError(f"the head did not start: {self._said('head')}")
        for name in self.names():
            self._start_node(name)
        self.wait_nodes()
        if not waited(self.server_up, START):
            raise RuntimeError(f"the MLflow server did not start: {self._said('server')}")

    def stop(self) -> None:
        """End everything."""
        end(self.mark)

    def heal(self) -> bool:
        """Bring back whatever is down: links, server, worker nodes; a new cluster if the head is gone.

        Returns:
            whether the whole cluster had to be started anew.
        """
        end(self.mark, "driver")
        for number in range(1, self.workers + 1):
            if self.network:
                self.network.join(number)
        if not self.raylet("head") or not any(p.name == "gcs_server" for p in marked(self.mark, "head")):
            self.stop()
            self.start()
            return True
        for name in self.names():
            self.start_node(name)
        self.wait_nodes()
        if not self.server_up():
            self.start_server()
            waited(self.server_up, START)
        return False

    def raylet(self, name: str) -> int:
        """Process id of a node's raylet, 0 if there is none."""
        return next((p.pid for p in marked(self.mark, name) if p.name == "raylet"), 0)

    def start_node(self, name: str) -> None:
        """Start a worker node again unless it is up; what is left of the old one is ended first."""
        if not self.raylet(name):
            end(self.mark, name)
            self._start_node(name)

    def wait_nodes(self) -> None:
        """Wait until all worker nodes say that they are up.

        Raises:
            RuntimeError: one does not come up.
        """
        for name in self.names():
            if not self._node_up(name):
                raise RuntimeError(f"{name} did not start: {self._said(name)}")

    def _said(self, name: str) -> str:
        return (self.out / f"{name}.log").read_text(errors="replace")[-2000:]

    def _node_up(self, name: str) -> bool:
        return waited(lambda: bool(self.raylet(name)) and "Ray runtime started" in self._said(name), START)

    def _start_node(self, name: str) -> None:
        head = name == "head"
        number = 0 if head else self.names().index(name) + 1
        address = self.network.address(number) if self.network else LOOPBACK.format(2 + number)
        inside = ["ip", "netns", "exec", self.network.namespace(number)] if self.network and number else []
        own = self.folder / name  # each node has a temporary folder of its own, as on machines of their own
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir()
        agent, agent_grpc, runtime, metrics = free_ports(4, self.host)
        command = [
            *inside, str(BINARIES / "ray"), "start", "--block", "--disable-usage-stats", "--log-style=record",
            f"--node-ip-address={address}", f"--num-cpus={self.cpus}", "--num-gpus=0",
            f"--object-store-memory={OBJECT_STORE}", "--min-worker-port=0", "--max-worker-port=0",
            f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}",
            f"--runtime-env-agent-port={runtime}", f"--metrics-export-port={metrics}", f"--temp-dir={own}",
        ]  # fmt: skip
        if head:
            command += ["--head", f"--port={self.port}", f"--ray-client-server-port={self.client_port}"]
            command += ["--include-dashboard=false"]
        else:
            command += [f"--address={self.host}:{self.port}"]
        self._spawn(name, command)

    def server_up(self) -> bool:
        """Whether the MLflow server accepts connections."""
        return listening(self.server_host, self.server_port)

    def start_server(self) -> None:
        """Start the MLflow server on its database."""
        end(self.mark, "server")
        store = self.out / "mlflow"
        store.mkdir(exist_ok=True)
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", self.server_host, "--port", str(self.server_port),
            "--workers", "1", "--backend-store-uri", f"sqlite:///{store / 'mlflow.db'}",
            "--artifacts-destination", str(store / "artifacts"),
        ]  # fmt: skip
        self._spawn("server", command)

    def _spawn(self, part: str, command: Sequence[str]) -> None:
        with (self.out / f"{part}.log").open("w") as log:
            subprocess.Popen(
                command, env=self.environment(part), stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.out,
                start_new_session=True,
            )  # fmt: skip


def leftovers() -> int:
    """Remove what harnesses have left behind whose lock nobody holds any more; returns their number."""
    count = 0
    for lock in BASE.glob(f"{PREFIX}*/lock"):
        with contextlib.suppress(OSError):
            handle = os.open(lock, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(lock.parent)
                count += 1
            finally:
                os.close(handle)
    return count


def _remove(folder: Path) -> None:
    end(folder.name)
    with contextlib.suppress(OSError, ValueError):
        Network(**json.loads((folder / "state.json").read_bytes())["network"]).remove()
    if (folder / "disk").is_mount():
        subprocess.run(["umount", "--lazy", str(folder / "disk")], check=True, timeout=30)
    shutil.rmtree(folder, ignore_errors=True)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def laboratory(out: Path, *, workers: int = 2, cpus: int = 1, isolated: bool, disk_mb: int = 64) -> Iterator[Lab]:
    """A running `Lab`; all of it is gone at the end, however that comes.

    Args:
        out: for logs and the MLflow store.
        workers: number of worker nodes.
        cpus: of each node.
        isolated: namespaces and a small disk (root); else raylets on loopback.
        disk_mb: size of the small disk.
    """
    leftovers()
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=BASE))
    handle = os.open(folder / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        network, disk = None, None
        if isolated:
            network = free_network(workers)
            (folder / "state.json").write_text(json.dumps({"network": asdict(network)}))
            network.make()
            disk = folder / "disk"
            disk.mkdir()
            # Before the nodes start: what is mounted later, their mount namespaces may not see.
            mount = ["mount", "-t", "tmpfs", "-o", f"size={disk_mb}m", "diffup-faults", str(disk)]
            subprocess.run(mount, check=True, timeout=30)
        lab = Lab(folder=folder, out=out, network=network, disk=disk, workers=workers, cpus=cpus)
        began = time.monotonic()
        lab.start()
        print(f"lab: {workers + 1} nodes at {lab.host} in {time.monotonic() - began:.0f} s", flush=True)
        yield lab
    finally:
        signal.signal(signal.SIGTERM, before)
        _remove(folder)
        os.close(handle)
