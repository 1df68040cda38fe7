"""A machine's CPU, memory, disk, network and GPU as metrics of a launch's run, by MLflow's own monitor."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import tempfile
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from cluster.tracking.client import attempt, tracking_uri
from cluster.tracking.runs import Tracking

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
    from mlflow.tracking import MlflowClient


@contextlib.contextmanager
def system_metrics(tracking: Tracking | None, seconds: float = 10.0) -> Iterator[None]:
    """Log the load of this machine to the launch's run while this lasts, under the machine's name.

    One process per machine does so; the others do nothing. Needs psutil, and warns where it is missing.

    Args:
        tracking: of the launch; None: nothing is logged.
        seconds: between samples.
    """
    if tracking is None:
        yield
        return
    if find_spec("psutil") is None:
        warnings.warn("system metrics need psutil: pip install psutil. The grid goes on without them", stacklevel=3)
        yield
        return
    name = hashlib.sha256(f"{os.getuid()} {tracking.parent_run}".encode()).hexdigest()[:16]
    with open(Path(tempfile.gettempdir()) / f"diffup-monitor-{name}.lock", "a") as lock:
        monitor = _start(tracking, seconds) if _is_first(lock) else None
        try:
            yield
        finally:
            if monitor is not None:
                monitor.finish()


def _is_first(lock: TextIO) -> bool:
    """Whether this process now holds the lock; it lets go of it when the file is closed."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _start(tracking: Tracking, seconds: float) -> SystemMetricsMonitor | None:
    def start(_: MlflowClient) -> SystemMetricsMonitor:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        made = SystemMetricsMonitor(
            tracking.parent_run,
            sampling_interval=seconds,
            resume_logging=True,
            node_id=platform.node(),
            tracking_uri=tracking_uri(tracking.uri),
        )
        made.start()
        return made

    return attempt(tracking.uri, "system metrics can't be logged", start)
