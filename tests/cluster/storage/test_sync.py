"""Results in an object store: launches on machines that share nothing else, and one whole result whatever happens."""

from __future__ import annotations

import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from cluster.__main__ import main as command
from cluster.storage.backend import ObjectStore, RemoteError
from cluster.storage.layout import RESULT
from cluster.storage.record import read_error
from cluster.storage.results import Store
from cluster.storage.sync import Sync
from cluster.tracking import __main__ as tracking
from tests.cluster.test_sharing import COLUMNS
from tests.helpers.object_store import SECRET, arguments, cells, lost, machine, ran


@pytest.mark.ray
def test_two_machines_share_a_grid(remote: ObjectStore, tmp_path: Path) -> None:
    more = ("--variants", "diffup,slow")
    drivers = [
        subprocess.Popen(
            arguments(remote.uri, *more), env=machine(tmp_path, name), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]  # fmt: skip
    said = [driver.communicate(timeout=280) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said
    assert sum(cells(remote).values()) == 11
    assert all(times == 1 for times in ran(tmp_path).values()) and len(ran(tmp_path)) == 11
    roots = [next((tmp_path / name / "results").iterdir()) for name in ("one", "two")]
    for key in cells(remote):
        assert (roots[0] / key / RESULT).read_bytes() == (roots[1] / key / RESULT).read_bytes()
    pulled = tmp_path / "pulled"
    assert command(["sync", "pull", remote.uri, str(pulled)]) == 0
    store = Store(pulled)
    tables = {}
    for key in store.cell_keys():
        assert store.read(key).status == "finished"
        if (pulled / key / "episodes.parquet").exists():
            tables[key] = pd.read_parquet(pulled / key / "episodes.parquet")
            assert set(COLUMNS[1:]) <= set(tables[key].columns)
    assert len(tables) == 10


@pytest.mark.ray
def test_a_killed_machine_loses_nothing_and_another_does_the_rest(remote: ObjectStore, tmp_path: Path) -> None:
    more = ("--variants", "diffup,slow")
    with subprocess.Popen(
        arguments(remote.uri, *more), env=machine(tmp_path, "one"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as driver:
        deadline = time.monotonic() + 120
        while sum(cells(remote).values()) < 4:
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        lost(driver, tmp_path / "one")
    before = set(cells(remote))
    done = subprocess.run(
        arguments(remote.uri, *more), env=machine(tmp_path, "two"), capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "11 of 11 cells finished" in done.stdout
    assert sum(cells(remote).values()) == 11
    again = {key for key, times in ran(tmp_path).items() if times > 1}
    assert not again & before  # what was finished up there is never run again
    third = subprocess.run(
        arguments(remote.uri, *more), env=machine(tmp_path, "three"), capture_output=True, text=True, timeout=120
    )
    assert "11 finished, 0 to do" in third.stdout
    for path in (tmp_path / "two").rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()


def test_a_copy_follows_and_what_was_finished_before_a_kill_is_uploaded(remote: ObjectStore, tmp_path: Path) -> None:
    from tests.cluster.planning.test_plan import EVALUATED, finish

    one, two = (Store(tmp_path / name, remote.uri) for name in ("one", "two"))
    first, second = EVALUATED[:2]
    finish(one, first)
    one.publish(first.key())
    two.update()
    assert two.read(first.key()).status == "finished"
    finish(two, first)  # a second one is not written anywhere
    assert one.read(first.key()).result["finished"] == two.read(first.key()).result["finished"]
    finish(two, second)  # killed before it is published
    assert list(cells(remote)) == [first.key()]
    two.update()
    assert set(cells(remote)) == {first.key(), second.key()}
    two.forget(first.key())
    one.update()
    assert one.read(first.key()).status == "missing" and one.read(second.key()).status == "finished"
    names = json.loads((tmp_path / "one" / ".mirror.json").read_bytes())
    assert not any(name.startswith(first.key()) for name in names)


def test_all_machines_know_the_results_by_one_id(remote: ObjectStore, tmp_path: Path) -> None:
    copies = [Store(tmp_path / f"m{number}", remote.uri) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(Store.identity, copies))) == 1
    pulled, back = tmp_path / "pulled", ObjectStore(f"{remote.uri}-copy")
    assert command(["sync", "pull", remote.uri, str(pulled)]) == 0
    assert Store(pulled).identity() == copies[0].identity()
    assert command(["sync", "push", str(pulled), back.uri]) == 0
    assert Store(tmp_path / "back", back.uri).identity() == copies[0].identity()
    other = Store(tmp_path / "other")
    assert other.identity() != copies[0].identity()
    assert command(["sync", "push", str(other.root), remote.uri]) == 0  # its results join those that are there
    assert Store(tmp_path / "late", remote.uri).identity() == copies[0].identity()


def test_mlflow_is_synced_from_an_object_store(
    remote: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.cluster.planning.test_plan import EVALUATED, finish

    monkeypatch.setenv("DIFFUP_CACHE", str(tmp_path / "cache"))
    assert tracking.main(["sync", "--results", remote.uri]) == 2
    assert f"no results in {remote.uri}" in capsys.readouterr().err
    one = Store(tmp_path / "one", remote.uri)
    finish(one, EVALUATED[0])
    one.publish(EVALUATED[0].key())
    more = ("--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}", "--experiment", "fake")
    for said in ("1 of 1 finished cells have their run, 1 logged now", "1 of 1 finished cells have their run  ("):
        assert tracking.main(["sync", "--results", remote.uri, *more]) == 0
        assert said in capsys.readouterr().out
    assert command(["sync", "pull", remote.uri, str(tmp_path / "pulled")]) == 0
    assert tracking.main(["sync", "--results", str(tmp_path / "pulled"), *more]) == 0
    assert "logged now" not in capsys.readouterr().out, "a pulled folder is the same results"

    def away(*_: object) -> int:
        raise RemoteError("away")

    monkeypatch.setattr(Sync, "pull", away)
    for asked in ("sync", "serve"):
        assert tracking.main([asked, "--results", remote.uri]) == 2
        assert f"diffup sync pull {remote.uri} DIR" in capsys.readouterr().err


@dataclass(frozen=True)
class Through(Sync):
    """A sync with an object store of a given kind."""

    kind: type[ObjectStore] = ObjectStore

    @property
    def backend(self) -> ObjectStore:
        return self.kind(self.remote)


def test_an_unfinished_upload_is_not_a_finished_cell(remote: ObjectStore, tmp_path: Path) -> None:
    from tests.cluster.planning.test_plan import EVALUATED, finish

    store = Store(tmp_path / "one", remote.uri)
    finish(store, EVALUATED[0])
    key = EVALUATED[0].key()

    class Cut(ObjectStore):
        def write(self, name: str, content: bytes, *, exclusive: bool = False) -> bool:
            if name.endswith(RESULT):
                raise RemoteError("cut")
            return super().write(name, content, exclusive=exclusive)

    with pytest.raises(RemoteError):
        Through(store.root, remote.uri, Cut).push(key)
    other = Store(tmp_path / "two", remote.uri)
    other.update()
    assert other.read(key).status == "missing"
    store.update()
    other.update()
    assert other.read(key).status == "finished" and os.environ["AWS_ACCESS_KEY_ID"] == "test"


def test_a_checkpoint_made_again_elsewhere_comes_down_again(remote: ObjectStore, tmp_path: Path) -> None:
    from tests.cluster.planning.test_plan import TRAINED, finish

    one, two = (Store(tmp_path / name, remote.uri) for name in ("one", "two"))
    key = TRAINED.key()

    def train(store: Store, weights: bytes) -> None:
        folder = store.folder(key) / "checkpoint"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(weights)
        (folder / "config.json").write_text("{}")
        finish(store, TRAINED)
        store.publish(key)

    def weights(store: Store) -> bytes:
        return (store.folder(key) / "checkpoint" / "model.safetensors").read_bytes()

    train(one, b"old")
    two.update([], checkpoint=key)
    assert weights(two) == b"old"
    one.forget(key)
    train(one, b"new")
    two.update()
    assert two.read(key).status == "finished"  # and what is here of its checkpoint does not make it damaged
    two.update([key], checkpoint=key)
    assert weights(two) == b"new"


def test_a_damaged_copy_is_no_reason_to_delete_a_good_result(remote: ObjectStore, tmp_path: Path) -> None:
    from tests.cluster.planning.test_plan import EVALUATED, finish

    one, two = (Store(tmp_path / name, remote.uri) for name in ("one", "two"))
    key = EVALUATED[0].key()
    finish(one, EVALUATED[0])
    one.publish(key)
    two.update()
    (two.folder(key) / "episodes.parquet").write_bytes(b"damaged")
    assert two.read(key).status == "damaged"
    two.forget_result(key)
    assert two.read(key).status == "finished" and list(cells(remote)) == [key]
    remote.write(f"{key}/episodes.parquet", b"damaged up there")
    two.forget_result(key)
    assert two.read(key).status == "missing" and not cells(remote)


def test_of_two_that_finish_a_cell_at_once_one_whole_result_stands(
    remote: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.cluster.planning.test_plan import EVALUATED, finish

    one, two, other = (Store(tmp_path / name, remote.uri) for name in ("one", "two", "other"))
    cell = EVALUATED[0]
    for store in (one, two):
        finish(store, cell)
    frame = pd.read_parquet(two.folder(cell.key()) / "episodes.parquet").assign(seconds=9.0)
    two.forget_result(cell.key())
    two.write_result(cell, metrics={"miou": 1.0}, provenance={}, started="", episodes=frame)

    class Overtaken(ObjectStore):
        """Somebody finishes the cell between this one's look and its upload."""

        def read(self, name: str) -> bytes | None:
            found = super().read(name)
            if found is None and name.endswith(RESULT):
                one.publish(cell.key())
            return found

    Through(two.root, remote.uri, Overtaken).push(cell.key())
    other.update()
    assert other.read(cell.key()).status == "finished", other.read(cell.key()).why
    seconds = pd.read_parquet(other.folder(cell.key()) / "episodes.parquet")["seconds"]
    assert (seconds == 9.0).all()  # the files that came last, and the result that names them


def test_a_result_whose_upload_failed_goes_up_when_its_machine_is_asked_again(
    remote: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster.execution import worker as trial
    from cluster.execution.context import WorkContext
    from cluster.execution.work_units import WorkUnit
    from tests.helpers import fake_grid
    from tests.helpers.fake_work import WORK

    cell = fake_grid.grid(("diffup",))[-1]
    task = WorkContext(results=tmp_path / "one", remote=remote.uri, datasets={}, launch="here", work=WORK)

    def away(*args: object, **more: object) -> bool:
        raise RemoteError("away")

    with monkeypatch.context() as patch:
        patch.setattr(Sync, "push", away)
        assert trial.run_unit(WorkUnit(cell), task)["status"] == "failed"
        assert read_error(tmp_path / "one" / cell.key()).passing
        patch.setattr(trial, "PAUSE", 0.0)
        assert trial.run_unit(WorkUnit(cell), task)["status"] == "again"  # it is finished here, and can't go up
    assert not cells(remote)
    assert trial.run_unit(WorkUnit(cell), task)["status"] == "finished"
    assert list(cells(remote)) == [cell.key()] and set(ran(tmp_path).values()) == {1}

    monkeypatch.setattr(trial, "PAUSE", 0.0)
    monkeypatch.setattr(trial, "acquire", away)
    again = trial.run_unit(WorkUnit(cell), task)
    assert again["status"] == "again" and again["error"] == "RemoteError: away"
    monkeypatch.setattr(trial, "REFUSALS", 2)
    assert trial.run_in_turn(WorkUnit(cell), task) == {**again, "status": "failed"}
