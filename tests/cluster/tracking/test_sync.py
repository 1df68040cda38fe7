"""MLflow rebuilt from the store: exactly one run a finished cell, whatever was deleted, moved, killed or doubled."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from cluster.closing import log_missing
from cluster.planning.plan import make_plan
from cluster.storage.layout import LOGGED
from cluster.storage.results import Store
from cluster.tracking import client as mlflow_client
from cluster.tracking.__main__ import main
from cluster.tracking.client import open_store, resolve_uri
from cluster.tracking.export import create_run, log_cell, log_failure
from cluster.tracking.launches import log_note, open_experiment, open_tracking
from cluster.tracking.runs import OWNER, PARENT, Tracking, find_runs, tags_of
from cluster.tracking.sync import sync
from cluster.tracking.system_metrics import system_metrics
from diffup.grid.cell import Cell
from tests.helpers.tracking_workers import (
    at_once,
    cells,
    finish,
    free_port,
    kill,
    make_store,
    open_fresh,
    server,
    sync_into,
)

COUNT = 4


def half_written(client: MlflowClient, tracking: Tracking, store: Store, cell: Cell) -> None:
    """What a worker leaves that is killed while it logs a cell."""
    result = store.read(cell.key()).result
    create_run(client, tracking, cell, result["started"], finished=result["finished"])


def runs_of(uri: str, experiment: str = "fake") -> list[Run]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return find_runs(client, [found.experiment_id])


def check(uri: str, store: Store, experiment: str = "fake") -> dict[str, Run]:
    """One run a finished cell, each FINISHED and whole; returns them by key."""
    children = [run for run in runs_of(uri, experiment) if "key" in run.data.tags]
    keys = [key for key in store.cell_keys() if store.read(key).status == "finished"]
    assert Counter(run.data.tags["key"] for run in children if run.info.status == "FINISHED") == Counter(keys)
    assert not [run for run in children if run.info.status == "RUNNING"]
    finished = {run.data.tags["key"]: run for run in children if run.info.status == "FINISHED"}
    client = MlflowClient(uri)
    for key, run in finished.items():
        assert run.data.metrics == {"miou": 50.0}
        assert run.data.params["sample.method"] == "prior_mean"
        assert {item.path for item in client.list_artifacts(run.info.run_id)} == {
            "cell.json", "episodes.parquet", "result.json", "per_class.csv", "panels",
        }  # fmt: skip
        assert json.loads((store.folder(key) / LOGGED).read_bytes())["run_id"] == run.info.run_id
    return finished


@pytest.fixture
def store(tmp_path: Path, empty_mlflow: Path) -> Store:
    """A store of four finished cells and their launch, with a database that has none of them."""
    made = make_store(tmp_path / "results", COUNT)
    shutil.copy(empty_mlflow, tmp_path / "results" / "mlflow.db")
    return made


@pytest.fixture
def uri(store: Store) -> str:
    """Its default tracking URI."""
    return resolve_uri("", store.root)


def test_a_sync_rebuilds_all_runs_below_their_launch_and_a_second_one_changes_nothing(store: Store, uri: str) -> None:
    first = sync(store, uri)
    assert (first["finished"], first["logged"], first["launches"], first["failed"]) == (COUNT, COUNT, 1, 0)
    children = check(uri, store)
    (parent,) = [run for run in runs_of(uri) if run.data.tags.get("kind") == "launch"]
    assert (parent.info.run_name, parent.info.status) == ("fake-1", "FINISHED")
    assert {run.data.tags[PARENT] for run in children.values()} == {parent.info.run_id}
    before = sorted(run.info.run_id for run in runs_of(uri))
    again = sync(store, uri)
    assert str(again) == f"{COUNT} of {COUNT} finished cells have their run"
    assert sorted(run.info.run_id for run in runs_of(uri)) == before


@pytest.mark.slow
def test_a_deleted_or_moved_store_is_rebuilt_and_markers_of_another_ignored(store: Store, uri: str) -> None:
    sync(store, uri)
    elsewhere = f"sqlite:///{store.root.parent / 'other.db'}"
    # Markers speak of the first store; by a process that ends, as an open database is not gone when it is deleted.
    assert at_once(sync_into, [(store.root, elsewhere)]) == []
    assert store.logged(cells(1)[0].key(), elsewhere)
    Path(elsewhere.removeprefix("sqlite:///")).unlink()  # markers now speak of one that is gone
    assert sync(store, elsewhere)["logged"] == COUNT
    check(elsewhere, store)
    moved = Store(store.root.with_name("moved"))
    shutil.move(store.root, moved.root)
    done = sync(moved, resolve_uri("", moved.root))
    assert (done["logged"], done["launches"]) == (0, 0)  # the runs moved with it
    assert moved.logged(cells(1)[0].key(), resolve_uri("", moved.root))


def test_what_killed_workers_left_is_completed_or_closed_and_duplicates_go(store: Store, uri: str) -> None:
    tracking = open_tracking(uri, "fake", "fake-1", store, {})
    assert tracking is not None
    launch = store.root / "launches" / "fake-1.json"
    launch.write_text(json.dumps({**json.loads(launch.read_text()), "tracking": tracking.to_dict()}))
    client = MlflowClient(uri)
    half, twice, missed, failing = cells(COUNT)
    half_written(client, tracking, store, half)
    assert log_cell(tracking, store, twice)
    half_written(client, tracking, store, twice)
    attempt = client.create_run(tracking.experiment_id, tags=tags_of(failing, tracking, {}))
    foreign = client.create_run(tracking.experiment_id, tags={"key": half.key(), "finished": "in another store"})
    done = sync(store, uri)
    # The smaller id of the one that is logged twice may be that of the half-written run.
    assert done["completed"] + done["logged"] in (3, 4)
    assert (done["removed"], done["launches"], done["closed"]) == (1, 0, 2)  # the launch had not been closed either
    client.set_terminated(foreign.info.run_id, "KILLED")  # for `check`
    check(uri, store)
    assert client.get_run(attempt.info.run_id).info.status == "FAILED"
    assert missed.key() in {run.data.tags.get("key") for run in runs_of(uri)}
    assert sync(store, uri)["logged"] == 0


def test_the_run_of_a_cell_that_was_made_again_takes_the_place_of_the_old_one(store: Store, uri: str) -> None:
    tracking = open_tracking(uri, "fake", "fake-1", store, {})
    assert tracking is not None
    cell = cells(1)[0]
    assert log_cell(tracking, store, cell) and log_cell(tracking, store, cell)
    store.forget(cell.key())
    time.sleep(0.01)
    finish(store, cell)
    assert log_cell(tracking, store, cell)
    again = store.read(cell.key()).result["finished"]
    found = [run for run in runs_of(uri) if run.data.tags.get("key") == cell.key()]
    assert [run.data.tags["finished"] for run in found] == [again]


def test_two_results_directories_on_one_server_keep_their_own_runs(store: Store) -> None:
    """The same grid twice, the second with a cell that is made again: neither loses a run, nor gets the other's."""
    uri, other = f"sqlite:///{store.root.parent / 'shared.db'}", make_store(store.root.with_name("other"), COUNT)
    opened = [open_tracking(uri, "fake", f"fake-{each.root.name}", each, {}) for each in (store, other)]
    for tracking, each in zip(opened, (store, other), strict=True):
        assert tracking is not None
        assert all(log_cell(tracking, each, cell) for cell in cells(COUNT))
    other.forget(cells(1)[0].key())
    time.sleep(0.01)
    finish(other, cells(1)[0])
    assert opened[1] is not None and log_cell(opened[1], other, cells(1)[0])
    log_failure(opened[1], cells(1)[0], "ValueError: no", "trace", "2026-01-01T00:00:00+00:00")

    def runs(each: Store) -> set[tuple[str, str, str]]:
        mine = [run for run in runs_of(uri) if run.data.tags[OWNER] == each.identity() and "finished" in run.data.tags]
        assert {run.info.status for run in mine} == {"FINISHED"}
        return {(run.data.tags["key"], run.data.tags["finished"], str(run.info.run_id)) for run in mine}

    before = {each.root.name: runs(each) for each in (store, other)}
    for each in (store, other):
        records = [each.read(key) for key in each.cell_keys()]
        assert {run[:2] for run in before[each.root.name]} == {(r.key, r.result["finished"]) for r in records}
        marks = {json.loads((each.folder(r.key) / LOGGED).read_bytes())["run_id"] for r in records}
        assert marks == {run[2] for run in before[each.root.name]}
    for each in (store, other, store):
        done = sync(each, uri)
        assert (done["logged"], done["completed"], done["removed"], done["failed"]) == (0, 0, 0, 0)
    assert {each.root.name: runs(each) for each in (store, other)} == before
    assert len([run for run in runs_of(uri) if "key" in run.data.tags]) == 2 * COUNT + 1


