"""What somebody sees who opens the link after a launch, and a results folder that was copied."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from cluster.storage.atomic import now, to_json, write_atomically
from cluster.storage.layout import LAUNCHES
from cluster.storage.results import Store
from cluster.tracking.client import open_store, resolve_uri
from cluster.tracking.export import log_cell
from cluster.tracking.launches import open_tracking
from cluster.tracking.moved import relocate
from cluster.tracking.runs import Tracking, log_dataset, run_name
from cluster.tracking.server import serve
from cluster.tracking.sync import sync
from cluster.tracking.view import COLUMNS, NOTE, SHARED_VIEW, TAGS, how_to_open, link
from diffup.config import SampleConfig
from diffup.errors import UserError
from diffup.evaluation.stats import EPISODE_COLUMNS, EpisodeCounts, bootstrap
from diffup.grid.cell import Cell
from tests.helpers.browser import Browser
from tests.helpers.tracking_workers import free_port, server

CELL = Cell(
    dataset="shapes4i", dataset_hash="aaaabbbbcccc", fold=2, shots=1, annotation="mask", backbone="tiny_resnet",
    weights="random:0", sample=SampleConfig(method="prior_mean"), variant="prior_mean", episodes=60,
)  # fmt: skip


def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    union = rng.integers(50, 100, (60, 2))
    inter = (union * rng.uniform(0.2, 0.9, (60, 2))).astype(int)
    return pd.DataFrame(
        {
            "episode": range(60), "class_id": np.arange(60) % 3, "class_name": [f"class {i % 3}" for i in range(60)],
            "query": [f"image {i % 20}" for i in range(60)], "inter_fg": inter[:, 0], "union_fg": union[:, 0],
            "inter_bg": inter[:, 1], "union_bg": union[:, 1],
        }
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path, empty_mlflow: Path) -> Store:
    """A store with one finished cell, and an empty database."""
    made = Store(tmp_path / "results")
    made.write_result(CELL, metrics={"miou": 50.0}, provenance={}, started=now(), episodes=table())
    shutil.copy(empty_mlflow, tmp_path / "results" / "mlflow.db")
    return made


def logged(store: Store) -> tuple[MlflowClient, Tracking, Run]:
    uri = resolve_uri("", store.root)
    tracking = open_tracking(uri, "fake", "fake-1", store, {})
    assert tracking is not None and log_cell(tracking, store, CELL)
    note = {"name": "fake", "keys": [CELL.key()], "started": now(), "tracking": tracking.to_dict()}
    write_atomically(store.root / LAUNCHES / "fake-1.json", to_json(note))
    client = MlflowClient(uri)
    (run,) = client.search_runs([tracking.experiment_id], f"tags.key = '{CELL.key()}'")
    return client, tracking, run


def test_a_run_has_a_short_name_its_data_and_the_intervals_of_the_tables(store: Store) -> None:
    _, _, run = logged(store)
    assert run.info.run_name == run_name(CELL) == "prior_mean 1xmask tiny_resnet f2"
    assert run.inputs is not None
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("shapes4i", "aaaabbbbcccc")
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "evaluation")]
    (scores,) = bootstrap([EpisodeCounts.of({name: table()[name] for name in EPISODE_COLUMNS})], stream=2)
    low, high = scores.miou.interval()
    metrics = run.data.metrics
    shown = [float(f"{value:.6g}") for value in (low, high)]
    assert [metrics["miou_low"], metrics["miou_high"]] == shown != [low, high]
    assert {"fb_iou_low", "fb_iou_high"} <= set(metrics) and low < high


def test_the_experiment_has_columns_and_a_description_that_stays_once_edited(store: Store) -> None:
    client, tracking, run = logged(store)
    tags = client.get_experiment(tracking.experiment_id).tags
    view = json.loads(tags[SHARED_VIEW])
    assert view["selectedColumns"] == list(COLUMNS)
    for column in COLUMNS:
        kind, name = column.replace("`", "").split(".")
        assert name in (run.data.metrics if kind == "metrics" else run.data.tags) or name == "trained_on"
    assert "a grid of DiffUp" in tags[NOTE] and link("", tracking.experiment_id) in tags[NOTE].replace("#", "/#")
    client.set_experiment_tag(tracking.experiment_id, NOTE, "mine")
    sync(store, tracking.uri)
    assert client.get_experiment(tracking.experiment_id).tags[NOTE] == "mine"


def test_what_is_printed_after_a_launch(store: Store) -> None:
    assert how_to_open(store.root) == [], "nothing was tracked"
    _, tracking, _ = logged(store)
    command, address = how_to_open(store.root)
    assert command.endswith(f"diffup mlflow --results {store.root}")
    end = f"/#/experiments/{tracking.experiment_id}/runs?viewStateShareKey=diffup"
    assert address == f"http://127.0.0.1:5000{end}"
    assert how_to_open(store.root, "https://user:secret@mlflow.example/") == [f"https://mlflow.example{end}"]


def test_a_copy_of_a_results_folder_has_its_own_artifacts(store: Store) -> None:
    """Also while the original is there; those of other results in the database stay where they are."""
    uri = resolve_uri("", store.root)
    other = Store(store.root.with_name(f"{store.root.name[:-1]}_"))  # the same to SQL's LIKE: _ is any letter
    assert open_tracking(uri, "of another folder", "other-1", other, {}) is not None
    _, tracking, run = logged(store)
    copy = shutil.copytree(store.root, store.root.with_name("a copy"))
    client = open_store(resolve_uri("", copy))
    found = client.get_run(run.info.run_id).info.artifact_uri
    assert found.startswith((copy / "mlartifacts").as_uri())
    shutil.rmtree(store.root)
    assert Path(client.download_artifacts(run.info.run_id, "per_class.csv")).is_file()
    assert client.get_experiment(tracking.experiment_id).artifact_location == (copy / "mlartifacts").as_uri()
    theirs = client.get_experiment_by_name("of another folder")
    assert theirs is not None and theirs.artifact_location == (other.root / "mlartifacts").as_uri()
    assert relocate(copy / "mlflow.db") == 0, "a second time there is nothing to do"


def test_a_moved_folder_whose_original_is_gone(store: Store) -> None:
    _, _, run = logged(store)
    moved = shutil.move(store.root, store.root.with_name("moved"))
    client = open_store(resolve_uri("", Path(moved)))
    assert Path(client.download_artifacts(run.info.run_id, "cell.json")).is_file()
    assert relocate(Path(moved) / "none.db") == 0


@pytest.mark.browser
@pytest.mark.slow
def test_the_link_opens_the_runs_with_their_columns(store: Store, require_program: Callable[[str], str]) -> None:
    _, tracking, _ = logged(store)
    port = free_port()
    with server(store.root, port), Browser(require_program("chromium")) as browser:
        browser.visit(link(f"http://127.0.0.1:{port}", tracking.experiment_id))
        browser.until(f"document.body?.innerText.includes({run_name(CELL)!r})")
        text = browser.run("document.body.innerText")
        assert "Error loading shared view" not in text and "a grid of DiffUp" in text
        for name in ("miou", *TAGS):
            assert name in text


def test_a_data_set_is_logged_by_one_at_a_time() -> None:
    """MLflow's server inserts a new data set twice, and refuses one, where two requests bring it at once."""
    inside, most = list[str](), list[int]()

    class Client:
        def log_inputs(self, run_id: str, datasets: list[Any]) -> None:
            inside.append(run_id)
            most.append(len(inside))
            time.sleep(0.02)
            inside.remove(run_id)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: log_dataset(cast(MlflowClient, Client()), str(number), CELL), range(8)))
    assert most == [1] * 8


def test_a_port_that_is_taken_is_named(store: Store) -> None:
    logged(store)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"can't listen at 127.0.0.1:{port} .*; choose another --port"):
            serve(store.root, "127.0.0.1", port)
