"""Grids in a local S3 server (conftest.py has it), and "machines" that share nothing but it, for tests."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cluster.storage.backend import ObjectStore
from cluster.storage.layout import RESULT
from tests.cluster.test_launch import SCRIPT, environment

SECRET = "not-a-real-secret-key"


def arguments(uri: str, *more: str) -> list[str]:
    """The fake grid, into an object store."""
    return [sys.executable, str(SCRIPT), "--results", uri, "--episodes", "16", *more]


def machine(tmp_path: Path, name: str) -> dict[str, str]:
    """The environment of a machine that shares nothing with others but the object store."""
    return {**environment(), "DIFFUP_CACHE": str(tmp_path / name), "DIFFUP_HOME": str(tmp_path / name / "home")}


def lost(driver: subprocess.Popen[bytes], folder: Path, seconds: float = 120) -> None:
    """Kill a machine's driver, and wait until its Ray workers have noticed: one could still upload what it has done."""
    driver.kill()
    mark = str(folder / "home").encode()  # DIFFUP_HOME, see `machine`
    deadline = time.monotonic() + seconds
    while running := list(_processes(mark)):
        assert time.monotonic() < deadline, running
        time.sleep(0.1)


def _processes(mark: bytes) -> Iterator[bytes]:
    """Command lines of processes with a mark in their environment."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is not ours
            if mark in path.read_bytes():
                yield path.with_name("cmdline").read_bytes()


def cells(remote: ObjectStore) -> Counter[str]:
    """Finished cells up there."""
    return Counter(name.partition("/")[0] for name in remote.entries() if name.endswith(RESULT))


def ran(tmp_path: Path) -> Counter[str]:
    """How often each cell or part was run, on all machines."""
    logs = tmp_path.rglob("executions.log")
    return Counter(line.split()[0] for log in logs for line in log.read_text().splitlines())
