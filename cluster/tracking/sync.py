"""All runs of a result store, rebuilt: whatever was missed, half written or lost with the MLflow store.

What is there is asked of MLflow, never of the ``mlflow.json`` beside a result: that may speak of a store that was
deleted since, or lies elsewhere. So this can be run at any time, any number of times, by any number of processes.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.storage.atomic import now
from cluster.storage.layout import LAUNCHES, LOGGED
from cluster.storage.record import Record
from cluster.storage.results import Store
from cluster.tracking.client import REFUSALS, is_trouble, locked, open_experiment, open_store, warn
from cluster.tracking.export import (
    OWNER,
    PAGE,
    PARENT,
    Place,
    belongs,
    ensure_run,
    find_runs,
    log_launch,
    milliseconds,
    of_store,
)
from diffup.grid.cell import cell_from_dict

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

LOCK = ".tracking.lock"
REQUESTS_AT_ONCE = 4  # to a server; sqlite writes one at a time
NOT_IDENTITY = ("key", "cell_version")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A launch as the result store remembers it.

    Attributes:
        path: its note.
        label: name of its run.
        grid: name of the grid, which is the experiment.
        keys: of the cells that it asked for.
        started, ended: ISO 8601; `ended` is ``""`` while it runs, and after a kill until the next launch.
        status: as MLflow names it.
        run: id of its run in the store that it logged to.
    """

    path: Path
    label: str
    grid: str
    keys: frozenset[str]
    started: str
    ended: str
    status: str
    run: str


@dataclass(frozen=True, kw_only=True)
class Synced:
    """What a sync found and did.

    Attributes:
        finished: cells of the store that have a result, each with one run now, but for `failed`.
        logged, completed: runs that were missing, and that were half written.
        removed: runs of a record that had another.
        launches: parent runs that were restored.
        closed: runs of attempts and launches that nobody had ended.
        failed: cells that could not be logged.
    """

    finished: int = 0
    logged: int = 0
    completed: int = 0
    removed: int = 0
    launches: int = 0
    closed: int = 0
    failed: int = 0

    def __str__(self) -> str:
        words = [f"{self.finished - self.failed} of {self.finished} finished cells have their run"]
        for name, what in (
            ("logged", "logged now"), ("completed", "completed"), ("removed", "duplicates removed"),
            ("launches", "launches restored"), ("closed", "left open closed"), ("failed", "failed"),
        ):  # fmt: skip
            if count := getattr(self, name):
                words.append(f"{count} {what}")
        return ", ".join(words)


@dataclass
class _Found:
    """Runs that MLflow has, by what they belong to.

    Attributes:
        store: id of the result store.
        by_key: its runs of each cell.
        attempts: runs of attempts that nobody ended, also of other result stores.
        parents: launches; those of other result stores are not among them.
    """

    store: str
    by_key: dict[str, list[Run]] = field(default_factory=lambda: defaultdict(list))
    attempts: list[Run] = field(default_factory=list)
    parents: list[Run] = field(default_factory=list)

    @classmethod
    def ask(cls, client: MlflowClient, experiment_ids: Sequence[str], store: Store) -> _Found:
        found, runs = cls(store.identity()), find_runs(client, experiment_ids)
        for run in of_store(client, runs, store, found.store):
            if key := run.data.tags.get("key"):
                found.by_key[key].append(run)
        for run in runs:
            if run.data.tags.get("kind") == "launch":
                if run.data.tags.get(OWNER, found.store) == found.store:
                    found.parents.append(run)
            elif "key" in run.data.tags and "finished" not in run.data.tags and run.info.status == "RUNNING":
                found.attempts.append(run)
        return found


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
    with locked(store.root / LOCK):  # another sync waits, then finds everything there
        try:
            client = open_store(uri)
            return _sync(client, store, uri, experiment)
        except Exception as error:
            if not is_trouble(error):
                raise
            warn(f"{uri} can't be used", error)
            count = sum(1 for _ in _records(store))
            return Synced(finished=count, failed=count)


