"""The export of cells to MLflow, which is a view of the result store: a cell has one run, below that of its launch.

`export_cell` makes a cell's run say what the store says, whether there is no run, a half-written one or several. It is
called at the end of a cell and by `cluster.tracking.sync`. A run belongs to one result of one cell, known by the cell's
key and the time at which it was finished. Two processes that log a result at once both see both runs afterwards, and
keep the one with the smallest id.

Several result stores may log the same cells to one MLflow store. Each run has the tag ``store``, the id of its result
store, and a result store completes, replaces and deletes its own runs alone.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.storage.layout import EPISODES
from cluster.storage.record import Record
from cluster.storage.results import Store
from cluster.tracking.client import attempt, is_refusal
from cluster.tracking.runs import (
    OWNER,
    PARENT,
    RESULTS,
    TEXT_LENGTH,
    Tracking,
    find_runs,
    gather_artifacts,
    intervals,
    log,
    log_curve,
    log_dataset,
    milliseconds,
    params_of,
    run_name,
    tags_of,
)
from diffup.grid.cell import AnyCell, TrainingCell, cell_to_dict

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

CURVE = "training_loss"  # by step; "loss" is the last of them
CONFIGURATION = "configuration"  # kind of a run in a search: it has a training cell's key, but is not its result
ATTEMPTS = 3


def log_cell(tracking: Tracking, store: Store, cell: AnyCell, record: Record | None = None) -> bool:
    """Export a finished cell; a failure is a warning.

    Returns:
        whether its run is there now; False comes with a warning, or within a minute of one.
    """
    key = cell.key()
    failure = f"cell {key} can't be logged"
    done = attempt(
        tracking.uri, failure, lambda client: export_cell(client, tracking, store, cell, record or store.read(key))
    )
    return done is not None


def log_failure(tracking: Tracking, cell: AnyCell, error: str, traceback: str, started: str) -> None:
    """Log a failed attempt as a child run with status ``FAILED``; a failure to do so is a warning."""

    def export(client: MlflowClient) -> None:
        run_id = create_run(client, tracking, cell, started, error=error[:TEXT_LENGTH])
        log(client, run_id, params_of(cell_to_dict(cell)))
        client.log_text(run_id, traceback or error, "error.txt")
        client.set_terminated(run_id, "FAILED")

    attempt(tracking.uri, f"the failure of cell {cell.key()} can't be logged", export)


def log_configuration(
    tracking: Tracking, cell: TrainingCell, label: str, entry: Mapping[str, Any], status: str = ""
) -> None:
    """Make the run of a search's configuration say what the search's record does; a failure is a warning.

    Args:
        tracking: of the search, whose run is the parent.
        cell, label: of the configuration.
        entry: of the configuration, as in `cluster.hpo.trials.Record`.
        status: to end the run with; ``""`` while the configuration is trained.
    """

    def export(client: MlflowClient) -> None:
        mine = f"tags.key = '{cell.key()}' and tags.`{PARENT}` = '{tracking.parent_run}'"
        found = find_runs(client, [tracking.experiment_id], mine)
        if not found:
            tags = {**tags_of(cell, tracking, {}), "kind": CONFIGURATION}
            found = [client.create_run(tracking.experiment_id, tags=tags, run_name=label)]
        run_id, stamp = str(found[0].info.run_id), int(found[0].info.start_time)
        log(client, run_id, params_of(entry["values"]))
        for score in entry["scores"]:
            seconds = {name: score[name] for name in ("train_seconds", "validate_seconds")}
            stamp += int(1000 * sum(seconds.values()))  # the same each time, so that nothing is logged twice
            metrics = {"miou": score["miou"], **{f"miou/{task}": value for task, value in score["tasks"].items()}}
            log(client, run_id, metrics=metrics | seconds, stamp=stamp, step=score["steps"])
        for name in ("ended", "error"):
            if entry[name]:
                client.set_tag(run_id, name, entry[name][:TEXT_LENGTH])
        if status:
            client.set_terminated(run_id, status)

    attempt(tracking.uri, f"{label} can't be logged, its scores are in the search's record", export)


def export_cell(
    client: MlflowClient,
    tracking: Tracking,
    store: Store,
    cell: AnyCell,
    record: Record,
    known: Sequence[Run] | None = None,
) -> Counter[str]:
    """Make sure that a finished cell has one run, complete and with status ``FINISHED``, and note it beside the result.

    Args:
        client: of the MLflow store.
        tracking: where a new run goes.
        store, cell, record: what was finished.
        known: the record's runs, where these have been asked for already.

    Returns:
        how many runs were ``"logged"``, ``"completed"`` and, where the record had several, ``"removed"``.

    Raises:
        Exception: the MLflow store can't be reached or refuses.
    """
    from mlflow.exceptions import MlflowException

    for tries in range(1, ATTEMPTS + 1):
        try:
            return _export(client, tracking, store, cell, record, known)
        except MlflowException as error:
            # Another process may have kept another run of this record, and deleted the one that is written here.
            if not is_refusal(error) or tries == ATTEMPTS:
                raise
            known = None
    raise AssertionError


def _export(
    client: MlflowClient, tracking: Tracking, store: Store, cell: AnyCell, record: Record, known: Sequence[Run] | None
) -> Counter[str]:
    def ask() -> list[Run]:
        """The record's runs. Those of an earlier result of the cell are deleted."""
        found = of_store(client, find_runs(client, [tracking.experiment_id], f"tags.key = '{record.key}'"), store)
        for run in found:
            if run.info.status == "FINISHED" and not belongs(run, record):
                client.delete_run(run.info.run_id)
        return [run for run in found if belongs(run, record)]

    done = Counter[str]()
    mine = ask() if known is None else list(known)
    if not mine:
        made_by, result = record.result.get("provenance", {}), record.result
        run_id = create_run(client, tracking, cell, result["started"], made_by, finished=result["finished"])
        write_run(client, run_id, store, cell, record)
        mine, done = ask(), Counter(logged=1)
    kept, *others = sorted(mine, key=lambda run: str(run.info.run_id))  # by id alone, so that all processes agree
    run_id = str(kept.info.run_id)
    if kept.info.status != "FINISHED":
        write_run(client, run_id, store, cell, record)
        done = Counter(completed=1)
    if not kept.data.tags.get(OWNER):
        client.set_tag(run_id, OWNER, tracking.store)
    for run in others:
        client.delete_run(run.info.run_id)
        done["removed"] += 1
    if store.logged(record.key, tracking.uri) != run_id:
        store.mark_logged(record.key, tracking.uri, run_id)
    return done


