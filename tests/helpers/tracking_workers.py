"""What the processes of ``test_tracking.py`` and ``test_tracking_sync.py`` do at once, and a store for them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from cluster.storage.atomic import now, to_json, write_atomically
from cluster.storage.layout import LAUNCHES
from cluster.storage.results import Store, cell_document
from cluster.tracking.client import open_store, resolve_uri
from cluster.tracking.launches import open_experiment
from cluster.tracking.sync import sync
from diffup.config import SampleConfig
from diffup.grid.cell import Cell

ROOT = Path(__file__).resolve().parents[2]
PRELOADED = ["mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store", "pyarrow.parquet", __name__]


def cells(count: int) -> list[Cell]:
    """Prior-mean cells that differ in their episode seed."""
    return [
        Cell(
            dataset="shapes4i", fold=0, shots=1, annotation="mask", backbone="tiny_resnet", weights="random:0",
            sample=SampleConfig(method="prior_mean"), variant="prior_mean", episodes=3, episode_seed=seed,
        )
        for seed in range(count)
    ]  # fmt: skip


def finish(store: Store, cell: Cell) -> None:
    """Write a result."""
    episodes = pd.DataFrame({"class_name": ["a", "b", "a"], "inter_fg": [1, 2, 3], "union_fg": [4, 4, 4]})
    store.write_result(
        cell, metrics={"miou": 50.0, "fb_iou": float("nan")}, provenance={"git_commit": "abc"}, started=now(),
        episodes=episodes, panels={"episode_0000": Image.new("RGB", (8, 8))},
    )  # fmt: skip


def make_store(root: Path, count: int, *, ended: bool = True) -> Store:
    """A store with finished cells and the launch that made them."""
    store, started = Store(root), now()
    for cell in cells(count):
        finish(store, cell)
    note: dict[str, Any] = {
        "schema": 1, "name": "fake", "keys": [cell.key() for cell in cells(count)], "started": started,
        "cells": [cell_document(cell) for cell in cells(count)], "ended": now() if ended else None,
        "status": "FINISHED", "tracking": None,
    }  # fmt: skip
    write_atomically(root / LAUNCHES / "fake-1.json", to_json(note))
    return store


def at_once(work: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> list[str]:
    """Run ``work(barrier, *arguments[i])`` in a process each; returns their errors, one a process that failed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    barrier, errors = context.Barrier(len(arguments)), context.SimpleQueue()
    processes = [context.Process(target=_run, args=(work, errors, barrier, *each)) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        if process.exitcode is None:
            process.kill()
            process.join()
    found = []
    while not errors.empty():
        found.append(errors.get())
    return found + [f"exit code {p.exitcode}" for p in processes if p.exitcode]


def _run(work: Callable[..., None], errors: Any, *arguments: Any) -> None:
    try:
        work(*arguments)
    except Exception:
        errors.put(traceback.format_exc())


def open_fresh(barrier: Any, folder: Path, rounds: int) -> None:
    """Open a sqlite store that isn't there yet, at the same moment as the others, again and again."""
    for number in range(rounds):
        results = folder / f"round{number}"
        barrier.wait(120)
        uri = resolve_uri("", results)
        open_experiment(open_store(uri), uri, "fake", results)


def sync_into(barrier: Any, root: Path, uri: str) -> None:
    """Sync a result store."""
    barrier.wait(120)
    done = sync(Store(root), uri)
    assert not done["failed"], done


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server(results: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's server over a results directory, as the documentation starts it; killed at the end."""
    command = [sys.executable, "-m", "cluster.tracking", "serve", "--results", str(results), "--port", str(port)]
    with (results / "server.log").open("ab") as log:
        # A group of its own: what MLflow's command starts in turn dies with it.
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            until = time.monotonic() + 180
            while True:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
                assert process.poll() is None and time.monotonic() < until, (results / "server.log").read_text()
                time.sleep(0.2)
            yield process
        finally:
            kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a server with all its processes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
