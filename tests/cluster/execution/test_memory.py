"""Peak memory is a cell's own, GPU memory is given back between cells, and a GPU's share follows evaluation alone."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.execution import memory, setting
from cluster.execution import run_cell as work
from cluster.execution.memory import Took, measured
from cluster.execution.run_cell import Outcome, Part, WorkContext
from cluster.planning.estimate import Past, amount, evaluation_share
from diffup.grid.axes import PRIOR_MEAN, Backbone, evaluation_cells, tasks, training_cell
from diffup.grid.cell import AnyCell, Cell
from diffup.training.recipes import Recipe
from tests.cluster.planning.test_plan import DATA, INPUT

BACKBONE = Backbone(name="resnet18", weights="random:0")
TRAINED = training_cell(DATA, 0, BACKBONE, Recipe(input=INPUT))
(CELL,) = evaluation_cells(DATA, 0, [BACKBONE], tasks((1,), ("mask",)), config=INPUT, episodes=10, sample=PRIOR_MEAN)
LARGE = 150  # MB
ROOT = Path(__file__).resolve().parents[3]


def use(megabytes: int) -> None:
    held = np.ones(megabytes << 20, np.uint8)
    time.sleep(0.2)  # for samples
    assert held[-1]


def resident() -> float:
    gc.collect()
    return memory._status("VmRSS")


# In a process of its own: one that has run other tests gives memory back at moments of its own.
LARGE_THEN_SMALL = """
import sys
from cluster.execution import memory
from tests.cluster.execution.test_memory import LARGE, resident, use
if sys.argv[1] == "samples":  # as where /proc/self/clear_refs can't be written
    memory.RESET_PEAK, memory.INTERVAL = "no such command", 0.0
before = resident()
with memory.measured("cpu", 1) as large:
    use(LARGE)
with memory.measured("cpu", 1) as small:
    use(1)