def create_run(
    client: MlflowClient,
    tracking: Tracking,
    cell: AnyCell,
    started: str,
    provenance: Mapping[str, Any] | None = None,
    **tags: str,
) -> str:
    """A new run of a cell, without content; returns its id."""
    tags |= tags_of(cell, tracking, provenance or {})
    stamp, name = milliseconds(started), run_name(cell)
    return str(client.create_run(tracking.experiment_id, start_time=stamp, tags=tags, run_name=name).info.run_id)


def write_run(client: MlflowClient, run_id: str, store: Store, cell: AnyCell, record: Record) -> None:
    """Write everything that a finished cell's run holds, its end last."""
    stamp = milliseconds(record.result["finished"])
    ends = intervals(cell, store.folder(record.key) / EPISODES)
    log(client, run_id, params_of(cell_to_dict(cell)), record.metrics | ends, stamp=stamp)
    log_curve(client, run_id, CURVE, record.result.get("provenance", {}).get("curve", ()), stamp)
    log_dataset(client, run_id, cell)
    for name, reason in record.undefined.items():
        client.set_tag(run_id, f"undefined.{name}", reason[:TEXT_LENGTH])
    with tempfile.TemporaryDirectory(prefix="diffup-run-") as made:
        gather_artifacts(store.folder(record.key), Path(made))
        client.log_artifacts(run_id, made)
    client.set_terminated(run_id, "FINISHED", end_time=stamp)


def belongs(run: Run, record: Record) -> bool:
    """Whether a run with the record's key is the record's; runs of earlier versions are known by when it began."""
    stamp = run.data.tags.get("finished")
    if stamp is not None:
        return bool(stamp == record.result["finished"])
    return bool(run.info.start_time == milliseconds(record.result["started"]) and run.info.status != "FAILED")


def of_store(client: MlflowClient, runs: Sequence[Run], store: Store) -> list[Run]:
    """The launches and cells among `runs` that are of a result store.

    Runs of earlier versions don't name one: they are this one's if their launch had its results there.
    """
    from mlflow.exceptions import MlflowException

    owner = store.identity()
    folders = {str(run.info.run_id): run.data.tags.get(RESULTS, "") for run in runs if PARENT not in run.data.tags}

    def is_its(run: Run) -> bool:
        if run.data.tags.get(OWNER):
            return bool(run.data.tags[OWNER] == owner)
        launch = str(run.data.tags.get(PARENT, run.info.run_id))
        if launch not in folders:
            try:
                folders[launch] = client.get_run(launch).data.tags.get(RESULTS, "")
            except MlflowException as error:
                if not is_refusal(error):
                    raise
                return False
        return bool(folders[launch] == str(store.root))

    return [run for run in runs if run.data.tags.get("kind") != CONFIGURATION and is_its(run)]
