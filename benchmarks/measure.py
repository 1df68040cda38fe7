"""Measuring on one device, a GPU or a CPU: items a second, how busy it was, memory, and how far from the limit."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from cluster.execution.memory import Took, measured

PRECISIONS = ("float32", "bfloat16")
DISK_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: what was measured, items a second, and what that took."""

    what: str
    precision: str
    per_s: float
    unit: str
    busy: float | None
    peak_mb: float
    of_limit: float | None = None


class Bench:
    """Measures on one device.

    Attributes:
        precisions: those whose limit was measured and is not a tenth of float32's or less.
        rows: of the table, so far.
        limits: operations per second of a large matrix product, by precision.
    """

    def __init__(self, device: str, seconds: float, threads: int, *, shared: bool = False) -> None:
        """Args: device; seconds and threads of a measurement; whether others use the processor: then work of one thread
        is timed by its seconds of the processor rather than by the clock."""
        self.device, self.seconds, self.threads = device, seconds, threads
        self.cuda = device == "cuda"
        self.clock = time.process_time if shared and not self.cuda and threads == 1 else time.perf_counter
        self.rows: list[Row] = []
        self.limits: dict[str, float] = {}
        self.precisions: list[str] = []

    def call(self, work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
        """Seconds of a call, the device's queue empty before and after."""
        if self.cuda:
            torch.cuda.synchronize()
        began = clock()
        work()
        if self.cuda:
            torch.cuda.synchronize()
        return clock() - began

    def measure(
        self, what: str, unit: str, count: float, work: Callable[[], object], *, precision: str = "",
        gflops: float = 0.0, threads: int = 0, best: bool = False,
    ) -> float:  # fmt: skip
        """Items a second of `work`, which does `count` of them, by the median call.

        Args:
            what, unit: for the table.
            precision: that it runs in; ``""``: none.
            gflops: of one item, to compare with the limit.
            threads: of the CPU, for work that is not of the device, or on several threads; 0: it is of the device.
            best: the fastest call counts, as of a limit.
        """
        clock = self.clock if threads <= 1 else time.perf_counter
        with measured(self.device, self.threads) as peak:
            self.call(work)  # warm-up
            taken, began, used = list[float](), time.perf_counter(), time.process_time()
            while not taken or time.perf_counter() - began < self.seconds:
                taken.append(self.call(work, clock))
            share = (time.process_time() - used) / (time.perf_counter() - began) / (threads or self.threads)
            busy = self._busy(work) if self.cuda and not threads else share
        per_s = count / (min(taken) if best else statistics.median(taken))
        limit = per_s * gflops * 1e9 / self.limits[precision] if gflops else None
        self.add(Row(what=what, precision=precision, per_s=per_s, unit=unit, busy=busy, peak_mb=self.peak_mb(peak),
                     of_limit=limit))  # fmt: skip
        return per_s

    def add(self, row: Row) -> None:
        """Keep a row, and say so."""
        self.rows.append(row)
        print(f"{row.what}, {row.precision or '-'}: {row.per_s:.4g} {row.unit}/s", file=sys.stderr, flush=True)

    def peak_mb(self, peak: Took) -> float:
        """Memory of the device."""
        return peak.gpu_memory_mb if self.cuda else peak.memory_mb

    def _busy(self, work: Callable[[], object]) -> float:
        """The share of one call's time that is covered by what runs on the GPU."""
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            taken = self.call(work)
        ran = [each.time_range for each in seen.events() if each.device_type.name == "CUDA"]
        return covered((span.start, span.end) for span in ran) / 1e6 / taken

    def limit(self, precision: str, side: int) -> None:
        """The limit of a precision, by a product of square matrices."""
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        one, two = (torch.randn(side, side, device=self.device, dtype=dtype) for _ in range(2))
        what, work = f"product of {side}² matrices", lambda: one @ two
        per_s = self.measure(what, "TFLOP", 2 * side**3 / 1e12, work, best=True)
        self.limits[precision] = per_s * 1e12
        self.rows[-1] = replace(self.rows[-1], precision=precision, of_limit=1.0)
        if per_s > 0.1 * max(self.limits.values()) / 1e12:
            self.precisions.append(precision)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of spans, which may overlap: kernels of several streams do."""
    length, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        length += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return length


@contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    """torch computes on so many threads within."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def reading_disk(folder: Path) -> dict[str, float]:
    """Bytes read a second of a file that the operating system does not hold in memory."""
    path = folder / "bytes"
    with path.open("wb") as file:
        file.write(os.urandom(1 << 20) * (DISK_BYTES >> 20))
        file.flush()
        os.fsync(file.fileno())
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):  # else the page cache answers
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        while file.read(8 << 20):
            pass
    return {"bytes_per_s": DISK_BYTES / (time.perf_counter() - began)}


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown."""
    lines = ["| what | precision | a second | busy | peak memory | of the limit |", "| --- " * 6 + "|"]
    for row in rows:
        limit = "" if row.of_limit is None else f"{row.of_limit:.0%}"
        busy = "" if row.busy is None else f"{row.busy:.0%}"
        lines.append(
            f"| {row.what} | {row.precision} | {row.per_s:.3g} {row.unit}s | {busy} | {row.peak_mb:,.0f} MB | {limit} |"
        )
    return lines
