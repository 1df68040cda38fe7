"""How far a training is, as it runs: ``step 340/800 loss 0.39 ETA 1:10``."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

RECENT = 50  # steps that the time to go is estimated from
QUIET = 15.0  # seconds between lines where the last one can't be written over
BLINK = 0.2  # seconds between changes of a line on a terminal

OnStep = Callable[[int, float], object]


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss."""
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def words(step: int, steps: int, loss: float, seconds: float) -> str:
    """The line: steps done of all, mean loss of the last 50, and the time to go."""
    return f"step {step}/{steps} loss {loss:.2f} ETA {clock(seconds)}"


class Pace:
    """Seconds to go of a training, by how long its last steps took.

    Args:
        steps: of the whole training.
    """

    def __init__(self, steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.steps, self._clock = steps, clock
        self._times: deque[tuple[int, float]] = deque([(0, clock())], maxlen=RECENT)

    def left(self, step: int) -> float:
        """Seconds from `step`, which has just been done, to the end."""
        first, began = self._times[0]
        self._times.append((step, now := self._clock()))
        return (now - began) / max(1, step - first) * (self.steps - step)


class Live:
    """Prints the line after each step, over the last one on a terminal, else every `QUIET` seconds; an ``OnStep``.

    Args:
        steps: of the whole training.
        out: stderr by default.
    """

    def __init__(self, steps: int, out: TextIO | None = None) -> None:
        self.steps, self.out, self._pace = steps, out or sys.stderr, Pace(steps)
        self._over = self.out.isatty()
        self._spoke = time.monotonic() if not self._over else 0.0

    def __call__(self, step: int, loss: float) -> None:
        """Say how far it is after a step."""
        left, last = self._pace.left(step), step == self.steps
        if not last and time.monotonic() - self._spoke < (BLINK if self._over else QUIET):
            return
        self._spoke = time.monotonic()
        end = "\n" if last or not self._over else ""
        print(
            ("\r\x1b[K" if self._over else "") + words(step, self.steps, loss, left), end=end, file=self.out, flush=True
        )
