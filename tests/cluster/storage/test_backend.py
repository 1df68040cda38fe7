"""A remote in an object store: reading, exclusive writing, leases, and errors that say what to do."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.storage.backend import Backend, ObjectStore, ages, check_access, open_backend, remove
from cluster.storage.leases import acquire, held
from cluster.storage.sync import Sync
from tests.cluster.test_launch import environment
from tests.helpers.object_store import SECRET


@pytest.fixture(params=["folder", "object store"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "folder":
        return open_backend(tmp_path / "shared")
    return open_backend(str(request.getfixturevalue("remote")))


def test_reading_writing_listing_and_deleting(backend: Backend) -> None:
    check_access(backend)
    assert backend.read("a/b") is None and backend.entries() == {} and ages(backend) == {}
    assert backend.write("a/b", b"one") and backend.read("a/b") == b"one"
    assert not backend.write("a/b", b"two", exclusive=True) and backend.read("a/b") == b"one"
    assert backend.write("a/b", b"two") and backend.read("a/b") == b"two"
    assert backend.write("c", b"")
    assert {name: facts.bytes for name, facts in backend.entries().items()} == {"a/b": 3, "c": 0}
    assert list(backend.entries("a/")) == ["a/b"]
    found = ages(backend)
    assert set(found) == {"a/b", "c"} and all(-1.5 < age < 60 for age in found.values())
    backend.delete("c")
    backend.delete("c")
    assert list(backend.entries()) == ["a/b"]
    assert list(backend.contents(["a/b", "none"])) == [("a/b", b"two")]
    assert backend.below("a").read("b") == b"two"
    remove(backend, "a/")
    assert backend.entries() == {}


def test_a_folder_that_is_shared_itself_is_in_sync(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    sync = Sync(tmp_path)
    sync.check_access()
    sync.upload("a")
    sync.download("")
    sync.remove("a")
    assert sync.pull() == 0 and not sync.refetch("a") and not sync.is_copy
    with sync.preview() as folder:
        assert folder == tmp_path
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"one")]


def test_of_many_exclusive_writers_one_wins(remote: ObjectStore) -> None:
    with ThreadPoolExecutor(6) as pool:
        for number in range(30):
            won = list(pool.map(lambda i, n=number: remote.write(f"x{n}", b"%d" % i, exclusive=True), range(6)))
            assert Counter(won) == {True: 1, False: 5}
            assert remote.read(f"x{number}") == b"%d" % won.index(True)


def test_leases_on_an_object_store(remote: ObjectStore) -> None:
    with ThreadPoolExecutor(6) as pool:
        got = [lease for lease in pool.map(lambda i: acquire(remote, "cell", f"launch {i}"), range(6)) if lease]
    assert len(got) == 1 and held(remote) == {"cell"}
    got[0].release()
    assert held(remote) == set() and acquire(remote, "cell", "later") is not None


def test_what_cannot_be_used_says_so_and_tells_no_secret(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no-such-bucket") as absent:
        check_access(ObjectStore("s3://no-such-bucket/results"))
    assert SECRET not in str(absent.value)
    with pytest.raises(ValueError, match="without credentials in it"):
        ObjectStore("s3://key:secret@bucket/results")
    with pytest.raises(ValueError, match="exclusive writes"):
        ObjectStore("ftp://host/results").write("a", b"", exclusive=True)


@pytest.mark.slow
def test_a_server_that_is_away_is_an_error_within_seconds(tmp_path: Path) -> None:
    script = (
        "from cluster.storage.backend import ObjectStore, check_access\n"
        "try: check_access(ObjectStore('s3://results/x'))\n"
        "except ValueError as error: print('error:', error)"
    )
    env = {
        **environment(),
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=90)
    assert "can't be used" in done.stdout, done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr and time.monotonic() - began < 60
