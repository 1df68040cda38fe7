"""What the MLflow run of a cell holds, and how it comes about exactly once.

A run belongs to a *record*: one result of one cell, known by the cell's key and the time it was finished. Writing a
run again writes the same, so a run that a killed worker left half written is simply completed. Two processes that log
a record at once both see both runs afterwards, and keep the one with the smallest id.

Several result stores may log the same cells to one MLflow store. Each run has the tag ``store``, the id of its result
store, and a result store completes, replaces and deletes its own runs alone.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.storage.layout import CELL, EPISODES, RESULT
from cluster.storage.record import Record
from cluster.storage.results import Store
from cluster.tracking.client import REFUSALS
from diffup.evaluation.metrics import labels
from diffup.grid.axes import describe
from diffup.grid.cell import AnyCell, cell_to_dict

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient

PARENT, OWNER, RESULTS, LAUNCH = "mlflow.parentRunId", "store", "results", "launch.json"
TAGS = ("kind", "dataset", "protocol", "fold", "shots", "annotation", "backbone", "trained_on", "variant", "train_seed")
MADE_BY = ("git_commit", "code_hash", "host", "device")
UNDEFINED, NOTHING = "undefined", "nothing to find and nothing found"
TEXT_LENGTH = 500
PARAMS_A_BATCH = 100  # MLflow's limit
PAGE = 1000
ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where child runs go in a store, and the id of the result store that they are of."""

    experiment_id: str
    store: str
    parent_run: str = ""


def milliseconds(stamp: str) -> int:
    """A time of the store as MLflow counts it."""
    return int(datetime.fromisoformat(stamp).timestamp() * 1000)


def tags_of(cell: AnyCell, key: str, place: Place, provenance: dict[str, Any]) -> dict[str, str]:
    """Tags to group and filter runs by."""
    document = cell_to_dict(cell)
    tags = {name: str(document[name]) for name in TAGS if name in document}
    tags |= {name: str(provenance[name]) for name in MADE_BY if name in provenance}
    return {**tags, "key": key, OWNER: place.store, **({PARENT: place.parent_run} if place.parent_run else {})}


def params_of(cell: AnyCell) -> dict[str, str]:
    """The cell's identity, flat: ``sample.steps`` and the like; what is empty is left out."""
    return {name: value for name, value in _flat(cell_to_dict(cell)).items() if value}