print(before, large.memory_mb, small.memory_mb, large.gpu_memory_mb)
"""


@pytest.mark.slow
@pytest.mark.parametrize("by", ["kernel", "samples"])
def test_a_small_cell_after_a_large_one_has_a_small_peak(by: str) -> None:
    ran = subprocess.run([sys.executable, "-c", LARGE_THEN_SMALL, by], capture_output=True, text=True, cwd=ROOT)
    assert not ran.returncode, ran.stderr
    before, large, small, gpu = map(float, ran.stdout.split())
    assert large > before + 0.8 * LARGE
    assert before / 2 < small < before + 0.5 * LARGE
    assert gpu == 0


def test_without_proc_it_is_the_lifetimes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PROCESS", tmp_path)
    with measured("cpu", 1) as peak:
        use(1)
    assert peak.memory_mb > 1


class FakeGPU:
    """What torch says of a GPU: the largest number of MB since the last reset, and what is kept for later."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.used = self.kept = self.peak = 0
        self.calls: list[str] = []
        for name in ("empty_cache", "reset_peak_memory_stats", "max_memory_reserved"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def run(self, megabytes: int) -> None:
        self.used, self.kept = 0, max(self.kept, megabytes)
        self.peak = max(self.peak, self.kept)

    def empty_cache(self) -> None:
        self.kept = self.used

    def reset_peak_memory_stats(self, device: object = None) -> None:
        self.calls.append(str(device))
        self.peak = self.kept

    def max_memory_reserved(self, device: object = None) -> int:
        self.calls.append(str(device))
        return self.peak << 20


@pytest.mark.slow
def test_a_gpus_peak_is_a_cells_and_its_cache_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, peaks = FakeGPU(monkeypatch), []
    for megabytes in (6000, 500, 800):
        with measured("cuda:0", 1) as peak:
            gpu.run(megabytes)
        assert gpu.kept == 0, "nothing stays for another process to miss"
        peaks.append(peak.gpu_memory_mb)
    assert peaks == [6000, 500, 800] and set(gpu.calls) == {"cuda:0"}


def test_a_cell_that_fails_gives_its_memory_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGPU(monkeypatch)
    with pytest.raises(RuntimeError, match="out of memory"), measured("cuda", 1):
        gpu.run(6000)
        raise RuntimeError("out of memory")
    assert gpu.kept == 0


def test_a_cpu_asks_nothing_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGPU(monkeypatch)
    with measured("cpu", 1):
        pass
    assert not gpu.calls


@pytest.mark.slow
def test_work_measures_each_cell_and_the_largest_of_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, sizes = FakeGPU(monkeypatch), iter([5000, 300, 200, 700, 100])
    monkeypatch.setattr(setting.Setting, "of", staticmethod(lambda cell, context: None))

    def part(*args: object) -> Part:
        gpu.run(next(sizes))
        return Part(pd.DataFrame(), {}, 1.0)

    def train(*args: object) -> Outcome:
        gpu.run(next(sizes))
        return Outcome({"loss": 0.0}, None, {})

    def concluded(*args: object) -> Outcome:
        return Outcome({"miou": 1.0}, None, {})

    monkeypatch.setattr(work, "_part", part)
    monkeypatch.setattr(work, "_train", train)
    monkeypatch.setattr(work, "_concluded", concluded)
    context = WorkContext(results=tmp_path, datasets={}, device="cuda")
    assert work.execute(TRAINED, context).metrics["peak_gpu_memory_mb"] == 5000
    metrics = work.execute(CELL, context).metrics
    assert metrics["peak_gpu_memory_mb"] == 300 and metrics["peak_memory_mb"] > 1
    parts = [work.evaluate_part(CELL, context, start, start + 5) for start in (0, 5)]
    parts.append(Part(pd.DataFrame(), {}, 1.0))  # by a version that did not measure parts
    assert work.conclude(CELL, context, parts).metrics["peak_gpu_memory_mb"] == 700


@pytest.mark.gpu
def test_a_real_gpus_peak_is_a_cells() -> None:
    peaks = []
    for megabytes in (1000, 10):
        with measured("cuda", 1) as peak:
            torch.empty(megabytes << 20, dtype=torch.uint8, device="cuda")
        peaks.append(peak.gpu_memory_mb)
        assert torch.cuda.memory_reserved() < 100 << 20
    assert peaks[0] > 999 and peaks[1] < 500


def past(cell: AnyCell, megabytes: float) -> tuple[AnyCell, Past]:
    return cell, Past(seconds=1, memory_mb=1, gpu_memory_mb=megabytes, amount=amount(cell))


def test_a_trainings_peak_takes_no_gpu_from_evaluation() -> None:
    known = [past(TRAINED, 60_000), past(CELL, 4_000)]
    assert evaluation_share(known, 80_000) == 0.125
    assert evaluation_share(known[:1], 80_000) == evaluation_share([], 80_000) == 1.0, "nothing is known of evaluation"


@given(st.lists(st.tuples(st.booleans(), st.floats(1, 100_000)), max_size=12))
def test_the_share_depends_on_evaluation_alone_and_fits(known: list[tuple[bool, float]]) -> None:
    cells: list[Any] = [past(TRAINED if training else CELL, megabytes) for training, megabytes in known]
    share = evaluation_share(cells, 80_000)
    assert share == evaluation_share([each for each in cells if isinstance(each[0], Cell)], 80_000)
    peak = max((cost.gpu_memory_mb for cell, cost in cells if isinstance(cell, Cell)), default=0.0)
    assert share in [1 / k for k in range(1, 9)] and (share == 1.0 or share * 80_000 >= 1.25 * peak)


def test_what_runs_in_parts_is_added_up() -> None:
    """The highest peak, all seconds, and the share of them in which the device computed."""
    both = Took(10, 0, seconds=2, busy_seconds=1) + Took(30, 0, seconds=2, busy_seconds=2)
    assert both.metrics("cpu") == {"peak_memory_mb": 30, "busy_share": 0.75}
    assert "busy_share" not in Took(1, 2, seconds=3).metrics("cuda:0")


def test_a_process_that_sleeps_is_not_busy() -> None:
    with measured("cpu", 1) as idle:
        time.sleep(0.3)
    with measured("cpu", 1) as busy:
        until = time.process_time() + 0.3
        while time.process_time() < until:
            pass
    assert idle.metrics("cpu").get("busy_share", 0) < 0.5
    assert busy.busy_seconds == pytest.approx(0.3, abs=0.1)
