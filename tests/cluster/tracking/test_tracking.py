"""MLflow as a view of the store: logged once, rebuilt when it was down, never in the way."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from cluster.storage.atomic import now
from cluster.storage.results import Store
from cluster.tracking.client import resolve_uri, upgrade
from cluster.tracking.export import log_cell, log_configuration, log_failure
from cluster.tracking.launches import close_tracking, open_tracking
from cluster.tracking.sync import sync
from diffup.config import SampleConfig
from diffup.grid.cell import Cell
from tests.helpers import toy_search

CELL = Cell(
    dataset="shapes4i", fold=0, shots=1, annotation="mask", backbone="tiny_resnet", weights="random:0",
    sample=SampleConfig(method="prior_mean"), variant="prior_mean", episodes=3,
)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with one finished cell."""
    made = Store(tmp_path / "results")
    episodes = pd.DataFrame({"class_name": ["a", "b", "a"], "inter_fg": [1, 2, 3], "union_fg": [4, 4, 4]})
    metrics = {"miou": 50.0, "fb_iou": float("nan")}
    made.write_result(CELL, metrics=metrics, provenance={"git_commit": "abc"}, started=now(), episodes=episodes)
    return made


def test_what_was_missed_while_tracking_was_down_is_logged_later_and_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.warns(UserWarning, match="The grid goes on"):
        assert open_tracking("http://127.0.0.1:9", "fake", "fake-1", store, {}) is None
    uri = resolve_uri("", store.root)
    tracking = open_tracking(uri, "fake", "fake-2", store, {"results": "here"})
    assert tracking is not None
    assert log_cell(tracking, store, CELL)
    assert log_cell(tracking, store, CELL)
    log_failure(tracking, CELL, "ValueError: no", "trace", now())
    close_tracking(tracking, "FAILED", {"cells_failed": 1})

    client = MlflowClient(uri)
    runs = {run.info.run_id: run for run in client.search_runs([tracking.experiment_id])}
    parent = runs.pop(tracking.parent_run)
    assert (parent.info.status, parent.data.metrics) == ("FAILED", {"cells_failed": 1.0})
    by_status = {run.info.status: run for run in runs.values()}
    assert set(by_status) == {"FINISHED", "FAILED"}
    assert len(runs) == 2
    done = by_status["FINISHED"]
    assert done.data.metrics == {"miou": 50.0}  # what is not a number is left out
    assert done.data.tags["mlflow.parentRunId"] == tracking.parent_run
    assert (done.data.tags["key"], done.data.tags["git_commit"]) == (CELL.key(), "abc")
    assert done.data.params["sample.method"] == "prior_mean"
    assert Path(done.info.artifact_uri.removeprefix("file://")).is_relative_to(store.root)
    table = Path(client.download_artifacts(done.info.run_id, "per_class.csv")).read_text().split()
    assert table == ["class_name,iou,episodes", "a,50.0000,2", "b,50.0000,1"]


@pytest.mark.slow
def test_an_older_schema_is_upgraded_and_a_copy_kept(store: Store) -> None:
    from alembic.command import downgrade
    from mlflow.store.db.utils import _get_alembic_config

    uri = resolve_uri("", store.root)
    assert open_tracking(uri, "fake", "fake-1", store, {}) is not None

    def version() -> str:
        with sqlite3.connect(store.root / "mlflow.db") as connection:
            return str(connection.execute("select version_num from alembic_version").fetchone()[0])

    newest = version()
    downgrade(_get_alembic_config(uri), "-1")
    assert version() != newest
    upgrade(uri)
    assert version() == newest
    assert len(list(store.root.glob("mlflow.db.before-upgrade-*"))) == 1
    assert MlflowClient(uri).get_experiment_by_name("fake") is not None


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "mlflow.db"])
def test_a_folder_is_no_tracking_store(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--tracking-uri"):
        resolve_uri(uri, tmp_path)


def test_uris_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("", tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert resolve_uri("sqlite:///here.db", Path("/results")) == f"sqlite:///{tmp_path}/here.db"
    assert resolve_uri("sqlite:////there.db", Path("/results")) == "sqlite:////there.db"
    assert resolve_uri("https://mlflow.example", Path("/results")) == "https://mlflow.example"


def test_undefined_is_absent_in_mlflow_and_equal_names_are_kept_apart(tmp_path: Path) -> None:
    """No metric and no IoU of 0, but a tag and a column with the reason."""
    store = Store(tmp_path / "results")
    episodes = pd.DataFrame(
        {"class_id": [3, 1, 3, 2], "class_name": ["wren", "wren", "wren", "heron"], "inter_fg": [1, 4, 3, 0],
         "union_fg": [4, 4, 4, 0]}
    )  # fmt: skip
    metrics, reason = {"miou": float("nan"), "fb_iou": 40.0}, "nothing to find and nothing found in heron"
    store.write_result(
        CELL, metrics=metrics, provenance={}, started=now(), episodes=episodes, undefined={"miou": reason}
    )
    uri = resolve_uri("", store.root)
    tracking = open_tracking(uri, "fake", "fake-1", store, {})
    assert tracking is not None and log_cell(tracking, store, CELL)
    client = MlflowClient(uri)
    (run,) = client.search_runs([tracking.experiment_id], f"tags.key = '{CELL.key()}'")
    assert run.data.metrics == {"fb_iou": 40.0}
    assert run.data.tags["undefined.miou"] == reason
    table = Path(client.download_artifacts(run.info.run_id, "per_class.csv")).read_text().splitlines()
    assert table == [
        "class_name,iou,episodes,undefined",
        "heron,,1,nothing to find and nothing found",
        "wren (class 1),100.0000,1,",
        "wren (class 3),50.0000,2,",
    ]


def test_the_run_of_a_configuration_says_what_its_record_says_and_a_sync_leaves_it_alone(tmp_path: Path) -> None:
    """A search whose results are in a folder of the experiment's name: a trained configuration has two runs there."""
    store = Store(tmp_path / "search")
    cell = toy_search.candidate(1e-3).cell
    uri = resolve_uri("", store.root)
    tracking = open_tracking(uri, "search", "toy-1", store, {})
    assert tracking is not None
    entry: dict[str, Any] = {"values": {"learning_rate": 1e-3}, "scores": [], "ended": None, "error": ""}
    for steps in (2, 4):
        times = {"train_seconds": 1.0, "validate_seconds": 0.5}
        entry["scores"].append({"steps": steps, "miou": 10.0 * steps, "tasks": {"a": 1.0}, **times})
        for _ in range(2):
            log_configuration(tracking, cell, "configuration 0", entry)
    log_configuration(tracking, cell, "configuration 0", {**entry, "ended": "finished"}, "FINISHED")
    store.write_result(cell, metrics={"loss": 1.0}, provenance={}, started=now())
    assert (sync(store, uri)["logged"], sync(store, uri)["logged"]) == (1, 0)

    client = MlflowClient(uri)
    runs = client.search_runs([tracking.experiment_id], f"tags.key = '{cell.key()}'")
    (run,) = [run for run in runs if run.data.tags["kind"] == "configuration"]
    assert (len(runs), run.info.status, run.data.tags["ended"]) == (2, "FINISHED", "finished")
    assert (run.data.tags["mlflow.parentRunId"], run.data.params) == (tracking.parent_run, {"learning_rate": "0.001"})
    history = client.get_metric_history(run.info.run_id, "miou")
    assert [(metric.step, metric.value) for metric in history] == [(2, 20.0), (4, 40.0)]
