"""MLflow as a view of the result store: experiment = grid, parent run = launch, child run = cell.

Everything logged comes from the store, so a run that could not be logged in its trial (tracking down, a kill in
between) is logged by a later launch, once. No failure of tracking ever fails a cell: it warns, and the grid goes on.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import shutil
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.store import EPISODES, RESULT, Record, Store
from experiments.cell import AnyCell, cell_to_dict
from experiments.grids import describe

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.tracking import MlflowClient

PARENT = "mlflow.parentRunId"
SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")
TAGS = ("kind", "dataset", "protocol", "fold", "shots", "annotation", "backbone", "trained_on", "variant", "train_seed")
MADE_BY = ("git_commit", "code_hash", "host", "device")
PARAM_LENGTH = 500
# A tracking server that does not answer must not hold cells up for minutes.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true"}


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where child runs go: plain strings, so that it can be sent to a trial."""

    uri: str
    experiment_id: str
    parent_run: str

    def to_dict(self) -> dict[str, str]:
        """As plain JSON types."""
        return asdict(self)


def resolve_uri(uri: str, results: Path) -> str:
    """An absolute tracking URI; by default a sqlite file in the results directory.

    Raises:
        ValueError: a scheme that MLflow has no database or server for.
    """
    if not uri:
        return f"sqlite:///{results / 'mlflow.db'}"
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme.split("+")[0] not in SCHEMES:
        raise ValueError(
            f"--tracking-uri {uri!r}: give a database or a server, such as sqlite:////ABSOLUTE/mlflow.db or "
            f"http://127.0.0.1:5000 (MLflow no longer keeps runs in plain folders)"
        )
    if scheme == "sqlite" and rest.startswith("///") and not rest.startswith("////"):
        return f"sqlite:///{Path(rest.removeprefix('///')).absolute()}"
    return uri


def _client(uri: str) -> MlflowClient:
    for name, value in (PATIENCE | QUIET).items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri)


def _warn(what: str, error: Exception) -> None:
    lines = str(error).strip().splitlines()
    warnings.warn(
        f"MLflow: {what}: {lines[0][:200] if lines else type(error).__name__}. The grid goes on; results are in the "
        f"store, and a later launch logs what is missing",
        stacklevel=2,
    )


def _milliseconds(stamp: str) -> int:
    return int(datetime.fromisoformat(stamp).timestamp() * 1000)


def open_tracking(uri: str, experiment: str, launch: str, results: Path, tags: dict[str, str]) -> Tracking | None:
    """Create or upgrade the store, the experiment and the parent run: in the driver, before any trial starts.

    Returns:
        None, with a warning, if tracking is down.
    """
    try:
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        client = _client(uri)
        try:
            found = client.get_experiment_by_name(experiment)
        except Exception as error:
            if "out-of-date database schema" not in str(error) or not uri.startswith("sqlite:///"):
                raise
            _upgrade(uri)
            client = _client(uri)
            found = client.get_experiment_by_name(experiment)
        if found is not None and found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        if found is not None:
            experiment_id = found.experiment_id
        else:
            # A server keeps artifacts where it is told to; beside a database they need an absolute place.
            place = None if uri.startswith("http") else (results / "mlartifacts").as_uri()
            experiment_id = client.create_experiment(experiment, artifact_location=place)
        run = client.create_run(experiment_id, tags={"kind": "launch", **tags}, run_name=launch)
        return Tracking(uri=uri, experiment_id=experiment_id, parent_run=run.info.run_id)
    except Exception as error:
        _warn(f"{uri} can't be used", error)
        return None


def _upgrade(uri: str) -> None:
    """Bring an older sqlite store to this MLflow's schema; a copy of the old one is kept beside it."""
    path = Path(uri.removeprefix("sqlite:///"))
    shutil.copy2(path, path.with_name(f"{path.name}.before-upgrade-{int(time.time())}"))
    subprocess.run([sys.executable, "-m", "mlflow", "db", "upgrade", uri], check=True, capture_output=True)


