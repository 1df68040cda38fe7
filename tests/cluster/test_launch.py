"""Launches with real Ray and a real MLflow store, on work that costs nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from cluster.storage.results import Store

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.ray
SCRIPT = ROOT / "tests" / "helpers" / "fake_grid.py"


@pytest.fixture(scope="module", autouse=True)
def database(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Iterator[None]:
    """One MLflow store for all launches of a module."""
    path = shutil.copy(empty_mlflow, tmp_path_factory.mktemp("mlflow") / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_TRACKING_URI", f"sqlite:///{path}")
        yield


def arguments(results: Path, *more: str) -> list[str]:
    uri = os.environ["TEST_TRACKING_URI"]
    return [sys.executable, str(SCRIPT), "--results", str(results), "--tracking-uri", uri, *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def launch(results: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments(results, *more),
        env=environment(),
        cwd=results.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )


def executions(results: Path) -> list[tuple[str, str]]:
    """Key and process of every execution so far."""
    log = results.parent / "executions.log"
    lines = log.read_text().splitlines() if log.exists() else []
    return [(line.split()[0], line.split()[1]) for line in lines]


def runs(results: Path) -> tuple[list[str], Counter[tuple[str, str]]]:
    """Status of the launches into `results`, and (key, status) of the runs below them."""
    client = MlflowClient(os.environ["TEST_TRACKING_URI"])
    experiment = client.get_experiment_by_name("fake")
    assert experiment is not None
    found = list(client.search_runs([experiment.experiment_id], max_results=1000))
    parents = {run.info.run_id: run.info.status for run in found if run.data.tags.get("results") == str(results)}
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") in parents]
    assert all("mlflow.parentRunId" in run.data.tags or run.data.tags["kind"] == "launch" for run in found)
    return list(parents.values()), Counter((run.data.tags["key"], run.info.status) for run in children)


def merged(results: Path) -> pd.DataFrame:
    """All counts of a results directory, without what depends on the clock."""
    store = Store(results)
    tables = []
    for key in store.cell_keys():
        assert store.read(key).status == "finished"
        path = store.folder(key) / "episodes.parquet"
        if path.exists():
            tables.append(pd.read_parquet(path).assign(key=key))
    return pd.concat(tables, ignore_index=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of one undisturbed launch of 11 cells."""
    results = tmp_path_factory.mktemp("finished") / "results"
    done = launch(results, "--variants", "diffup,slow")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "11 of 11 cells finished" in done.stdout
    assert "ray" not in (done.stdout + done.stderr).lower().replace("array", "")
    return results


def test_each_cell_runs_once_in_few_processes_and_has_one_run(finished: Path) -> None:
    ran = executions(finished)
    assert len({key for key, _ in ran}) == len(ran) == 11
    assert len({process for _, process in ran}) <= 4  # at most one for each trial at a time, and two that were too many
    parents, children = runs(finished)
    assert parents == ["FINISHED"]
    assert children == Counter({(key, "FINISHED"): 1 for key, _ in ran})


def test_training_precedes_what_needs_it(finished: Path) -> None:
    store = Store(finished)
    ended = {key: store.read(key).result for key in store.cell_keys()}
    for key in ended:
        checkpoint = store.read_cell(key).get("checkpoint")
        if checkpoint:
            assert ended[checkpoint]["finished"] <= ended[key]["started"]


def test_runs_can_be_grouped_and_compared(finished: Path) -> None:
    client = MlflowClient(os.environ["TEST_TRACKING_URI"])
    experiment = client.get_experiment_by_name("fake")
    assert experiment is not None
    query = "tags.backbone = 'resnet18' and params.shots = '5' and tags.variant = 'slow'"
    (run,) = client.search_runs([experiment.experiment_id], query)
    assert run.info.run_name == "slow 5xmask resnet18 f0"
    assert set(run.data.metrics) == {"miou", "seconds"}
    assert run.data.params["input.input_size"] == "32"
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {
        "cell.json", "episodes.parquet", "panels", "per_class.csv", "result.json",
    }  # fmt: skip


