"""Leases: of any number that ask, one gets it; a dead holder is succeeded, a living one never."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.storage.atomic import write_atomically
from cluster.storage.backend import Folder
from cluster.storage.leases import acquire, held


def age(folder: Folder, name: str, seconds: float) -> None:
    """Make a lease look as if it had not been written for so long, and its holder a process of another machine."""
    path = folder.root / name
    document = {**json.loads(path.read_bytes()), "host": "elsewhere"}
    path.write_text(json.dumps(document))
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_one_of_many_gets_it(tmp_path: Path) -> None:
    for number in range(30):
        barrier = threading.Barrier(8)

        def ask(who: int, name: str = f"cell{number}", barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return acquire(Folder(tmp_path), name, f"launch {who}") is not None

        with ThreadPoolExecutor(8) as pool:
            assert Counter(pool.map(ask, range(8))) == {True: 1, False: 7}


def test_it_is_free_after_release(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    first = acquire(folder, "cell", "a")
    assert first is not None and acquire(folder, "cell", "b") is None and held(folder) == {"cell"}
    first.release()
    assert held(folder) == set()
    assert acquire(folder, "cell", "b") is not None


def test_a_stale_one_is_taken_over_by_one_and_its_holder_learns_of_it(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    first = acquire(folder, "cell", "a", beat=3600)
    assert first is not None
    age(folder, "cell.1", 61)
    assert held(folder) == set()
    with ThreadPoolExecutor(8) as pool:
        asked = pool.map(lambda who: acquire(folder, "cell", f"b{who}", beat=3600), range(8))
        got = [lease for lease in asked if lease]
    assert len(got) == 1 and first.lost() and not got[0].lost()
    first.release()  # the old holder comes back and ends: its successor keeps the lease
    assert held(folder) == {"cell"} and acquire(folder, "cell", "c") is None
    got[0].release()
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_beats_is_never_taken_over(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    lease = acquire(folder, "cell", "a", beat=0.05)
    assert lease is not None
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        assert acquire(folder, "cell", "b", stale=0.6) is None
        time.sleep(0.02)
    lease.release()


def test_a_dead_process_of_this_machine_is_succeeded_at_once(tmp_path: Path) -> None:
    script = (
        "import sys, os; from pathlib import Path\n"
        "from cluster.storage.leases import acquire; from cluster.storage.backend import Folder\n"
        "assert acquire(Folder(Path(sys.argv[1])), 'cell', 'a'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    folder = Folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cell.1"]
    assert held(folder) == set()
    assert acquire(folder, "cell", "b") is not None


def test_a_launch_succeeds_itself(tmp_path: Path) -> None:
    """Its worker on another machine died: it alone hands the cell out again."""
    folder = Folder(tmp_path)
    assert acquire(folder, "cell", "a", beat=3600) is not None
    age(folder, "cell.1", 0)
    assert acquire(folder, "cell", "b") is None
    assert acquire(folder, "cell", "a") is not None


def test_a_damaged_lease_ends_by_itself(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    (tmp_path / "cell.1").write_bytes(b"\xff{")
    assert acquire(folder, "cell", "a") is None
    os.utime(tmp_path / "cell.1", (0, 0))
    assert acquire(folder, "cell", "a") is not None


def test_a_beat_in_flight_does_not_bring_a_released_lease_back(tmp_path: Path) -> None:
    writing, go_on = threading.Event(), threading.Event()

    class SlowFolder(Folder):
        def write(self, name: str, content: bytes, *, exclusive: bool = False) -> bool:
            if not exclusive:  # a beat
                writing.set()
                go_on.wait(10)
            return super().write(name, content, exclusive=exclusive)

    lease = acquire(SlowFolder(tmp_path), "cell", beat=0.01)
    assert lease is not None and writing.wait(10)
    release = threading.Thread(target=lease.release)
    release.start()
    release.join(0.2)  # long enough for a release that waits for nothing
    go_on.set()
    release.join(10)
    time.sleep(0.1)
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS])
def test_of_many_exclusive_writers_one_wins_on_a_file_system_without_hard_links(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    real = os.replace

    def slow(old: Path, new: Path) -> None:  # the time between a look and a rename, in which both won
        time.sleep(0.01)
        real(old, new)

    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr(os, "replace", slow)
    with ThreadPoolExecutor(8) as pool:
        for number in range(10):
            path, barrier = tmp_path / f"{number}.json", threading.Barrier(8)

            def write(who: int, path: Path = path, barrier: threading.Barrier = barrier) -> bool:
                barrier.wait()
                return write_atomically(path, b"%d" % who, exclusive=True)

            won = list(pool.map(write, range(8)))
            assert Counter(won) == {True: 1, False: 7}
            assert path.read_bytes() == b"%d" % won.index(True)
    assert not list(tmp_path.glob("*.part"))


def test_leases_on_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    folder = Folder(tmp_path)
    first = acquire(folder, "cell", "one")
    assert first is not None and acquire(folder, "cell", "two") is None and held(folder) == {"cell"}
    first.release()
    assert held(folder) == set() and acquire(folder, "cell", "two") is not None
