"""Stopping a launch by signals: after the first nothing new starts, and running cells end when the grace period is
over; a second one ends them at once.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

GRACE = 10.0  # seconds that running cells get to finish
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether the launch is to stop."""

    def __init__(self, grace: float = GRACE) -> None:
        """Args: grace: seconds between the first signal and the end of what runs."""
        self._grace = grace
        self._asked = 0.0

    def ask(self, number: int, frame: Any = None) -> None:
        """The handler of a signal.

        Raises:
            KeyboardInterrupt: it was asked before.
        """
        if self._asked:
            raise KeyboardInterrupt
        self._asked = time.monotonic()
        name = signal.Signals(number).name
        print(
            f"{name}: nothing new starts, and in {self._grace:.0f} s the launch ends; finished cells are kept "
            "(once more: at once)",
            file=sys.stderr,
            flush=True,
        )

    def begun(self) -> bool:
        """Whether nothing new is to begin."""
        return bool(self._asked)

    def over(self) -> bool:
        """Whether what runs is to be ended."""
        return bool(self._asked) and time.monotonic() - self._asked > self._grace


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Let SIGINT and SIGTERM stop a launch for the time of a block, in the main thread."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