def _sync(client: MlflowClient, store: Store, uri: str, experiment: str) -> Synced:
    launches = [replace(launch, grid=experiment or launch.grid) for launch in launches_of(store.root)]
    rest = experiment or store.root.name
    known = {key for launch in launches for key in launch.keys}
    names = {launch.grid for launch in launches}
    if any(key not in known for key in store.cell_keys()):
        names.add(rest)
    homes = {} if experiment else homes_of(client, store, launches)
    ids = {
        name: open_experiment(client, uri, name, store.root, partial(_newest, homes, name)) for name in sorted(names)
    }
    everywhere = dict.fromkeys([*ids.values(), *(home for found in homes.values() for home in found)])
    found = _Found.ask(client, list(everywhere), store)
    counts: Counter[str] = Counter()
    parents = {launch.label: _parent(client, launch, ids[launch.grid], found, counts) for launch in launches}
    gone = threading.Event()

    def one(record: Record) -> Counter[str]:
        if gone.is_set():
            return Counter(failed=1)
        launch = _maker(launches, record)
        if launch is None:
            place = Place(experiment_id=ids[rest], store=found.store)
        else:
            place = Place(experiment_id=ids[launch.grid], store=found.store, parent_run=parents[launch.label])
        try:
            return _one(client, store, uri, place, record, found)
        except Exception as error:
            if getattr(error, "error_code", "") not in REFUSALS and not isinstance(error, ValueError):
                gone.set()
            warn(f"cell {record.key} can't be logged", error)
            return Counter(failed=1)

    with ThreadPoolExecutor(REQUESTS_AT_ONCE if uri.startswith("http") else 1) as pool:
        for done in pool.map(one, _records(store)):
            counts.update(done, finished=1)
    if gone.is_set():
        return Synced(**counts)
    _close_attempts(client, store, found, set(parents.values()), counts)
    return Synced(**counts)


def homes_of(client: MlflowClient, store: Store, launches: Sequence[Launch]) -> dict[str, list[str]]:
    """Ids of the experiments that have runs of a result store's launches, by grid, in order of time: an experiment that
    was renamed in MLflow's pages keeps its runs. Cells that no launch asked for count as of the results directory."""
    grids = {launch.label: launch.grid for launch in launches}
    experiments, page = list[str](), None
    while True:
        answer = client.search_experiments(max_results=PAGE, page_token=page)
        experiments += [str(each.experiment_id) for each in answer]
        page = answer.token
        if not page:
            break
    homes: dict[str, dict[str, None]] = defaultdict(dict)
    mine = f"tags.{OWNER} = '{store.identity()}'"
    for run in sorted(find_runs(client, experiments, where=mine), key=lambda run: int(run.info.start_time)):
        if run.data.tags.get("kind") == "launch":
            grid = grids.get(str(run.info.run_name), "")
        else:
            grid = "" if PARENT in run.data.tags else store.root.name
        if grid:
            homes[grid][str(run.info.experiment_id)] = None
    return {grid: list(found) for grid, found in homes.items()}


def experiment_of(client: MlflowClient, store: Store, grid: str) -> str:
    """Id of the newest experiment that has launches of a grid into a result store, ``""`` if there is none."""
    return _newest(homes_of(client, store, launches_of(store.root)), grid)


def _newest(homes: dict[str, list[str]], grid: str) -> str:
    return homes.get(grid, [""])[-1]


def launches_of(root: Path) -> list[Launch]:
    """All launches, by when they began; files that can't be read are passed over."""
    found = []
    for path in sorted((root / LAUNCHES).glob("*.json")):
        try:
            note = json.loads(path.read_bytes())
            found.append(
                Launch(
                    path=path,
                    label=path.stem,
                    grid=str(note["name"]),
                    keys=frozenset(map(str, note["keys"])),
                    started=str(note["started"]),
                    ended=str(note.get("ended") or ""),
                    status=str(note.get("status") or "KILLED"),
                    run=str((note.get("tracking") or {}).get("parent_run") or ""),
                )
            )
            milliseconds(found[-1].started)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sorted(found, key=lambda launch: (milliseconds(launch.started), launch.label))


