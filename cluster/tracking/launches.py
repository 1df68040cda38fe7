"""The MLflow runs of launches, parents of the runs of cells, and the experiments that they are in."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.storage.layout import LAUNCHES
from cluster.storage.results import Store
from cluster.tracking.client import alone, attempt, open_store, shown, warn
from cluster.tracking.runs import OWNER, PARENT, Tracking, every, find_runs, log, milliseconds
from cluster.tracking.view import describe_experiment

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

NOTE = "launch.json"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # else MLflow shows its pages for language models


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A launch as its note in the result store has it.

    Attributes:
        note: the file.
        label: name of its run.
        grid: name of the grid, which is the experiment.
        keys: of the cells that it asked for.
        began, ended: in milliseconds; `ended` is 0 while it runs, and after a kill until the next launch.
        status: as MLflow names it.
        run: id of its run in the MLflow store that it logged to.
    """

    note: Path
    label: str
    grid: str
    keys: frozenset[str]
    began: int
    ended: int
    status: str
    run: str


def launches_of(root: Path) -> list[Launch]:
    """All launches, by when they began; notes that can't be read are left out."""
    found = []
    for path in (root / LAUNCHES).glob("*.json"):
        try:
            note = json.loads(path.read_bytes())
            launch = Launch(
                note=path,
                label=path.stem,
                grid=str(note["name"]),
                keys=frozenset(map(str, note["keys"])),
                began=milliseconds(note["started"]),
                ended=milliseconds(note["ended"]) if note.get("ended") else 0,
                status=str(note.get("status") or "KILLED"),
                run=str((note.get("tracking") or {}).get("parent_run") or ""),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        found.append(launch)
    return sorted(found, key=lambda launch: (launch.began, launch.label))


def open_tracking(uri: str, experiment: str, launch: str, store: Store, tags: dict[str, str]) -> Tracking | None:
    """Create or upgrade the MLflow store, the experiment and the parent run: in the driver, before any trial starts.

    Returns:
        None, with a warning, if tracking is down.
    """
    try:
        client, owner = open_store(uri), store.identity()

        def renamed() -> str:
            found = newest_experiments(own_runs(client, store), launches_of(store.root), store.root.name)
            return found.get(experiment, "")

        experiment_id = open_experiment(client, uri, experiment, store.root, renamed)
        run = client.create_run(experiment_id, tags={"kind": "launch", OWNER: owner, **tags}, run_name=launch)
        return Tracking(uri=shown(uri), experiment_id=experiment_id, parent_run=run.info.run_id, store=owner)
    except Exception as error:
        warn(f"{shown(uri)} can't be used", error)
        return None


def close_tracking(tracking: Tracking, status: str, metrics: Mapping[str, float], note: Path | None = None) -> None:
    """End a parent run as ``FINISHED``, ``FAILED`` or ``KILLED``, with the counts of its launch and its note."""

    def close(client: MlflowClient) -> None:
        log(client, tracking.parent_run, metrics=metrics)
        if note is not None:
            log_note(client, tracking.parent_run, note)
        client.set_terminated(tracking.parent_run, status)

    attempt(tracking.uri, "the launch can't be closed", close, now=True)


def log_note(client: MlflowClient, run_id: str, note: Path) -> None:
    """Keep a launch's note with its run as ``launch.json``, so that MLflow knows what was asked for; once."""
    if not note.is_file() or any(item.path == NOTE for item in client.list_artifacts(run_id)):
        return
    with tempfile.TemporaryDirectory(prefix="diffup-launch-") as made:
        (Path(made) / NOTE).symlink_to(note.absolute())
        client.log_artifact(run_id, str(Path(made) / NOTE))


def open_experiment(
    client: MlflowClient, uri: str, name: str, results: Path, renamed: Callable[[], str] = lambda: ""
) -> str:
    """Id of the experiment of this name; created if it doesn't exist, restored if it was deleted.

    Args:
        client, uri: of the MLflow store.
        name: of the experiment.
        results: where artifacts go, unless a server keeps them.
        renamed: is asked if there is none of this name: the id of the one that was given another name, or ``""``.
    """
    from mlflow.exceptions import MlflowException

    with alone(uri):
        found = client.get_experiment_by_name(name)
        if found is None and (other := renamed()):
            return other
        if found is None:
            # A server keeps artifacts where it is told to; beside a database they need an absolute place.
            location = None if uri.startswith("http") else (results / "mlartifacts").as_uri()
            try:
                client.create_experiment(name, artifact_location=location, tags=KIND)
            except MlflowException:
                if client.get_experiment_by_name(name) is None:
                    raise  # else another machine was first
            found = client.get_experiment_by_name(name)
        assert found is not None, "it was created, or another machine created it"
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        describe_experiment(client, found)
        return str(found.experiment_id)


def own_runs(client: MlflowClient, store: Store) -> list[Run]:
    """All runs of a result store, whatever experiment they are in, by when they began."""
    active = [str(found.experiment_id) for found in every(client.search_experiments)]
    found = find_runs(client, active, f"tags.{OWNER} = '{store.identity()}'")
    return sorted(found, key=lambda run: int(run.info.start_time))


def newest_experiments(runs: Sequence[Run], launches: Sequence[Launch], rest: str) -> dict[str, str]:
    """By grid, id of the experiment of its newest run among `runs`: one that was renamed in MLflow's pages keeps its
    runs. Cells that no launch asked for count as of the grid `rest`."""
    grids = {launch.label: launch.grid for launch in launches}
    found = dict[str, str]()
    for run in runs:
        if run.data.tags.get("kind") == "launch":
            grid = grids.get(str(run.info.run_name), "")
        else:
            grid = "" if PARENT in run.data.tags else rest
        found[grid] = str(run.info.experiment_id)
    return found
