"""Several launches on one store, long cells in parts, and launches that are asked to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from cluster.storage.results import Store
from diffup.grid.cell import Cell
from tests.cluster.test_launch import arguments, database, environment, executions, launch, merged
from tests.helpers import fake_grid, fake_work

__all__ = ["database"]

COLUMNS = ["key", "episode", "inter_fg", "union_fg"]
SLOW = ("--variants", "diffup,slow")

pytestmark = pytest.mark.ray


def check_counts(results: Path) -> None:
    """Every cell of 64 episodes has the counts that one undisturbed execution gives."""
    cells = [cell for cell in fake_grid.grid(("diffup", "slow"), 64) if isinstance(cell, Cell)]
    expected = pd.concat([fake_work.counts(cell).assign(key=cell.key()) for cell in cells], ignore_index=True)
    order = ["key", "episode"]
    found = merged(results).sort_values(order)[COLUMNS].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, expected.sort_values(order)[COLUMNS].reset_index(drop=True))


def begin(results: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments(results, *more), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(results: Path) -> int:
    return len(list(results.glob("*/result.json")))


def wait_for(results: Path, cells: int, driver: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while finished(results) < cells:
        assert driver.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_drivers_share_the_cells(tmp_path: Path) -> None:
    results = tmp_path / "results"
    drivers = [begin(results, *SLOW, "--episodes", "64") for _ in range(2)]
    said = [driver.communicate(timeout=240) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said
    assert all("11 of 11 cells finished" in out for out, _ in said)
    ran = executions(results)
    assert sorted(key for key, _ in ran) == sorted(Store(results).cell_keys())  # each once
    check_counts(results)


def test_parts_give_what_one_piece_gives(tmp_path: Path) -> None:
    results = tmp_path / "results"
    done = launch(results, *SLOW, "--episodes", "64", "--shard-episodes", "10")  # whole batches: 16, 32, 48, 64
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16 of 64 episodes" in done.stdout
    starts = Counter(name.partition("@")[2] for name, _ in executions(results))
    assert starts == {"": 1, "0": 10, "16": 10, "32": 10, "48": 10}
    check_counts(results)
    assert not list(results.glob("*/parts"))


def test_parts_of_a_killed_launch_are_kept(tmp_path: Path) -> None:
    results = tmp_path / "results"
    more = (*SLOW, "--episodes", "64", "--shard-episodes", "16")
    with begin(results, *more) as driver:
        deadline = time.monotonic() + 120
        while len(list(results.glob("*/parts/*.json"))) < 2:
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(driver.pid, signal.SIGKILL)
    done = launch(results, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    count = Counter(name for name, _ in executions(results))
    assert len(count) == 41
    assert sum(times - 1 for times in count.values()) <= 4  # those at work when it died
    check_counts(results)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_launch_that_is_asked_to_stop_keeps_what_is_finished(number: signal.Signals, tmp_path: Path) -> None:
    results = tmp_path / "results"
    more = ("--variants", "diffup,slow,another")
    with begin(results, *more) as driver:
        wait_for(results, 3, driver)
        asked = time.monotonic()
        driver.send_signal(number)
        out, err = driver.communicate(timeout=60)
    assert time.monotonic() - asked < 30
    assert driver.returncode == 1, out + err
    assert "finished cells are kept, re-run to resume" in err
    assert "Traceback" not in out + err
    before = executions(results)
    if number == signal.SIGINT:
        return
    done = launch(results, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "15 of 15 cells finished" in done.stdout
    assert len({key for key, _ in executions(results)}) == 15
    assert len(executions(results)) - 15 <= 2, (before, executions(results))  # at most those at work
