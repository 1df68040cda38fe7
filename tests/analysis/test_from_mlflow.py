"""What MLflow alone holds is what the result store holds: cells, episodes, panels, and what was asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from analysis import __main__ as command
from analysis.build import collect
from analysis.from_mlflow import load_mlflow
from analysis.results import Results, load_results, read_episodes
from analysis.tables.table import to_csv
from cluster.storage.results import Store, cell_document
from cluster.tracking import __main__ as tracking
from diffup.evaluation.metrics import fb_iou, miou
from tests.helpers.stores import BETTER, cell, episodes, grid

FAST = 50


def fill(root: Path, *, name: str = "grid") -> Store:
    """A store as the platform writes it: four cells and a fifth that was asked for and not made."""
    store = Store(root)
    cells = [*grid((0,))[:4], cell(fold=0, backbone=BETTER, shots=10)]
    for asked in cells[:-1]:
        table = episodes(asked)
        classes = sorted(set(table["class_id"]))
        metrics = {
            "miou": miou(table["class_id"], table["inter_fg"], table["union_fg"], classes),
            "fb_iou": fb_iou(table["inter_fg"], table["union_fg"], table["inter_bg"], table["union_bg"]),
            "seconds": 1.5,
        }
        store.write_result(
            asked, metrics=metrics, provenance={"git_commit": "0123", "code_hash": "feed", "device": "cpu"},
            started="2026-01-01T00:00:00+00:00", episodes=table, panels={"episode_0000": Image.new("RGB", (8, 8))},
        )  # fmt: skip
    note = {
        "name": name, "started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T01:00:00+00:00",
        "status": "FINISHED", "keys": [asked.key() for asked in cells], "tracking": None,
        "cells": [cell_document(asked) for asked in cells],
    }  # fmt: skip
    (root / "launches").mkdir(parents=True, exist_ok=True)
    (root / "launches" / f"{name}-20260101-000000-aaaa.json").write_text(json.dumps(note))
    return store


@pytest.fixture
def uri(tmp_path: Path, empty_mlflow: Path) -> str:
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def sync(store: Store, uri: str) -> None:
    assert tracking.main(["sync", "--results", str(store.root), "--tracking-uri", uri]) == 0


def csvs(results: Results) -> list[str]:
    return [to_csv(table) for part in collect(results, resamples=FAST) for table in part.tables]


def test_the_frame_from_mlflow_is_that_of_the_store(tmp_path: Path, uri: str) -> None:
    store = fill(tmp_path / "results")
    sync(store, uri)
    ours = load_results(store.root)
    tables, table = csvs(ours), read_episodes(store.root, sorted(ours.counts))
    (tmp_path / "away").mkdir()
    for name in [*ours.cells["key"], "launches"]:  # MLflow's own files may lie beside them
        if (store.root / name).is_dir():
            shutil.move(store.root / name, tmp_path / "away" / name)
    theirs = load_mlflow(uri, "grid", tmp_path / "fetched")
    pd.testing.assert_frame_equal(theirs.cells, ours.cells)
    assert set(theirs.cells["status"]) == {"finished", "unfinished"} and theirs.warnings == ours.warnings
    assert theirs.documents == ours.documents
    pd.testing.assert_frame_equal(read_episodes(tmp_path / "fetched", sorted(ours.counts)), table)
    assert csvs(theirs) == tables and len(tables) >= 2
    assert len(list((tmp_path / "fetched").glob("*/panels/*.jpg"))) == 4
    again = load_mlflow(uri, "grid", tmp_path / "fetched")
    pd.testing.assert_frame_equal(again.cells, ours.cells)


def test_the_command(tmp_path: Path, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    store = fill(tmp_path / "results")
    sync(store, uri)
    asked = ["--from-mlflow", uri, "--experiment", "grid", "--folder", str(tmp_path / "fetched")]
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    assert command.cells([*asked, "--out", str(one), "--episodes", str(tmp_path / "episodes.parquet")]) == 0
    assert command.cells(["--results", str(store.root), "--out", str(two)]) == 0
    assert one.read_bytes() == two.read_bytes()
    assert len(pd.read_parquet(tmp_path / "episodes.parquet")) == 4 * 120
    few = tmp_path / "few.parquet"
    assert command.cells([*asked, "--out", str(few), "--where", "shots=1,annotation=mask|box"]) == 0
    assert set(pd.read_parquet(few)["annotation"]) == {"mask", "box"}
    capsys.readouterr()
    for arguments, message in (
        (["--out", str(one)], "pass --results DIR, or --from-mlflow"),
        ([*asked[:2], "--out", str(one)], "needs --experiment"),
        ([*asked[:2], "--experiment", "grit", "--out", str(one)], "no experiment 'grit'; there are: Default, grid"),
        (["--from-mlflow", "sqlite:////no/where.db", "--experiment", "a", "--out", str(one)], "no such file"),
        ([*asked, "--out", str(tmp_path / "a.xlsx")], "written as .csv or .parquet"),
        ([*asked, "--out", str(one), "--where", "shots"], "'shots' is not of that form"),
        ([*asked, "--out", str(one), "--where", "shots=many"], "shots is a number"),
        ([*asked, "--out", str(one), "--where", "colour=red"], "no column 'colour'"),
    ):
        assert command.cells(arguments) == 2
        assert message in capsys.readouterr().err


def test_a_launch_that_was_renamed_to_something_that_is_no_file_name(tmp_path: Path, uri: str) -> None:
    from mlflow.tracking import MlflowClient

    sync(fill(tmp_path / "results"), uri)
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("grid").experiment_id])  # type: ignore[union-attr]
    (launch,) = (run for run in runs if "key" not in run.data.tags)
    client.set_tag(launch.info.run_id, "mlflow.runName", "final run, 1/2")
    assert len(load_mlflow(uri, "grid", tmp_path / "fetched").cells) == 5
    assert [path.name for path in (tmp_path / "fetched").rglob("final*")] == [
        f"final_run__1_2-{launch.info.run_id[:8]}.json"
    ]


@pytest.mark.slow
def test_several_stores_in_one_experiment_are_told_apart(tmp_path: Path, uri: str) -> None:
    for name in ("one", "two"):
        sync(fill(tmp_path / name), uri)
    with pytest.raises(ValueError, match=r"runs of several result stores: .*--store"):
        load_mlflow(uri, "grid", tmp_path / "fetched")
    identity = Store(tmp_path / "two").identity()
    found = load_mlflow(uri, "grid", tmp_path / "fetched", store=identity)
    assert len(found.cells) == 5


def test_runs_without_files_are_named(tmp_path: Path, uri: str) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("old", artifact_location=(tmp_path / "artifacts").as_uri())
    with pytest.raises(ValueError, match="has no finished cell"):
        load_mlflow(uri, "old", tmp_path / "fetched")
    run = client.create_run(experiment, tags={"key": "abc", "kind": "evaluate"})
    client.set_terminated(run.info.run_id)
    with pytest.raises(ValueError, match=r"1 of 1 runs of experiment 'old' lack one of cell.json"):
        load_mlflow(uri, "old", tmp_path / "fetched")
