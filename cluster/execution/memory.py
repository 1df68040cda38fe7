"""What a cell took: its own peak memory, not of cells that the process ran before, and how busy the device was."""

from __future__ import annotations

import contextlib
import gc
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

PROCESS = Path("/proc/self")
RESET_PEAK = "5"  # written to clear_refs, see proc(5)
INTERVAL = 0.05  # seconds between samples where the kernel's own peak can't be reset
GPU_INTERVAL = 0.25
MB = 2**20


@dataclass
class Took:
    """What ran within `measured` took.

    Attributes:
        memory_mb, gpu_memory_mb: peak in MB: resident in the process, and reserved by torch on the GPU.
        seconds: in all.
        busy_seconds: of them, those in which the device computed: a GPU by its own account, else the process's share
            of its threads; 0 where a GPU can't be asked (without ``nvidia-ml-py``).
    """

    memory_mb: float = 0.0
    gpu_memory_mb: float = 0.0
    seconds: float = 0.0
    busy_seconds: float = 0.0

    def __add__(self, other: Took) -> Took:
        """One after the other, or side by side."""
        memory = max(self.memory_mb, other.memory_mb), max(self.gpu_memory_mb, other.gpu_memory_mb)
        return Took(*memory, self.seconds + other.seconds, self.busy_seconds + other.busy_seconds)

    def metrics(self, device: str) -> dict[str, float]:
        """As a cell's result has them."""
        found = {"peak_memory_mb": self.memory_mb}
        if device.startswith("cuda"):
            found["peak_gpu_memory_mb"] = self.gpu_memory_mb
        if self.busy_seconds:
            found["busy_share"] = min(1.0, self.busy_seconds / self.seconds)
        return found


@contextmanager
def measured(device: str, threads: int) -> Iterator[Took]:
    """Measure what runs within; torch's unused GPU memory is given back before and after.

    On Linux this is the kernel's own peak of the resident set, else the largest of samples; where neither is known
    (macOS), that of the process's lifetime.

    Args:
        device: where the work runs; a GPU is looked at only if it is one.
        threads: that the work has on a CPU.
    """
    peak, cuda = Took(), device.startswith("cuda")
    began, busy = time.perf_counter(), time.process_time()
    shares = _gpu_shares(device) if cuda else contextlib.nullcontext(list[float]())
    if cuda:
        give_back()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with _resident(peak), shares as sampled:
            yield peak
    finally:
        peak.seconds = time.perf_counter() - began
        peak.busy_seconds = (time.process_time() - busy) / threads
        if cuda:
            peak.busy_seconds = peak.seconds * sum(sampled) / max(1, len(sampled))
            peak.gpu_memory_mb = torch.cuda.max_memory_reserved(device) / MB
            give_back()


def give_back() -> None:
    """Let other processes have the GPU memory that torch keeps for later."""
    gc.collect()
    torch.cuda.empty_cache()


@contextmanager
def _gpu_shares(device: str) -> Iterator[list[float]]:
    """The share of time in which a kernel ran, by NVML, a few times a second."""
    shares, ended = list[float](), threading.Event()

    def sample() -> None:
        with contextlib.suppress(Exception):  # no NVML, or not for this device: nothing is known
            while not ended.wait(GPU_INTERVAL):
                shares.append(torch.cuda.utilization(device) / 100)

    sampler = threading.Thread(target=sample, name="utilisation", daemon=True)
    sampler.start()
    try:
        yield shares
    finally:
        ended.set()
        sampler.join()


@contextmanager
def _resident(peak: Took) -> Iterator[None]:
    try:
        (PROCESS / "clear_refs").write_text(RESET_PEAK)
        reset = True
    except OSError:
        reset = False
    samples, ended = [_status("VmRSS")], threading.Event()

    def sample() -> None:
        while not ended.wait(INTERVAL):
            samples[0] = max(samples[0], _status("VmRSS"))

    sampler = threading.Thread(target=sample, name="memory", daemon=True)
    if not reset and samples[0]:
        sampler.start()
    try:
        yield
    finally:
        ended.set()
        if sampler.is_alive():
            sampler.join()
        peak.memory_mb = _status("VmHWM") if reset else max(samples[0], _status("VmRSS"))
        if not peak.memory_mb:
            unit = 1 if sys.platform == "darwin" else 1024
            peak.memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MB


def _status(name: str) -> float:
    """A line of ``/proc/self/status`` in MB, 0 where there is none."""
    try:
        lines = (PROCESS / "status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), 0.0)
