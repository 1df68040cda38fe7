"""A Ray head on loopback that is a test's alone, as a fixture."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

RAY = Path(sys.executable).parent / "ray"
START = 90  # seconds


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a cluster of one node, for the tests of a module: own folder, ports and token, ended by its group."""
    token = secrets.token_hex(32)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    folder = tempfile.mkdtemp(prefix="dj-", dir="/tmp")
    names = (
        "port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port",
        "node-manager-port", "object-manager-port", "runtime-env-agent-port",
    )  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [
        str(RAY), "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1",
        "--num-cpus=2", "--object-store-memory=100000000", f"--temp-dir={folder}", "--disable-usage-stats",
        *(f"--{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    request = urllib.request.Request(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    log = tmp_path_factory.mktemp("head") / "ray.log"
    with log.open("w") as output:
        head = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        deadline = time.monotonic() + START
        while True:
            assert head.poll() is None and time.monotonic() < deadline, log.read_text()
            with suppress(OSError), urllib.request.urlopen(request, timeout=5):
                break
            time.sleep(0.5)
        yield address
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            head.wait(timeout=5)
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)  # what did not end by itself
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)
        monkeypatch.undo()