def _flat(document: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            flat[f"{prefix}{name}"] = text[:TEXT_LENGTH]
    return flat


def per_class(episodes: pd.DataFrame) -> pd.DataFrame:
    """IoU in percent and number of episodes of each class, from an episode table.

    Several classes of one name are told apart by their number. A class without anything to find or found has no IoU: a
    column `undefined` says so where there is one.
    """
    by = "class_id" if "class_id" in episodes else "class_name"
    groups = episodes.groupby(by, sort=True)
    table = groups[["inter_fg", "union_fg"]].sum()
    names = groups["class_name"].first().astype(str)
    ids: list[Any] = names.index.tolist()
    table = table.reset_index(drop=True)
    table["class_name"] = list(labels(dict(zip(ids, names))).values())
    table["iou"] = (100 * table["inter_fg"] / table["union_fg"]).where(table["union_fg"] > 0)
    table["episodes"] = groups.size().tolist()
    columns = ["class_name", "iou", "episodes"]
    if table["iou"].isna().any():
        table["undefined"] = [NOTHING if union == 0 else "" for union in table["union_fg"]]
        columns.append("undefined")
    return table[columns].sort_values("class_name", kind="stable", ignore_index=True)


def belongs(run: Run, record: Record) -> bool:
    """Whether a run with the record's key is the record's; runs of earlier versions are known by when it began."""
    stamp = run.data.tags.get("finished")
    if stamp is not None:
        return bool(stamp == record.result["finished"])
    return bool(run.info.start_time == milliseconds(record.result["started"]) and run.info.status != "FAILED")


def find_runs(client: MlflowClient, experiment_ids: Sequence[str], key: str = "", where: str = "") -> list[Run]:
    """All runs of the experiments, those with this key, or those `where` (MLflow's filter); deleted ones are not among
    them."""
    wanted = f"tags.key = '{key}'" if key else where
    found: list[Run] = []
    page = None
    while True:
        answer = client.search_runs(list(experiment_ids), wanted, max_results=PAGE, page_token=page)
        found += answer
        page = answer.token
        if not page:
            return found


def of_store(client: MlflowClient, runs: Sequence[Run], store: Store, identity: str) -> list[Run]:
    """Those runs that are of a result store.

    Runs of earlier versions don't name one: they are this one's if the launch above them had its results there.

    Args:
        client: of the MLflow store; launches that are not among `runs` are asked of it.
        runs: children and launches.
        store, identity: the result store and its id.
    """
    from mlflow.exceptions import MlflowException

    launches = {str(run.info.run_id): run for run in runs if PARENT not in run.data.tags}

    def folder_of(run: Run) -> str:
        parent = str(run.data.tags.get(PARENT, run.info.run_id))
        if parent not in launches:
            try:
                launches[parent] = client.get_run(parent)
            except MlflowException as error:
                if error.error_code not in REFUSALS:
                    raise
                return ""
        return str(launches[parent].data.tags.get(RESULTS, ""))

    def is_its(run: Run) -> bool:
        owner = run.data.tags.get(OWNER)
        return bool(owner == identity) if owner else folder_of(run) == str(store.root)

    return list(filter(is_its, runs))


def ensure_run(
    client: MlflowClient, place: Place, store: Store, cell: AnyCell, record: Record, known: Sequence[Run] | None = None
) -> tuple[str, str]:
    """Make sure that a finished cell has one run with status ``FINISHED``.

    Args:
        client: of the store.
        place: where a new run goes.
        store, cell, record: what was finished.
        known: the result store's runs with the cell's key, where these have been asked for already.

    Returns:
        the run's id, and what was done: ``"there"`` (nothing), ``"completed"`` or ``"logged"``.

    Raises:
        Exception: the store can't be reached or refuses.
    """
    from mlflow.exceptions import MlflowException

    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _ensure(client, place, store, cell, record, known)
        except MlflowException as error:
            # Another process may have kept another run of this record, and deleted the one that is written here.
            if error.error_code not in REFUSALS or attempt == ATTEMPTS:
                raise
            known = None
    raise AssertionError


def _ensure(
    client: MlflowClient, place: Place, store: Store, cell: AnyCell, record: Record, known: Sequence[Run] | None
) -> tuple[str, str]:
    def of_record(runs: Iterable[Run]) -> list[Run]:
        """The record's runs. Those of a result that was made again, as its files were damaged, say, are deleted."""
        found: list[Run] = []
        for run in runs:
            if belongs(run, record):
                found.append(run)
            elif run.info.status == "FINISHED":
                client.delete_run(run.info.run_id)
        return found

    def asked() -> list[Run]:
        return of_store(client, find_runs(client, [place.experiment_id], record.key), store, place.store)

    done = "there"
    mine = of_record(asked() if known is None else known)
    if not mine:
        _complete(client, _create(client, place, cell, record), store, cell, record)
        mine, done = of_record(asked()), "logged"
    kept = min(mine, key=lambda run: str(run.info.run_id))  # by its id alone, so that all processes agree
    run_id = str(kept.info.run_id)
    if kept.info.status != "FINISHED":
        _complete(client, run_id, store, cell, record)
        done = "completed"
    if not kept.data.tags.get(OWNER):
        client.set_tag(run_id, OWNER, place.store)
    for run in mine:
        if run is not kept:
            client.delete_run(run.info.run_id)
    return run_id, done


def _create(client: MlflowClient, place: Place, cell: AnyCell, record: Record) -> str:
    tags = tags_of(cell, record.key, place, record.result.get("provenance", {}))
    run = client.create_run(
        place.experiment_id,
        start_time=milliseconds(record.result["started"]),
        tags={**tags, "finished": record.result["finished"]},
        run_name=describe(cell),
    )
    return str(run.info.run_id)


def _complete(client: MlflowClient, run_id: str, store: Store, cell: AnyCell, record: Record) -> None:
    """Write all that a run holds, its end last."""
    from mlflow.entities import Metric

    stamp = milliseconds(record.result["finished"])
    log_params(client, run_id, cell, [Metric(name, float(v), stamp, 0) for name, v in record.metrics.items()])
    for name, reason in record.undefined.items():
        client.set_tag(run_id, f"{UNDEFINED}.{name}", reason[:TEXT_LENGTH])
    with tempfile.TemporaryDirectory(prefix="diffup-run-") as made:
        folder = Path(made)
        _artifacts(store.folder(record.key), folder)
        client.log_artifacts(run_id, made)
    client.set_terminated(run_id, "FINISHED", end_time=stamp)


def log_params(client: MlflowClient, run_id: str, cell: AnyCell, metrics: Sequence[Metric] = ()) -> None:
    """A cell's identity as parameters, and metrics: one request, unless there are more parameters than one may hold."""
    from mlflow.entities import Param

    params = [Param(name, value) for name, value in params_of(cell).items()]
    client.log_batch(run_id, metrics=list(metrics), params=params[:PARAMS_A_BATCH])
    for start in range(PARAMS_A_BATCH, len(params), PARAMS_A_BATCH):
        client.log_batch(run_id, params=params[start : start + PARAMS_A_BATCH])


def log_launch(client: MlflowClient, run_id: str, note: Path) -> None:
    """Keep a launch's note with its run as ``launch.json``, so that MLflow knows what was asked for; once."""
    if not note.is_file() or any(item.path == LAUNCH for item in client.list_artifacts(run_id)):
        return
    with tempfile.TemporaryDirectory(prefix="diffup-launch-") as made:
        (Path(made) / LAUNCH).symlink_to(note.absolute())
        client.log_artifact(run_id, str(Path(made) / LAUNCH))


def _artifacts(cell: Path, folder: Path) -> None:
    """What a run shows beside its figures, gathered so that it goes in one call."""
    for name in (CELL, RESULT, EPISODES):  # with these a store can be read back from MLflow alone
        if (cell / name).is_file():
            (folder / name).symlink_to(cell / name)
    panels = sorted((cell / "panels").glob("*.jpg"))
    if panels:
        (folder / "panels").mkdir()
    for panel in panels:
        (folder / "panels" / panel.name).symlink_to(panel)
    if (cell / EPISODES).is_file():
        import pandas as pd
        import pyarrow.parquet

        wanted = ["class_name", "inter_fg", "union_fg"]
        there = set(pyarrow.parquet.read_schema(cell / EPISODES).names)
        if set(wanted) <= there:
            episodes = pd.read_parquet(cell / EPISODES, columns=[*wanted, *({"class_id"} & there)])
            per_class(episodes).to_csv(folder / "per_class.csv", index=False, float_format="%.4f")
