"""Results read back from MLflow alone: the files of its runs, laid out as a result store.

A cell's run holds ``cell.json``, ``result.json`` and ``episodes.parquet``, a launch's run its ``launch.json``; so what
is read is what the result store held, checked in the same way. Runs of failed cells have no files; such cells are shown
as unfinished where a launch asked for them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from analysis.results import Results, load_results
from diffup.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FILES = ("cell.json", "result.json", "episodes.parquet")
LAUNCH, STORE, PARENT = "launch.json", "store", "mlflow.parentRunId"
PAGE, AT_ONCE = 1000, 8


def load_mlflow(uri: str, experiment: str, folder: Path, *, store: str = "", classes: str = "novel") -> Results:
    """Results of the finished cells of an experiment.

    Args:
        uri: of the MLflow store, e.g. ``sqlite:///…`` or ``http://…``.
        experiment: name; that of the grid, where it wasn't named otherwise.
        folder: where the files go; those that are there already are not fetched again.
        store: id of the result store (the runs' tag ``store``), where the experiment has runs of several.
        classes: as in `analysis.results.load_results`.

    Raises:
        UserError: no such MLflow store or experiment, no finished cell in it, several result stores, or runs that were
            logged by an earlier version and lack the files.
    """
    client, runs = _runs(uri, experiment)
    stores = Counter(str(run.data.tags[STORE]) for run in runs if STORE in run.data.tags)
    if store:
        runs = [run for run in runs if run.data.tags.get(STORE) == store]
    elif len(stores) > 1:
        names = ", ".join(f"{name} ({count} runs)" for name, count in stores.most_common())
        raise UserError(f"experiment {experiment!r} has runs of several result stores: {names}; name one with --store")
    cells = [run for run in runs if "key" in run.data.tags and run.info.status == "FINISHED"]
    if not cells:
        raise UserError(f"experiment {experiment!r} of {uri} has no finished cell; python -m cluster.tracking sync")
    launches = [run for run in runs if PARENT not in run.data.tags]
    with ThreadPoolExecutor(AT_ONCE if uri.startswith("http") else 1) as pool:
        lacking = sum(pool.map(lambda run: _fetch(client, run, folder), cells))
        list(pool.map(lambda run: _launch(client, run, folder / "launches"), launches))
    if lacking:
        raise UserError(
            f"{lacking} of {len(cells)} runs of experiment {experiment!r} lack one of {', '.join(FILES)}: they were "
            "logged by an earlier version. Delete them in MLflow and run python -m cluster.tracking sync on the results"
        )
    return load_results(folder, classes=classes)


def _runs(uri: str, experiment: str) -> tuple[MlflowClient, list[Run]]:
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    if uri.startswith("sqlite:///") and not Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0])).is_file():
        raise UserError(f"{uri}: no such file")  # MLflow would make an empty one
    client = MlflowClient(tracking_uri=uri)
    try:
        known = client.get_experiment_by_name(experiment)
        if known is None:
            names = ", ".join(sorted(item.name for item in client.search_experiments())) or "none"
            raise UserError(f"{uri} has no experiment {experiment!r}; there are: {names}")
        runs: list[Run] = []
        page = None
        while page is not None or not runs:
            answer = client.search_runs([known.experiment_id], max_results=PAGE, page_token=page)
            runs += answer
            page = answer.token
            if not page:
                break
    except MlflowException as error:
        raise UserError(f"{uri} can't be read: {str(error).splitlines()[0]}") from error
    return client, runs


def _fetch(client: MlflowClient, run: Run, root: Path) -> bool:
    """Bring a run's files; returns whether one is lacking. The mark comes last: what is cut short comes again."""
    names = FILES[:2] if run.data.tags.get("kind") == "train" else FILES
    folder = root / str(run.data.tags["key"])
    there = {item.path for item in client.list_artifacts(run.info.run_id)}
    if not set(names) <= there:
        return True
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / ".run"
    if mark.is_file() and mark.read_text() == run.info.run_id:
        return False
    for name in names:
        client.download_artifacts(run.info.run_id, name, str(folder))
    if "panels" in there:
        shutil.rmtree(folder / "panels", ignore_errors=True)
        client.download_artifacts(run.info.run_id, "panels", str(folder))
    mark.write_text(run.info.run_id)
    return False


def _launch(client: MlflowClient, run: Run, folder: Path) -> None:
    name = re.sub(r"[^\w.-]", "_", str(run.info.run_name))  # it may have been renamed in the UI
    name = f"{name}.json" if name == run.info.run_name else f"{name}-{run.info.run_id[:8]}.json"
    if any(item.path == LAUNCH for item in client.list_artifacts(run.info.run_id)):
        folder.mkdir(parents=True, exist_ok=True)
        path = Path(client.download_artifacts(run.info.run_id, LAUNCH, str(folder)))
        path.rename(folder / name)