def test_runs_without_an_owner_are_of_the_directory_that_their_launch_names(store: Store) -> None:
    """Runs of earlier versions: a sync takes its own over, and leaves those of another directory as they are."""
    uri, other = f"sqlite:///{store.root.parent / 'shared.db'}", make_store(store.root.with_name("other"), COUNT)
    made = {}
    for each in (store, other):
        tracking = open_tracking(uri, "fake", f"fake-{each.root.name}", each, {"results": str(each.root)})
        assert tracking is not None
        assert all(log_cell(tracking, each, cell) for cell in cells(COUNT))
        made[each.root.name] = {
            str(run.info.run_id) for run in runs_of(uri) if run.data.tags.get(PARENT) == tracking.parent_run
        }
    for run in runs_of(uri):
        MlflowClient(uri).delete_tag(run.info.run_id, OWNER)
    store.forget(cells(1)[0].key())
    time.sleep(0.01)
    finish(store, cells(1)[0])
    done = sync(store, uri)
    assert (done["logged"], done["completed"], done["removed"], done["failed"]) == (1, 0, 0, 0)
    left = {str(run.info.run_id): run for run in runs_of(uri) if "key" in run.data.tags}
    assert made["other"] <= set(left) and not any(OWNER in left[run_id].data.tags for run_id in made["other"])
    assert len(made["results"] & set(left)) == COUNT - 1, "the one that was made again is deleted"
    mine = [run for run_id, run in left.items() if run_id not in made["other"]]
    assert [run.data.tags[OWNER] for run in mine] == [store.identity()] * COUNT
    assert sync(other, uri)["logged"] == 0
    assert {run.data.tags[OWNER] for run in runs_of(uri) if run.info.run_id in made["other"]} == {other.identity()}


