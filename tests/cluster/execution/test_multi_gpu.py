"""A training cell on several Ray Train workers: the checkpoint of one worker, and failures told as usual."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import testing

from cluster.execution import inputs
from cluster.execution import run_cell as work
from cluster.storage.results import Store
from diffup.grid.cell import TrainingCell
from tests.helpers import toy_grid, toy_work

ROOT = Path(__file__).resolve().parents[3]
HERE = ROOT / "tests" / "helpers"


def launch(script: str, results: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / script), "--results", str(results), *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, cwd=results.parent, capture_output=True, text=True, timeout=600)


@pytest.mark.ray
def test_two_workers_make_the_checkpoint_of_one(tmp_path: Path) -> None:
    done = launch("toy_grid.py", tmp_path / "two", "--train-workers", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 cells finished" in done.stdout
    assert "ray" not in (done.stdout + done.stderr).lower().replace("array", "")
    trained, evaluated = toy_grid.grid()
    assert isinstance(trained, TrainingCell)
    results = {key: Store(tmp_path / "two").read(key).result for key in (trained.key(), evaluated.key())}
    assert results[trained.key()]["provenance"]["train_workers"] == 2
    assert results[trained.key()]["metrics"]["steps_per_s"] > 0
    assert results[trained.key()]["finished"] <= results[evaluated.key()]["started"]
    assert not list((tmp_path / "two" / ".tune").glob("*"))

    with pytest.MonkeyPatch.context() as patch:
        for name in ("_open", "_backbone"):  # toy_work replaces them for good
            patch.setattr(inputs, name, getattr(inputs, name))
        toy_work.execute(trained, work.WorkContext(results=tmp_path / "one", datasets={"toy": "nowhere"}))
    folders = [tmp_path / name / trained.key() / "checkpoint" / "model.safetensors" for name in ("one", "two")]
    one, two = (load_file(path) for path in folders)
    for name, value in one.items():
        testing.assert_close(two[name], value, atol=1e-4, rtol=0, msg=name)


@pytest.mark.ray
def test_a_training_that_fails_on_its_workers_fails_alone(tmp_path: Path) -> None:
    results = tmp_path / "results"
    what = ("--training", "fails", "--select", "backbone=resnet34", "--train-workers", "2")
    done = launch("fake_grid.py", results, *what)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 not run because their training failed" in done.stdout
    store = Store(results)
    status = {store.read_cell(key)["kind"]: store.read(key) for key in store.cell_keys()}
    assert status["train"].status == "failed"
    assert "on 2 workers failed: ValueError: cell" in status["train"].result["error"]
    assert "fails on purpose" in status["train"].result["error"]
    assert status["evaluate"].status == "finished"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "message"), [("5", "steps of 4 episodes; use at most 4 workers"), ("0", "must be 1 or more")]
)
def test_impossible_numbers_of_workers_are_bad_input(tmp_path: Path, workers: str, message: str) -> None:
    done = launch("toy_grid.py", tmp_path / "results", "--train-workers", workers)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.ray
def test_a_training_on_several_workers_ends_when_the_launch_is_asked_to_stop(tmp_path: Path) -> None:
    results = tmp_path / "results"
    what = ("--training", "endless", "--select", "backbone=resnet18", "--train-workers", "2")
    command = [sys.executable, str(HERE / "fake_grid.py"), "--results", str(results), *what]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 300
        while not (tmp_path / "executions.log").exists():
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        asked = time.monotonic()
        driver.send_signal(signal.SIGINT)  # whose handler Ray Train would like to have
        out, err = driver.communicate(timeout=90)
    finally:
        driver.kill()
    assert driver.returncode == 1, out + err
    assert time.monotonic() - asked < 45
    assert "finished cells are kept, re-run to resume" in err and "Traceback" not in err
    store = Store(results)
    assert not [key for key in store.cell_keys() if store.read(key).status != "missing"], "no cell has failed"
