"""A machine's load as metrics of a launch's run, by MLflow's own monitor."""

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
from typing import TYPE_CHECKING

from cluster.tracking.client import client_of, require_answer, rests, tracking_uri, warn

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor


@contextlib.contextmanager
def monitor(uri: str, run_id: str, seconds: float) -> Iterator[None]:
    """See `cluster.tracking.launch_runs.system_metrics`."""
    if find_spec("psutil") is None:
        warnings.warn("system metrics need psutil: pip install psutil. The grid goes on without them", stacklevel=4)
        yield
        return
    with _one_a_machine(run_id) as chosen:
        started = _start(uri, run_id, seconds) if chosen and not rests(uri) else None
        try:
            yield
        finally:
            if started is not None:
                started.finish()


@contextlib.contextmanager
def _one_a_machine(run_id: str) -> Iterator[bool]:
    """Whether this process is the one that watches the machine for the run; another one's end frees the place."""
    name = hashlib.sha256(f"{os.getuid()} {run_id}".encode()).hexdigest()[:16]
    handle = os.open(Path(tempfile.gettempdir()) / f"diffup-monitor-{name}.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _start(uri: str, run_id: str, seconds: float) -> SystemMetricsMonitor | None:
    try:
        require_answer(uri)
        client_of(uri)
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        made = SystemMetricsMonitor(
            run_id,
            sampling_interval=seconds,
            resume_logging=True,
            node_id=platform.node(),
            tracking_uri=tracking_uri(uri),
        )
        made.start()
        return made
    except Exception as error:
        warn("system metrics can't be logged", error)
        return None
