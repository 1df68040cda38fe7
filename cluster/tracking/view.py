"""What MLflow's pages show of an experiment: its description, the columns of its runs, and the link that opens them.

MLflow keeps views that are shared by link as tags of the experiment; a link with the view's key opens the runs with the
view's columns, order and filter (MLflow 2.2 and later; looked at with 3.17).
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.storage.layout import LAUNCHES
from cluster.tracking.client import resolve_uri, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import Experiment
    from mlflow.tracking import MlflowClient

KEY = "diffup"
SHARED_VIEW, NOTE = f"mlflow.sharedViewState.{KEY}", "mlflow.note.content"
PORT = 5000
TAGS = ("fold", "shots", "annotation", "backbone", "variant")  # as many as a page of 1400 pixels shows
COLUMNS = ("metrics.`miou`", *(f"tags.`{name}`" for name in TAGS))
VIEW = {
    "searchFilter": 'tags.kind = "evaluate"',
    "orderByKey": "metrics.`miou`",
    "orderByAsc": False,
    "selectedColumns": list(COLUMNS),
    "columnOrder": [],
}
DESCRIPTION = """**{name}**: a grid of DiffUp.

A parent run is a launch, its child runs are cells: a training (`kind` = train) or an evaluation of one backbone on one
fold and task (`kind` = evaluate). `miou` and `fb_iou` are in percent; `miou_low` and `miou_high` are the ends of the
95 % bootstrap interval (episodes clustered by query image). MLflow averages the folds of a group without intervals:
figures to quote come from `diffup paper --results DIR`.

[Evaluations, the best first](#/experiments/{id}/runs?viewStateShareKey={key})
"""


def describe_experiment(client: MlflowClient, experiment: Experiment) -> None:
    """Give an experiment its view, and a description unless somebody has written one."""
    tags, number = experiment.tags, str(experiment.experiment_id)
    if tags.get(SHARED_VIEW) != (view := json.dumps(VIEW)):
        client.set_experiment_tag(number, SHARED_VIEW, view)
    if not tags.get(NOTE):
        client.set_experiment_tag(number, NOTE, DESCRIPTION.format(name=experiment.name, id=number, key=KEY))


def link(server: str, experiment_id: str) -> str:
    """The address of an experiment's evaluations, the best first."""
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?viewStateShareKey={KEY}"


def how_to_open(results: Path, uri: str = "") -> list[str]:
    """Lines that say how to look at the runs of the last launch; none if it was not tracked.

    Args:
        results: the result store.
        uri: that was asked for, as of ``--tracking-uri``.
    """
    known = _last(results)
    if known is None:
        return []
    given = resolve_uri(uri, results)
    if given.startswith("http"):
        return [link(tracking_uri(given), known)]
    own = given == resolve_uri("", results)
    serve = shlex.join([*diffup_command(), "mlflow", "--results", str(results)])
    command = serve if own else f"mlflow ui --backend-store-uri {shlex.quote(given)}"
    return [command, link(f"http://127.0.0.1:{PORT}", known)]


def pages(results: Path, server: str) -> str:
    """The address to look at first: of the last launch's evaluations, or of the server."""
    known = _last(results)
    return server if known is None else link(server, known)


def diffup_command() -> list[str]:
    """``diffup`` of this environment as words of a command: its name if that finds it, else its path, relative if it is
    below; where only the source is there, its module."""
    place, here = Path(sys.executable).with_name("diffup"), Path.cwd()
    if (found := shutil.which("diffup")) and Path(found) == place:
        return ["diffup"]
    if place.is_file():
        return [str(place.relative_to(here) if place.is_relative_to(here) else place)]
    return [sys.executable, "-m", "diffup.cli"]


def _last(results: Path) -> str | None:
    """The experiment of the newest launch."""
    found = []
    for path in (results / LAUNCHES).glob("*.json"):
        try:
            note = json.loads(path.read_bytes())
            found.append((str(note["started"]), str(note["tracking"]["experiment_id"])))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return max(found)[1] if found else None