def _records(store: Store) -> Iterator[Record]:
    for key in store.cell_keys():
        record = store.read(key)
        if record.status == "finished":
            yield record


def _maker(launches: Sequence[Launch], record: Record) -> Launch | None:
    """The launch that made a record: the last that asked for the cell and began before it, else the first that did."""
    asked = [launch for launch in launches if record.key in launch.keys]
    began = milliseconds(record.result["started"])
    return next((launch for launch in reversed(asked) if milliseconds(launch.started) <= began), (*asked, None)[0])


def _parent(client: MlflowClient, launch: Launch, experiment_id: str, found: _Found, counts: Counter[str]) -> str:
    """Id of a launch's run, which keeps its note: its own, one that was restored before, or one that is now."""
    began = milliseconds(launch.started)

    def is_its(run: Run) -> bool:
        restored = (run.info.run_name, run.info.start_time) == (launch.label, began)
        return bool(run.info.run_id == launch.run or restored)

    mine = sorted(filter(is_its, found.parents), key=lambda run: ("restored" in run.data.tags, str(run.info.run_id)))
    if mine:
        run = mine[0]
    else:
        tags = {"kind": "launch", "restored": "true", OWNER: found.store}
        run = client.create_run(experiment_id, start_time=began, tags=tags, run_name=launch.label)
        counts["launches"] += 1
    for other in mine[1:]:  # restored by two processes at once; its children find their way in `_one`
        if "restored" in other.data.tags and other.data.tags.get(OWNER) == found.store:
            client.delete_run(other.info.run_id)
            found.parents.remove(other)
            counts["removed"] += 1
    log_launch(client, str(run.info.run_id), launch.path)
    if launch.ended and run.info.status == "RUNNING":
        client.set_terminated(run.info.run_id, launch.status, end_time=milliseconds(launch.ended))
        counts["closed"] += bool(mine)
    return str(run.info.run_id)


def _one(client: MlflowClient, store: Store, uri: str, place: Place, record: Record, found: _Found) -> Counter[str]:
    document: dict[str, Any] = store.read_cell(record.key)
    cell = cell_from_dict({name: value for name, value in document.items() if name not in NOT_IDENTITY})
    there = [run for run in found.by_key.get(record.key, ()) if belongs(run, record)]
    run_id, done = ensure_run(client, place, store, cell, record, there)
    kept = next((run for run in there if run.info.run_id == run_id), None)
    lost = kept is not None and kept.data.tags.get(PARENT) not in {str(run.info.run_id) for run in found.parents}
    if lost and place.parent_run:
        client.set_tag(run_id, PARENT, place.parent_run)
    if _marked(store, record.key) != (uri, run_id):
        store.mark_logged(record.key, uri, run_id)
    return Counter({"removed": max(0, len(there) - 1), **({done: 1} if done != "there" else {})})


def _marked(store: Store, key: str) -> tuple[str, str]:
    """What ``mlflow.json`` says."""
    try:
        note = json.loads((store.folder(key) / LOGGED).read_bytes())
        return str(note["tracking_uri"]), str(note["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", ""


def _close_attempts(
    client: MlflowClient, store: Store, found: _Found, parents: set[str], counts: Counter[str]
) -> None:  # fmt: skip
    """End runs of failed attempts whose worker died while it logged them; those of other result stores stay."""
    for run in found.attempts:
        tags = run.data.tags
        if tags.get(PARENT) in parents:
            if (record := store.read(tags["key"])).status == "finished" and belongs(run, record):
                continue  # of an earlier version, and completed by now
            client.set_terminated(run.info.run_id, "FAILED", end_time=milliseconds(now()))
            counts["closed"] += 1
