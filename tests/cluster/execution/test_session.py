"""Ray's folder, a cluster that does not answer, and what workers import; Ray itself is not started here."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import cloudpickle

from cluster.execution import session
from cluster.execution.session import check_address
from cluster.job import main
from diffup.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


def test_a_folder_that_another_launch_removes_before_it_is_locked_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(session, "LONGEST_FOLDER", 1000)
    real, seen = fcntl.flock, list[int]()

    def flock(handle: int, how: int) -> None:
        seen.append(handle)
        if len(seen) in (1, 3):  # between our open and our lock: twice
            monkeypatch.setattr(fcntl, "flock", real)
            session._remove_left_behind(tmp_path)
            monkeypatch.setattr(fcntl, "flock", flock)
            assert not list(tmp_path.glob("*/lock"))
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    folder, handle = session._own_folder()
    monkeypatch.setattr(fcntl, "flock", real)
    assert len(seen) >= 2
    assert os.stat(folder / "lock").st_ino == os.fstat(handle).st_ino
    session._remove_left_behind(tmp_path)
    assert folder.is_dir()  # it is held
    os.close(handle)
    session._remove_left_behind(tmp_path)
    assert not folder.exists()


def test_launches_that_start_at_once_all_have_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(session, "LONGEST_FOLDER", 1000)
    found: list[tuple[Path, int]] = []

    def start() -> None:
        for _ in range(20):
            found.append(session._own_folder())

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 120 and all(folder.is_dir() for folder, _ in found)
    for _, handle in found:
        os.close(handle)


def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LONGEST_FOLDER", 1000)
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file" / "ray"))
    with pytest.raises(UserError, match=r"can't hold Ray's session.*set RAY_TMPDIR"):
        session._own_folder()


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of something that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("127.0.0.1:1", "refused"),
        ("ray://127.0.0.1:1", "refused"),
        ("ray://127.0.0.1", "refused"),
        ("[::1]:1", ""),
        ("no-such-host.invalid:6379", ""),
        ("ray://no-such-host.invalid:10001", ""),
        ("head", "write HOST:PORT"),
        ("head:", "write HOST:PORT"),
        ("head:ray", "write HOST:PORT"),
        ("head:99999", "write HOST:PORT"),
        (":6379", "write HOST:PORT"),
        (f"{'a' * 80}.example:6379", ""),
        ("http://127.0.0.1:8265", "is a dashboard"),
    ],
)
def test_a_cluster_that_does_not_answer_is_an_error_at_once(
    named: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", named)
    monkeypatch.setattr(session, "CLIENT_PORT", "1")  # a test beside this one may have a head at the real one
    began = time.monotonic()
    with pytest.raises(UserError, match="RAY_ADDRESS") as caught, session.ray_session():
        raise AssertionError("joined")
    assert words in str(caught.value) and named in str(caught.value) and "unset" in str(caught.value)
    assert time.monotonic() - began < 30


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30).filter(lambda text: "://" not in text and not text[-1:].isdigit()))
def test_any_text_that_is_no_address_is_an_error(text: str) -> None:
    if text != "auto":
        with pytest.raises(UserError, match="no Ray cluster answers at RAY_ADDRESS="):
            check_address(text, "RAY_ADDRESS")


@pytest.mark.slow
def test_something_that_is_no_ray_head_is_an_error(silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "HEALTH_SECONDS", 3.0)
    began = time.monotonic()
    with pytest.raises(UserError, match="what answers there is no Ray head"):
        check_address(f"127.0.0.1:{silent}", "RAY_ADDRESS")
    assert time.monotonic() - began < 30
    assert session.CONNECT_SECONDS + 30.0 < 60  # together, as they are set


def test_auto_without_a_cluster_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_healthy", lambda _: False)
    with pytest.raises(UserError, match="no cluster runs on this machine"):
        check_address("auto", "RAY_ADDRESS")


def test_jobs_are_told_of_a_dead_cluster_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert main(["status", "some-job"]) == 2
    assert "no Ray cluster answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "as_folder"), [("cluster", False), ("analysis", False), ("experiments", True), ("diffup", True)]
)
def test_workers_find_our_packages_whatever_the_working_directory_holds(
    package: str, as_folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if as_folder:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("x = 1\n")
    else:
        (tmp_path / f"{package}.py").write_text("x = 1\n")
    (tmp_path / "my_method.py").write_text("y = 2\n")
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        assert session._shadowed()
    assert not session._shadowed()
    setup = tmp_path / "setup.pickle"
    setup.write_bytes(cloudpickle.dumps(session._worker_setup(str(ROOT))))
    code = (
        "import sys, ray.cloudpickle as pickle; sys.path.insert(0, '')\n"
        "before = list(sys.path); pickle.load(open('setup.pickle', 'rb'))()\n"
        "import my_method, cluster.execution.session, analysis.tables.table, diffup.grid.cell, diffup.errors\n"
        f"assert cluster.__file__.startswith({str(ROOT)!r}) and sys.path == before and sys.stdout.errors == 'replace'"
    )
    env: dict[str, Any] = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_ray_is_started_again_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    tried: list[dict[str, Any]] = []

    def init(**how: Any) -> None:
        tried.append(how)
        if len(tried) < late:
            raise Exception("The current node timed out during startup. This could happen because …")

    monkeypatch.setattr(ray, "init", init)
    for late in (1, 2, session.STARTS):
        tried.clear()
        session._start(include_dashboard=False)
        assert tried == [{"address": "local", "include_dashboard": False}] * late
    late = session.STARTS + 1
    tried.clear()
    with pytest.raises(UserError, match=r"did not start .* timed out during startup"):
        session._start()
    assert len(tried) == session.STARTS


def test_a_wrong_argument_to_ray_is_no_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def init(**_: Any) -> None:
        raise ValueError("no such option")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ValueError, match="no such option") as caught:
        session._start()
    assert not isinstance(caught.value, UserError)
