"""Peak memory of a cell, rather than of the process that has run others before it."""

from __future__ import annotations

import gc
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

PROCESS = Path("/proc/self")
RESET_PEAK = "5"  # written to clear_refs, see proc(5)
INTERVAL = 0.05  # seconds between samples where the kernel's own peak can't be reset
MB = 2**20


@dataclass
class Peak:
    """Peak memory in MB within `peak_memory`: resident in the process, and reserved by torch on the GPU."""

    memory_mb: float = 0.0
    gpu_memory_mb: float = 0.0


@contextmanager
def peak_memory(device: str) -> Iterator[Peak]:
    """Measure the peak memory of what runs within; torch's unused GPU memory is given back before and after.

    On Linux this is the kernel's own peak of the resident set, else the largest of samples; where neither is known
    (macOS), that of the process's lifetime.

    Args:
        device: where the work runs; a GPU is looked at only if it is one.
    """
    peak, cuda = Peak(), device.startswith("cuda")
    if cuda:
        give_back()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with _resident(peak):
            yield peak
    finally:
        if cuda:
            peak.gpu_memory_mb = torch.cuda.max_memory_reserved(device) / MB
            give_back()


def give_back() -> None:
    """Let other processes have the GPU memory that torch keeps for later."""
    gc.collect()
    torch.cuda.empty_cache()


@contextmanager
def _resident(peak: Peak) -> Iterator[None]:
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