def test_a_launch_with_nothing_to_run_exports_what_was_missed(
    store: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(cells(COUNT), store)
    log_missing(plan, store, uri)
    children = check(uri, store)
    (parent,) = [run for run in runs_of(uri) if run.data.tags.get("kind") == "launch"]
    assert {run.data.tags[PARENT] for run in children.values()} == {parent.info.run_id}
    monkeypatch.setattr("cluster.closing.sync", None)  # is not called where nothing is missing
    log_missing(plan, store, uri)


def test_an_experiment_of_choice_and_cells_whose_launch_is_not_known(store: Store, uri: str) -> None:
    shutil.rmtree(store.root / "launches")
    assert sync(store, uri)["logged"] == COUNT
    check(uri, store, store.root.name)
    assert sync(store, uri, experiment="mine")["logged"] == COUNT
    check(uri, store, "mine")


def test_damaged_results_and_launches_are_left_out(store: Store, uri: str) -> None:
    (store.folder(cells(1)[0].key()) / "episodes.parquet").write_bytes(b"no")
    (store.root / "launches" / "fake-0.json").write_text("{")
    done = sync(store, uri)
    assert (done["finished"], done["logged"], done["failed"]) == (COUNT - 1, COUNT - 1, 0)
    check(uri, store)


@pytest.mark.slow
def test_eight_processes_open_a_fresh_sqlite_store_at_once(tmp_path: Path) -> None:
    rounds = 2
    assert at_once(open_fresh, [(tmp_path, rounds)] * 8) == []
    for number in range(rounds):
        client = MlflowClient(f"sqlite:///{tmp_path}/round{number}/mlflow.db")
        assert sorted(e.name for e in client.search_experiments()) == ["Default", "fake"]


@pytest.mark.slow
def test_processes_that_share_no_lock_leave_one_run_a_cell(store: Store) -> None:
    """The same results in three places, as three machines without file locks would see them, into one MLflow store."""
    places = [store.root, *(store.root.with_name(f"copy{number}") for number in range(2))]
    store.identity()  # they are the same results: copies have the id
    for place in places[1:]:
        shutil.copytree(store.root, place)
    uri = f"sqlite:///{store.root.parent / 'shared.db'}"
    open_experiment(open_store(uri), uri, "fake", store.root)
    assert at_once(sync_into, [(place, uri) for place in places]) == []
    sync(store, uri)  # one launch remains, and the markers of this place name the runs that do
    check(uri, store)
    (parent,) = [run for run in runs_of(uri) if run.data.tags.get("kind") == "launch"]
    assert {run.data.tags[PARENT] for run in check(uri, store).values()} == {parent.info.run_id}


def test_a_launch_that_another_process_removes_meanwhile_is_exported_again(
    store: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = list[str]()

    def remove_once(client: MlflowClient, run_id: str, note: Path) -> None:
        if not removed:
            removed.append(run_id)
            client.delete_run(run_id)
        log_note(client, run_id, note)

    monkeypatch.setattr("cluster.tracking.sync.log_note", remove_once)
    done = sync(store, uri)
    assert (done["logged"], done["failed"], len(removed)) == (COUNT, 0, 1)
    (parent,) = [run for run in runs_of(uri) if run.data.tags.get("kind") == "launch"]
    assert {run.data.tags[PARENT] for run in check(uri, store).values()} == {parent.info.run_id}


@pytest.mark.slow
def test_a_server_that_dies_delays_no_cell_and_a_sync_completes_its_runs(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_client, "_resting", {})
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    first, second, third, fourth = cells(COUNT)
    with server(store.root, port) as process:
        tracking = open_tracking(uri, "fake", "fake-1", store, {})
        assert tracking is not None
        assert log_cell(tracking, store, first)
        half_written(MlflowClient(uri), tracking, store, second)  # killed in the middle of a cell
        kill(process)
    began = time.monotonic()
    with pytest.warns(UserWarning, match="The grid goes on"):
        assert not log_cell(tracking, store, second)
    assert time.monotonic() - began < 10
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once, not for every cell
        assert not any(log_cell(tracking, store, cell) for cell in (third, fourth) for _ in range(50))
        log_failure(tracking, third, "ValueError: no", "trace", "2026-01-01T00:00:00+00:00")
    assert time.monotonic() - began < 0.5
    with pytest.warns(UserWarning, match="The grid goes on"):
        assert sync(store, uri)["failed"] == COUNT
    with server(store.root, port):
        done = sync(store, uri)
        assert (done["completed"], done["logged"], done["failed"]) == (1, 2, 0)
        check(uri, store)
        assert sync(store, uri)["logged"] == 0


@pytest.mark.slow
def test_a_server_that_hangs_is_given_up_within_seconds(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(mlflow_client, "_resting", {})
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        tracking = Tracking(uri=f"http://127.0.0.1:{deaf.getsockname()[1]}", experiment_id="1", parent_run="x")
        began = time.monotonic()
        with pytest.warns(UserWarning, match="does not answer"):
            assert not log_cell(tracking, store, cells(1)[0])
        assert time.monotonic() - began < mlflow_client.PROBE_SECONDS + 3
        assert not log_cell(tracking, store, cells(1)[0])


def test_the_command_says_what_it_did_and_how_it_went(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync", "--results", str(store.root)]) == 0
    assert "4 of 4 finished cells have their run, 4 logged now, 1 launches restored" in capsys.readouterr().out
    assert main(["sync", "--results", str(store.root / "nowhere")]) == 2
    assert "no results directory" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="does not answer"):
        assert main(["sync", "--results", str(store.root), "--tracking-uri", f"http://127.0.0.1:{free_port()}"]) == 1


@pytest.mark.slow
def test_the_server_listens_on_this_machine_alone_and_a_password_is_written_nowhere(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (mlflow_client.USER, mlflow_client.PASSWORD):
        monkeypatch.setenv(name, "")
    port = free_port()
    with server(store.root, port):
        uri = resolve_uri(f"http://ann:p4ssw0rd@127.0.0.1:{port}", store.root)
        tracking = open_tracking(uri, "fake", "fake-1", store, {})
        assert tracking is not None
        log_failure(tracking, cells(1)[0], "ValueError: no", "trace", "2026-01-01T00:00:00+00:00")
        assert sync(store, uri)["logged"] == COUNT
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        listening = {fields[1] for fields in lines if fields[3] == "0A" and fields[1].endswith(f":{port:04X}")}
    assert listening == {f"0100007F:{port:04X}"}
    assert "no authentication" not in (store.root / "server.log").read_text()
    assert json.loads((store.folder(cells(1)[0].key()) / LOGGED).read_bytes())["tracking_uri"] == uri
    assert "ann:***@" in uri
    for path in store.root.rglob("*"):
        assert not path.is_file() or b"p4ssw0rd" not in path.read_bytes(), path


@pytest.mark.slow
def test_system_metrics_stand_in_the_launch_where_psutil_is_and_are_asked_for_where_it_is_not(
    store: Store, uri: str
) -> None:
    tracking = open_tracking(uri, "fake", "fake-1", store, {})
    assert tracking is not None
    with system_metrics(None):
        pass
    if find_spec("psutil") is None:
        with pytest.warns(UserWarning, match="pip install psutil"), system_metrics(tracking):
            pass
        return
    with system_metrics(tracking, 0.5), system_metrics(tracking, 0.5):  # one process a machine watches it
        time.sleep(3)
    metrics = MlflowClient(uri).get_run(tracking.parent_run).data.metrics
    assert any(name.endswith("cpu_utilization_percentage") for name in metrics), metrics


def all_runs(uri: str) -> Counter[tuple[str, str]]:
    """(key, status) of the runs of cells, wherever they are; without deleted ones."""
    client = MlflowClient(uri)
    found = find_runs(client, [each.experiment_id for each in client.search_experiments()])
    return Counter((run.data.tags["key"], run.info.status) for run in found if "key" in run.data.tags)


def once(store: Store) -> Counter[tuple[str, str]]:
    return Counter((key, "FINISHED") for key in store.cell_keys())


def rename(uri: str, name: str, new: str) -> str:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(name)
    assert found is not None
    client.rename_experiment(found.experiment_id, new)
    return str(found.experiment_id)


def test_a_renamed_experiment_keeps_its_runs_in_a_sync(store: Store, uri: str) -> None:
    sync(store, uri)
    home = rename(uri, "fake", "renamed by hand")
    done = sync(store, uri)
    assert (done["logged"], done["removed"], done["launches"], done["failed"]) == (0, 0, 0, 0)
    assert all_runs(uri) == once(store)
    assert MlflowClient(uri).get_experiment_by_name("fake") is None
    finish(store, cells(COUNT + 1)[-1])  # a cell that no launch asked for has an experiment of its own
    assert sync(store, uri)["logged"] == 1
    rename(uri, store.root.name, "the rest")
    assert sync(store, uri)["logged"] == 0
    assert all_runs(uri) == once(store)
    assert (
        len(runs_of(uri, "renamed by hand")) == COUNT + 1
        and runs_of(uri, "renamed by hand")[0].info.experiment_id == home
    )


def test_a_launch_goes_on_in_the_experiment_that_was_renamed(store: Store, uri: str) -> None:
    sync(store, uri)
    home = rename(uri, "fake", "renamed by hand")
    tracking = open_tracking(uri, "fake", "fake-2", store, {})
    assert tracking is not None and tracking.experiment_id == home
    for cell in cells(COUNT):
        assert log_cell(tracking, store, cell)
    assert all_runs(uri) == once(store)


def test_runs_in_the_renamed_experiment_and_in_a_new_one_become_one(store: Store, uri: str) -> None:
    sync(store, uri)
    rename(uri, "fake", "renamed by hand")
    client = MlflowClient(uri)
    tracking = Tracking(uri=uri, experiment_id=client.create_experiment("fake"), parent_run="", store=store.identity())
    for cell in cells(COUNT):
        half_written(client, tracking, store, cell)
    sync(store, uri)
    assert all_runs(uri) == once(store)


@pytest.mark.parametrize("first", ["fake", "renamed by hand"])
def test_a_deleted_experiment_or_deleted_runs_come_back_once(first: str, store: Store, uri: str) -> None:
    sync(store, uri)
    if first != "fake":
        rename(uri, "fake", first)
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(first)
    assert found is not None
    client.delete_experiment(found.experiment_id)
    assert sync(store, uri)["failed"] == 0
    assert all_runs(uri) == once(store)
    for experiment in client.search_experiments():
        for run in find_runs(client, [experiment.experiment_id])[::2]:
            client.delete_run(run.info.run_id)
    assert sync(store, uri)["failed"] == 0
    assert all_runs(uri) == once(store)
    assert str(sync(store, uri)) == f"{COUNT} of {COUNT} finished cells have their run"


def test_a_stranger_that_took_the_name_of_a_result_stores_experiment_is_left_alone(store: Store, uri: str) -> None:
    other = make_store(store.root.parent / "other", COUNT)
    sync(store, uri)
    sync(other, uri)  # the same cells of another result store, in the same experiment
    rename(uri, "fake", "renamed by hand")
    for each in (store, other, store, other):
        sync(each, uri)
    assert all_runs(uri) == Counter({key: 2 for key in once(store)})


@pytest.mark.parametrize("name", ["what is it?x=1", "a#b", "100%", "a%3Fb", "a & b", "q'u\"o", "a@b:c;d", "ü+é"])
def test_results_may_have_any_name(name: str, tmp_path: Path) -> None:
    store = make_store(tmp_path / name / "results", 1)
    uri = resolve_uri("", store.root)
    assert sync(store, uri)["logged"] == 1
    assert (store.root / "mlflow.db").is_file()
    assert main(["sync", "--results", str(store.root)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]  # no second folder beside it, not even an empty one
    check(mlflow_client.tracking_uri(uri), store)


@pytest.mark.parametrize(
    "error", [KeyError("x"), TypeError("x"), AttributeError("x"), ValueError("operands"), IndexError()]
)
def test_a_bug_in_a_sync_shows_itself(
    error: Exception, store: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr("cluster.tracking.sync._sync", broken)
    with pytest.raises(type(error)):
        sync(store, uri)


def test_a_bug_while_a_cell_is_logged_shows_its_traceback_and_fails_no_cell(
    store: Store, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a bug")

    tracking = open_tracking(uri, "fake", "fake-1", store, {})
    assert tracking is not None
    monkeypatch.setattr("cluster.tracking.export.export_cell", broken)
    with pytest.warns(UserWarning, match="can't be logged"):
        assert not log_cell(tracking, store, cells(1)[0])
    said = capsys.readouterr().err
    assert "Traceback" in said and "KeyError: 'a bug'" in said and "This is a bug" in said


def test_a_database_that_can_not_be_opened_is_no_bug(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    (store.root / "mlflow.db").write_bytes(b"not a database" * 100)
    with pytest.warns(UserWarning, match="can't be used"):
        assert sync(store, resolve_uri("", store.root))["failed"] == COUNT
    assert "Traceback" not in capsys.readouterr().err
