"""A training as it runs: its line in the launch's progress, and its loss as a curve in the result and in MLflow."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from cluster.execution import live, progress
from cluster.execution.context import WorkContext
from cluster.execution.live import POINTS, STALE, LiveTraining, line_of
from cluster.execution.progress import Progress
from cluster.execution.run_cell import execute
from cluster.storage.atomic import now
from cluster.storage.results import Store
from cluster.tracking.client import resolve_uri
from cluster.tracking.export import log_cell
from cluster.tracking.launches import open_tracking
from diffup.config import ModelConfig, TrainConfig
from diffup.grid.cell import TrainingCell
from tests.helpers.toy import ToyDataset

CELL = TrainingCell(
    dataset="toy", fold=1, backbone="toy", weights="random:0", model=ModelConfig(decoder_grid=16, width=16),
    train=TrainConfig(steps=340, batch_size=2, max_shots=2),
)  # fmt: skip


@pytest.fixture
def context(tmp_path: Path) -> WorkContext:
    return WorkContext(results=tmp_path / "results", datasets={"toy": "toy"})


def test_the_line_is_there_while_it_trains(
    context: WorkContext, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live, "WRITE", 0.0)
    monkeypatch.setattr(progress, "SIGN_OF_LIFE", -1.0)
    training, folder = LiveTraining(CELL, context), context.results / CELL.key()
    shown = Progress([CELL], {}, 1, Store(context.results))
    shown.begin("trial")
    shown.on_step_end(0, [])
    assert "running, the longest" in capsys.readouterr().out
    for step in range(1, 171):
        training(step, 2.0)
    assert line_of(folder).startswith("step 170/340 loss 2.00 ETA 0:0")
    shown.on_step_end(0, [])
    assert "toy · toy fold 1 · training · diffup: step 170/340 loss 2.00 ETA" in capsys.readouterr().out
    os.utime(folder / "live.json", (0, 0))
    assert line_of(folder) == "" and STALE > live.WRITE
    training(171, 2.0)
    training.close()
    assert line_of(folder) == "" and not list(folder.iterdir())
    (folder / "live.json").write_text("[1]")
    assert line_of(folder) == ""


def test_a_curve_has_few_points_and_the_last(context: WorkContext) -> None:
    training = LiveTraining(CELL, context)
    for step in range(1, 341):
        training(step, 1 / step)
    assert len(training.curve) <= POINTS + 14 and training.curve[-1] == (340, round(1 / 340, 5))


@pytest.mark.usefixtures("toy")
def test_a_result_keeps_the_curve(toy: ToyDataset, context: WorkContext) -> None:
    cell = dataclasses.replace(CELL, train=dataclasses.replace(CELL.train, steps=3))
    outcome = execute(cell, context)
    assert [step for step, _ in outcome.provenance["curve"]] == [1, 2, 3]
    assert outcome.provenance["curve"][-1][1] == pytest.approx(outcome.metrics["loss"], abs=1e-5)
    assert not (context.results / cell.key() / "live.json").exists()


def test_mlflow_has_the_curve_live_and_at_the_end(
    context: WorkContext, monkeypatch: pytest.MonkeyPatch, empty_mlflow: Path
) -> None:
    context.results.mkdir()
    shutil.copy(empty_mlflow, context.results / "mlflow.db")
    store, uri = Store(context.results), resolve_uri("", context.results)
    tracking = open_tracking(uri, "fake", "fake-1", store, {})
    assert tracking is not None
    monkeypatch.setattr(live, "LOG", 0.0)
    training = LiveTraining(CELL, dataclasses.replace(context, tracking=tracking))
    for step in (1, 2):
        training(step, 1.0 / step)
    client = MlflowClient(uri)
    points = client.get_metric_history(tracking.parent_run, f"loss/{CELL.key()}")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 0.5)]

    checkpoint = context.results / CELL.key() / "checkpoint"
    checkpoint.mkdir(parents=True)
    for name in ("model.safetensors", "config.json"):
        (checkpoint / name).write_text(json.dumps({}))
    store.write_result(CELL, metrics={"loss": 0.5}, provenance={"curve": [[1, 1.0], [340, 0.5]]}, started=now())
    assert log_cell(tracking, store, CELL)
    (run,) = client.search_runs([tracking.experiment_id], f"tags.key = '{CELL.key()}'")
    assert run.data.metrics == {"loss": 0.5, "training_loss": 0.5}
    kept = client.get_metric_history(run.info.run_id, "training_loss")
    assert [(point.step, point.value) for point in kept] == [(1, 1.0), (340, 0.5)]
