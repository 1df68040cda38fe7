"""The export of a whole result store to MLflow: whatever was missed, half written or lost with the MLflow store.

What exists is asked of MLflow, never of the ``mlflow.json`` beside a result: that may name a store that was deleted
since or is elsewhere. So a sync can be run at any time, any number of times, by any number of processes.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from cluster.storage.atomic import now
from cluster.storage.record import Record
from cluster.storage.results import Store, cell_of
from cluster.tracking.client import is_refusal, is_trouble, locked, open_store, warn
from cluster.tracking.export import ATTEMPTS, belongs, export_cell, of_store
from cluster.tracking.launches import Launch, launches_of, log_note, newest_experiments, open_experiment, own_runs
from cluster.tracking.runs import OWNER, PARENT, Tracking, find_runs, milliseconds

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

LOCK = ".tracking.lock"
REQUESTS_AT_ONCE = 4  # to a server; sqlite writes one at a time


class Synced(Counter[str]):
    """What a sync found and did, as counts.

    Of cells: ``finished``, each with one run now, but for ``failed``, which could not be logged. Of their runs:
    ``logged`` (they were missing), ``completed`` (half written) and ``removed`` (of a record that had another). Of
    launches: ``launches`` (parent runs that were restored). Of attempts and launches: ``closed`` (still running).
    """

    def __str__(self) -> str:
        words = {
            "logged": "logged now",
            "completed": "completed",
            "removed": "duplicates removed",
            "launches": "launches restored",
            "closed": "left open closed",
            "failed": "failed",
        }
        there = f"{self['finished'] - self['failed']} of {self['finished']} finished cells have their run"
        return ", ".join([there, *(f"{self[name]} {word}" for name, word in words.items() if self[name])])


def sync(store: Store, uri: str, *, experiment: str = "") -> Synced:
    """Make sure that every finished cell of a result store has exactly one run with status ``FINISHED``.

    Args:
        store: the result store.
        uri: of the MLflow store, as `cluster.tracking.client.resolve_uri` gives it.
        experiment: where all runs go; ``""``: each to the grid whose launch made it, or to one named as the results
            directory where no launch is known.

    Returns:
        what was found and done. Failed attempts are not rebuilt.
    """
    with locked(store.root / LOCK):  # another sync waits, then finds nothing to do
        for left in reversed(range(ATTEMPTS)):
            try:
                return _sync(open_store(uri), store, uri, experiment)
            except Exception as error:
                if left and is_refusal(error):
                    continue  # another process has removed a launch's run that this one wrote
                if not is_trouble(error):
                    raise
                warn(f"{uri} can't be used", error)
                break
        count = sum(1 for _ in _records(store))
        return Synced(finished=count, failed=count)


def _sync(client: MlflowClient, store: Store, uri: str, experiment: str) -> Synced:
    launches = [replace(launch, grid=experiment or launch.grid) for launch in launches_of(store.root)]
    rest, asked = experiment or store.root.name, {key for launch in launches for key in launch.keys}
    grids = {launch.grid for launch in launches} | ({rest} if set(store.cell_keys()) - asked else set())
    before = [] if experiment else own_runs(client, store)
    homes = newest_experiments(before, launches, rest)

    def home(grid: str) -> str:
        return open_experiment(client, uri, grid, store.root, lambda: homes.get(grid, ""))

    ids = {grid: home(grid) for grid in sorted(grids)}
    everywhere = {*ids.values(), *(str(run.info.experiment_id) for run in before)}
    runs = of_store(client, find_runs(client, sorted(everywhere)), store)
    runs_of = defaultdict[str, list["Run"]](list)
    for run in runs:
        runs_of[run.data.tags.get("key", "")].append(run)
    counts = Synced()
    parents = {
        launch.label: _export_launch(client, ids[launch.grid], store, launch, runs_of[""], counts)
        for launch in launches
    }
    known_parents = {*parents.values(), *(str(run.info.run_id) for run in runs_of[""])}
    owner, down = store.identity(), threading.Event()

    def export(record: Record) -> Counter[str]:
        if down.is_set():
            return Counter(failed=1)
        launch = _maker(launches, record)
        grid, parent = (launch.grid, parents[launch.label]) if launch else (rest, "")
        tracking = Tracking(uri=uri, experiment_id=ids[grid], parent_run=parent, store=owner)
        there = [run for run in runs_of[record.key] if belongs(run, record)]
        try:
            cell = cell_of(store.read_cell(record.key))
            done = export_cell(client, tracking, store, cell, record, there)
            for run in there:
                orphaned = parent and run.data.tags.get(PARENT) not in known_parents
                if orphaned and run.info.run_id == store.logged(record.key, uri):
                    client.set_tag(run.info.run_id, PARENT, parent)
            return done
        except Exception as error:
            if not is_refusal(error) and not isinstance(error, ValueError):
                down.set()
            warn(f"cell {record.key} can't be logged", error)
            return Counter(failed=1)

    with ThreadPoolExecutor(REQUESTS_AT_ONCE if uri.startswith("http") else 1) as pool:
        for done in pool.map(export, _records(store)):
            counts.update(done, finished=1)
    for run in [] if down.is_set() else runs:
        if _is_abandoned(run, store) and run.data.tags.get(PARENT) in parents.values():
            client.set_terminated(run.info.run_id, "FAILED", end_time=milliseconds(now()))
            counts["closed"] += 1
    return counts


def _records(store: Store) -> Iterator[Record]:
    return (record for record in map(store.read, store.cell_keys()) if record.status == "finished")


def _maker(launches: Sequence[Launch], record: Record) -> Launch | None:
    """The launch that made a record: the last that asked for the cell and began before it, else the first that did."""
    asked = [launch for launch in launches if record.key in launch.keys]
    began = milliseconds(record.result["started"])
    return next((launch for launch in reversed(asked) if launch.began <= began), (*asked, None)[0])


def _export_launch(
    client: MlflowClient, experiment_id: str, store: Store, launch: Launch, known: list[Run], counts: Synced
) -> str:
    """Make sure that a launch has one run, which keeps its note and has ended if the launch has; returns its id.

    Args:
        known: the result store's runs of launches; one that is removed is taken from the list.
    """

    def is_its(run: Run) -> bool:
        restored = (run.info.run_name, run.info.start_time) == (launch.label, launch.began)
        return bool(run.info.run_id == launch.run or restored)

    mine = sorted(filter(is_its, known), key=lambda run: ("restored" in run.data.tags, str(run.info.run_id)))
    if not mine:
        tags = {"kind": "launch", "restored": "true", OWNER: store.identity()}
        mine = [client.create_run(experiment_id, start_time=launch.began, tags=tags, run_name=launch.label)]
        counts["launches"] += 1
    elif launch.ended and mine[0].info.status == "RUNNING":
        counts["closed"] += 1
    run_id = str(mine[0].info.run_id)
    for other in mine[1:]:  # restored by two processes at once
        if "restored" in other.data.tags and other.data.tags.get(OWNER) == store.identity():
            client.delete_run(other.info.run_id)
            known.remove(other)
            counts["removed"] += 1
    log_note(client, run_id, launch.note)
    if launch.ended and mine[0].info.status == "RUNNING":
        client.set_terminated(run_id, launch.status, end_time=launch.ended)
    return run_id


def _is_abandoned(run: Run, store: Store) -> bool:
    """Whether a run is of a failed attempt whose worker died while it logged it."""
    tags = run.data.tags
    if "key" not in tags or "finished" in tags or run.info.status != "RUNNING":
        return False
    record = store.read(tags["key"])
    return not (record.status == "finished" and belongs(run, record))  # of an earlier version, and completed by now
