"""How far a training is, in one line."""

from __future__ import annotations

import io

import pytest

from diffup.training import live
from diffup.training.live import Live, Pace, clock, words


def test_the_line_has_steps_loss_and_the_time_to_go() -> None:
    assert words(340, 800, 0.3949, 70.2) == "step 340/800 loss 0.39 ETA 1:10"
    assert [clock(seconds) for seconds in (-1, 0, 59.6, 3599, 3661)] == ["0:00", "0:00", "1:00", "59:59", "1:01:01"]


def test_the_time_to_go_follows_the_last_steps() -> None:
    at = iter([0.0, *(10.0 * step for step in range(1, 11)), *(100 + 0.5 * step for step in range(1, 91))])
    pace = Pace(200, lambda: next(at))
    assert pace.left(1) == pytest.approx(10 * 199)
    for step in range(2, 100):
        left = pace.left(step)
    assert left == pytest.approx(0.5 * 101)  # the slow steps at the beginning no longer count


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_one_line_and_a_file_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "BLINK", 0.0)
    for out in (Terminal(), io.StringIO()):
        said = Live(3, out)
        for step in (1, 2, 3):
            said(step, 0.5)
        text = out.getvalue()
        assert text.endswith("step 3/3 loss 0.50 ETA 0:00\n") and text.count("\n") == 1
        assert text.count("\r") == (3 if out.isatty() else 0)
