"""A place in an object store: reading, exclusive writing, leases, and errors that say what to do."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.storage.leases import acquire, held
from cluster.storage.remote import RemotePlace, check_access
from tests.cluster.test_launch import environment
from tests.helpers.object_store import SECRET


def test_reading_writing_listing_and_deleting(place: RemotePlace) -> None:
    check_access(place)
    assert place.read("a/b") is None and place.names() == {} and place.ages("") == {}
    assert place.write("a/b", b"one") and place.read("a/b") == b"one"
    assert not place.write("a/b", b"two", exclusive=True) and place.read("a/b") == b"one"
    assert place.write("a/b", b"two") and place.read("a/b") == b"two"
    assert place.write("c", b"")
    assert {name: facts.bytes for name, facts in place.names().items()} == {"a/b": 3, "c": 0}
    assert list(place.names("a/")) == ["a/b"]
    ages = place.ages("")
    assert set(ages) == {"a/b", "c"} and all(-1.5 < age < 60 for age in ages.values())
    place.delete("c")
    place.delete("c")
    assert list(place.names()) == ["a/b"]


def test_of_many_exclusive_writers_one_wins(place: RemotePlace) -> None:
    with ThreadPoolExecutor(6) as pool:
        for number in range(30):
            won = list(pool.map(lambda i, n=number: place.write(f"x{n}", b"%d" % i, exclusive=True), range(6)))
            assert Counter(won) == {True: 1, False: 5}
            assert place.read(f"x{number}") == b"%d" % won.index(True)


def test_leases_on_an_object_store(place: RemotePlace) -> None:
    with ThreadPoolExecutor(6) as pool:
        got = [lease for lease in pool.map(lambda i: acquire(place, "cell", f"launch {i}"), range(6)) if lease]
    assert len(got) == 1 and held(place) == {"cell"}
    got[0].release()
    assert held(place) == set() and acquire(place, "cell", "later") is not None


def test_what_cannot_be_used_says_so_and_tells_no_secret(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no-such-bucket") as absent:
        check_access(RemotePlace("s3://no-such-bucket/results"))
    assert SECRET not in str(absent.value)
    with pytest.raises(ValueError, match="without credentials in it"):
        RemotePlace("s3://key:secret@bucket/results")
    with pytest.raises(ValueError, match="exclusive writes"):
        RemotePlace("ftp://host/results").write("a", b"", exclusive=True)


def test_a_server_that_is_away_is_an_error_within_seconds(tmp_path: Path) -> None:
    script = (
        "from cluster.storage.remote import RemotePlace, check_access\n"
        "try: check_access(RemotePlace('s3://results/x'))\n"
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