def test_running_again_does_nothing_and_is_quick(finished: Path) -> None:
    before, runs_before = executions(finished), runs(finished)
    began = time.monotonic()
    done = launch(finished, "--variants", "diffup,slow")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "11 finished, 0 to do" in done.stdout
    assert time.monotonic() - began < 5
    assert executions(finished) == before
    assert runs(finished) == runs_before


@pytest.mark.parametrize("cache", ["auto", "none"])
def test_a_failing_cell_fails_alone_and_so_does_one_whose_worker_dies(cache: str, tmp_path: Path) -> None:
    results = tmp_path / "results"
    what = ("--variants", "diffup,fails,greedy,dies", "--select", "backbone=resnet18", "--cache", cache)
    done = launch(results, *what)
    assert done.returncode == 1, done.stdout + done.stderr
    store = Store(results)
    status = Counter((store.read_cell(key)["variant"], store.read(key).status) for key in store.cell_keys())
    assert status == {
        ("diffup", "finished"): 3,
        ("greedy", "finished"): 2,
        ("prior_mean", "finished"): 1,
        ("fails", "failed"): 2,
        ("dies", "failed"): 2,
    }
    times = Counter(key for key, _ in executions(results))
    by_variant: dict[str, set[int]] = {}
    for key, count in times.items():
        by_variant.setdefault(store.read_cell(key)["variant"], set()).add(count)
    tries = {3, 4} if cache == "none" else {3}  # greedy: batches of 8, 4, 2; a pass may have begun either once before
    assert by_variant["fails"] == {1} and by_variant["dies"] <= tries and by_variant["greedy"] <= tries
    greedy = [key for key in store.cell_keys() if store.read_cell(key)["variant"] == "greedy"]
    assert {store.read(key).result["provenance"]["batch_size"] for key in greedy} == {2}
    parents, children = runs(results)
    assert parents == ["FAILED"]
    assert Counter(status for _, status in children) == {"FINISHED": 6, "FAILED": 4}

    again = launch(results, *what)
    assert again.returncode == 1
    assert "0 to do, 4 failed" in again.stdout
    assert "fails on purpose" in again.stdout
    assert Counter(key for key, _ in executions(results)) == times


def test_cells_whose_training_failed_do_not_run(tmp_path: Path) -> None:
    results = tmp_path / "results"
    done = launch(results, "--training", "fails", "--select", "backbone=resnet34")
    assert done.returncode == 1
    assert "2 not run because their training failed" in done.stdout
    assert len(executions(results)) == 2  # the training, and the baseline that needs none


def test_sigkill_of_the_driver_then_a_launch_does_exactly_the_rest(finished: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    command = arguments(results, "--variants", "diffup,slow")
    with subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        deadline = time.monotonic() + 120
        while len(list(results.glob("*/result.json"))) < 4:
            assert driver.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(driver.pid, signal.SIGKILL)
    done_before = {path.parent.name for path in results.glob("*/result.json")}
    again = launch(results, "--variants", "diffup,slow")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "11 of 11 cells finished" in again.stdout
    count = Counter(key for key, _ in executions(results))
    assert len(count) == 11
    # Cells that were at work when the driver died may have run twice; finished ones never.
    assert {key for key, times in count.items() if times > 1} <= set(count) - done_before
    assert max(count.values()) <= 2
    columns = ["key", "episode", "inter_fg", "union_fg"]
    pd.testing.assert_frame_equal(merged(results)[columns], merged(finished)[columns])
    parents, children = runs(results)
    assert sorted(parents) == ["FINISHED", "KILLED"]
    finished_runs = [key for (key, status), times in children.items() if status == "FINISHED" for _ in range(times)]
    assert sorted(finished_runs) == sorted(count)