def close_tracking(tracking: Tracking, status: str, metrics: dict[str, float]) -> None:
    """End a parent run as ``FINISHED``, ``FAILED`` or ``KILLED``, with the counts of its launch."""
    try:
        client = _client(tracking.uri)
        for name, value in metrics.items():
            client.log_metric(tracking.parent_run, name, value)
        client.set_terminated(tracking.parent_run, status)
    except Exception as error:
        _warn("the launch can't be closed", error)


def _flat(document: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            flat[f"{prefix}{name}"] = text[:PARAM_LENGTH]
    return flat


def _start(client: MlflowClient, tracking: Tracking, cell: AnyCell, provenance: dict[str, Any], started: str) -> str:
    from mlflow.entities import Param

    document = cell_to_dict(cell)
    tags = {name: str(document[name]) for name in TAGS if name in document}
    tags |= {name: str(provenance[name]) for name in MADE_BY if name in provenance}
    tags |= {"key": cell.key(), PARENT: tracking.parent_run}
    run = client.create_run(
        tracking.experiment_id, start_time=_milliseconds(started), tags=tags, run_name=describe(cell)
    )
    params = [Param(name, value) for name, value in _flat(document).items() if value]
    client.log_batch(run.info.run_id, params=params)
    run_id: str = run.info.run_id
    return run_id


def per_class(episodes: pd.DataFrame) -> pd.DataFrame:
    """IoU in percent and number of episodes by class, from an episode table."""
    sums = episodes.groupby("class_name", sort=True)[["inter_fg", "union_fg"]].sum()
    table = (100 * sums["inter_fg"] / sums["union_fg"].clip(lower=1)).rename("iou").to_frame()
    table["episodes"] = episodes.groupby("class_name", sort=True).size()
    return table.reset_index()


def log_cell(tracking: Tracking, store: Store, cell: AnyCell, record: Record | None = None) -> bool:
    """Log a finished cell as a child run, unless this tracking store has it already.

    Returns:
        whether the cell is logged now; False comes with a warning.
    """
    key = cell.key()
    if store.logged(key, tracking.uri):
        return True
    try:
        from mlflow.entities import Metric

        client = _client(tracking.uri)
        record = record or store.read(key)
        result = record.result
        run_id = _start(client, tracking, cell, result.get("provenance", {}), result["started"])
        stamp = _milliseconds(result["finished"])
        finite = {name: float(value) for name, value in record.metrics.items() if math.isfinite(value)}
        metrics = [Metric(name, value, stamp, 0) for name, value in finite.items()]
        client.log_batch(run_id, metrics=metrics)
        folder = store.folder(key)
        client.log_artifact(run_id, str(folder / RESULT))
        for panel in sorted((folder / "panels").glob("*.png")):
            client.log_artifact(run_id, str(panel), "panels")
        if (folder / EPISODES).is_file():
            import pandas as pd

            episodes = pd.read_parquet(folder / EPISODES)
            if {"class_name", "inter_fg", "union_fg"} <= set(episodes.columns):
                text = io.StringIO()
                per_class(episodes).to_csv(text, index=False, float_format="%.4f")
                client.log_text(run_id, text.getvalue(), "per_class.csv")
        client.set_terminated(run_id, "FINISHED", end_time=stamp)
        store.mark_logged(key, tracking.uri, run_id)
        return True
    except Exception as error:
        _warn(f"cell {key} can't be logged", error)
        return False


def log_failure(tracking: Tracking, cell: AnyCell, error: str, traceback: str, started: str) -> None:
    """Log a failed attempt as a child run with status ``FAILED``."""
    try:
        client = _client(tracking.uri)
        run_id = _start(client, tracking, cell, {}, started)
        client.set_tag(run_id, "error", error[:PARAM_LENGTH])
        client.log_text(run_id, traceback or error, "error.txt")
        client.set_terminated(run_id, "FAILED")
    except Exception as problem:
        _warn(f"the failure of cell {cell.key()} can't be logged", problem)
