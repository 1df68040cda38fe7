"""A real search, on toys: ASHA stops what is bad, what is finished is an ordinary cell, and nothing is done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.execution import inputs
from cluster.execution import run_cell as work
from cluster.hpo.trials import FINISHED, record_path
from cluster.storage.results import Store
from tests.helpers import toy_search, toy_work

ROOT = Path(__file__).resolve().parents[3]


def launch(results: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tests/helpers/toy_search.py"), "--results", str(results), *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, cwd=results.parent, capture_output=True, text=True, timeout=300)


def record(results: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(record_path(results, toy_search.NAME).read_bytes())
    return document["configurations"]


def checkpoint(results: Path, key: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((results / key / "checkpoint").iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Results of a search that nothing disturbed, and what it printed."""
    results = tmp_path_factory.mktemp("search") / "results"
    done = launch(results)
    assert done.returncode == 0, done.stdout + done.stderr
    return results, done.stdout


KEYS = [found.cell.key() for found in toy_search.search().candidates]
REPORT = f"\n{toy_search.NAME}: mIoU"
GOOD, IDLE, ABSURD = KEYS[0], KEYS[1], KEYS[3]


@pytest.mark.ray
def test_bad_configurations_end_early_and_a_good_one_does_not(whole: tuple[Path, str]) -> None:
    results, printed = whole
    entries = record(results)
    assert [score["steps"] for score in entries[GOOD]["scores"]] == [6, 12, 24]
    assert entries[GOOD]["ended"] == "finished"
    assert entries[IDLE]["ended"] == "stopped" and [score["steps"] for score in entries[IDLE]["scores"]] == [6]
    assert entries[ABSURD]["ended"] == "diverged" and "lower TrainConfig.learning_rate" in entries[ABSURD]["error"]
    spent = sum(entry["scores"][-1]["steps"] for entry in entries.values() if entry["scores"])
    assert f"{spent} of 96, {100 * (1 - spent / 96):.0f} % saved by stopping" in printed
    assert "is optimistic" in printed
    assert not list(results.glob(".tune*"))


@pytest.mark.ray
def test_a_finished_configuration_is_an_ordinary_training_cell(whole: tuple[Path, str], tmp_path: Path) -> None:
    results, _ = whole
    store, search = Store(results), toy_search.search()
    for found in search.candidates:
        status = store.read(found.cell.key()).status
        assert (status == FINISHED) == (record(results)[found.cell.key()]["ended"] == FINISHED)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_open", "_backbone"):  # toy_work replaces them for good
            patch.setattr(inputs, name, getattr(inputs, name))
        toy_work.execute(search.candidates[0].cell, work.WorkContext(results=tmp_path, datasets={"toy": "nowhere"}))
    assert checkpoint(results, GOOD) == checkpoint(tmp_path, GOOD)
    assert set(checkpoint(results, IDLE)) == {"state.pt"}, "half a training must not look like a checkpoint"


@pytest.mark.ray
def test_again_does_nothing(whole: tuple[Path, str]) -> None:
    results, printed = whole
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()}
    done = launch(results)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 to do" in done.stdout
    assert done.stdout.partition(REPORT)[2] == printed.partition(REPORT)[2] != ""
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()} == before


@pytest.mark.ray
def test_mlflow_has_a_run_for_each_configuration_with_its_scores_over_steps(whole: tuple[Path, str]) -> None:
    from mlflow.tracking import MlflowClient

    results, _ = whole
    client = MlflowClient(tracking_uri=f"sqlite:///{results / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("search")
    assert experiment is not None
    runs = {run.data.tags.get("key", ""): run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"", *KEYS}
    entries = record(results)
    for key in KEYS:
        assert runs[key].data.tags["mlflow.parentRunId"] == runs[""].info.run_id
        assert runs[key].data.tags["ended"] == entries[key]["ended"]
        logged = {m.step: m.value for m in client.get_metric_history(runs[key].info.run_id, "miou")}
        assert logged == {score["steps"]: pytest.approx(score["miou"]) for score in entries[key]["scores"]}
    assert runs[""].info.status == "FINISHED"


@pytest.mark.ray
def test_a_killed_search_goes_on_where_it_was(whole: tuple[Path, str], tmp_path: Path) -> None:
    results = tmp_path / "results"
    killed = launch(results, "--kill-after", "2")
    assert killed.returncode == -signal.SIGKILL
    assert [score["steps"] for score in record(results)[GOOD]["scores"]] == [6, 12]
    first = record(results)[GOOD]["scores"]
    assert (results / GOOD / "checkpoint" / "state.pt").exists()
    done = launch(results)
    assert done.returncode == 0, done.stdout + done.stderr
    assert record(results)[GOOD]["scores"][:2] == first, "scored again"
    assert "configuration 0: mIoU" in done.stdout and "after 24 steps" in done.stdout
    assert not [
        line for line in done.stdout.splitlines() if "configuration 0:" in line and "after 24 steps" not in line
    ]
    assert checkpoint(results, GOOD) == checkpoint(whole[0], GOOD)
    for key in KEYS:  # one at a time, so that the scheduler meets the same scores in the same order
        for mine, theirs in zip(record(results)[key]["scores"], record(whole[0])[key]["scores"], strict=True):
            assert (mine["steps"], mine["miou"]) == (theirs["steps"], theirs["miou"])
