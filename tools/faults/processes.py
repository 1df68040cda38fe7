"""The processes of a harness, found by a mark in their environment and never by their names alone.

Ray starts daemons, agents and workers below what is started here, each in a group of its own but all in one session.
The mark is in the environment of each; those that rename themselves (``ray::…``) may lose it, and are found by the
session that they share with a marked one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

MARK = "DIFFUP_FAULTS"  # <harness>/<part>; parts are head, worker1, …, server, driver
PATIENCE = 10.0  # seconds that processes get to end, before and after SIGKILL


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process of this harness.

    Attributes:
        command: its command line, as it names itself by now (Ray's workers change theirs).
    """

    pid: int
    part: str
    command: str

    @property
    def name(self) -> str:
        """The first word of the command, without its folder."""
        first = self.command.split(" ")[0]
        return first if first.startswith("ray::") else first.rpartition("/")[2]


def marked(mark: str, part: str | None = None) -> list[Process]:
    """All live processes of the harness `mark`, of one part or of all."""
    sessions: dict[int, str] = {}
    seen: list[tuple[int, int, str]] = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            session = int((folder / "stat").read_text().rpartition(")")[2].split()[3])
        except (OSError, ValueError, IndexError):  # ended meanwhile, or another user's
            continue
        for variable in variables:
            if variable.startswith(f"{MARK}={mark}/".encode()):
                sessions[session] = variable.rpartition(b"/")[2].decode()
        if command:  # a zombie has none
            seen.append((int(folder.name), session, command))
    found = [Process(pid=pid, part=sessions[sid], command=command) for pid, sid, command in seen if sid in sessions]
    return [process for process in found if part in (None, process.part)]


def send(processes: Iterable[Process], number: signal.Signals) -> None:
    """Send a signal to each of these processes, by id."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def end(mark: str, part: str | None = None, *, gently: bool = False) -> None:
    """End all processes with `mark` (of one part) and wait until they are gone.

    Args:
        mark, part: whose.
        gently: SIGTERM first.

    Raises:
        RuntimeError: some are still there.
    """
    if gently:
        send(marked(mark, part), signal.SIGTERM)
        _gone(mark, part, PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while left := marked(mark, part):  # again and again: a dying parent may have had time to start one more
        send(left, signal.SIGKILL)
        time.sleep(0.1)
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes do not end: {[(process.pid, process.command[:60]) for process in left]}")


def _gone(mark: str, part: str | None, seconds: float) -> bool:
    return waited(lambda: not marked(mark, part), seconds)


def waited(condition: Callable[[], bool], seconds: float, pause: float = 0.2) -> bool:
    """Wait for a condition, at most so long; returns whether it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((host, 0))
        return [int(each.getsockname()[1]) for each in sockets]


def listening(host: str, port: int) -> bool:
    """Whether something accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False
