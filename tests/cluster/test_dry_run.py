"""A dry run writes nowhere: not to an object store, not to this machine's copy of one, not to a folder of results."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cluster.storage.backend import ObjectStore, RemoteError, check_access
from cluster.storage.results import Store
from cluster.storage.sync import Sync, copy_folder
from tests.cluster.planning.test_plan import finish
from tests.helpers.fake_grid import grid
from tests.helpers.object_store import arguments, machine


def state(root: Path) -> dict[str, tuple[int, int]]:
    """Size and time of all below a folder, without what libraries leave in the folder of temporary files."""
    found = {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in root.rglob("*")}
    return {str(path): facts for path, facts in found.items() if path.relative_to(root).parts[0] != "tmp"}


def dry(remote: ObjectStore, tmp_path: Path, name: str, *more: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "tmp").mkdir()
    env = machine(tmp_path, name) | {"TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run(
        arguments(remote.uri, "--dry-run", *more), env=env, capture_output=True, text=True, timeout=120
    )
    assert not list((tmp_path / "tmp").glob("diffup*"))
    return done


@pytest.mark.slow
def test_a_dry_run_reads_an_object_store_and_writes_nothing(remote: ObjectStore, tmp_path: Path) -> None:
    cells = grid(("diffup",), 16)
    source = Store(tmp_path / "made")
    for cell in cells[1:4]:
        finish(source, cell)
        Sync(source.root, remote.uri).push(cell.key())
    remote.write(f"{cells[4].key()}/error.json", b'{"error": "it failed"}')
    before, outside = remote.entries(), state(tmp_path)
    done = dry(remote, tmp_path, "one")
    assert done.returncode == 0, done.stderr
    assert "7 cells, 3 finished, 3 to do (1 training, 2 evaluation), 1 failed" in done.stdout
    assert remote.entries() == before
    assert state(tmp_path) == outside  # no copy, no home, and the temporary folder is gone


@pytest.mark.slow
def test_a_dry_run_leaves_the_copy_as_it_is_and_counts_what_only_it_has(
    remote: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFUP_CACHE", str(tmp_path / "one"))
    here = Store(copy_folder(remote.uri), remote.uri)
    cells = grid(("diffup",), 16)
    source = Store(tmp_path / "made")
    finish(source, cells[1])
    Sync(source.root, remote.uri).push(cells[1].key())
    here.update()
    finish(here, cells[2])  # and the process was killed before it could say so
    finish(source, cells[3])
    Sync(source.root, remote.uri).push(cells[3].key())
    before, outside = remote.entries(), state(tmp_path)
    done = dry(remote, tmp_path, "one")
    assert done.returncode == 0 and "7 cells, 3 finished, 4 to do" in done.stdout, done.stdout + done.stderr
    assert remote.entries() == before and state(tmp_path) == outside


@pytest.mark.slow
def test_a_dry_run_works_with_results_that_can_only_be_read(tmp_path: Path) -> None:
    results = tmp_path / "results"
    finish(Store(results), grid(("diffup",), 16)[1])
    for folder in (results, *(path for path in results.rglob("*") if path.is_dir())):
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    before = state(tmp_path)
    try:
        done = subprocess.run(
            arguments(str(results), "--dry-run"), env=machine(tmp_path, "one"), capture_output=True, text=True
        )
        assert done.returncode == 0 and "7 cells, 1 finished" in done.stdout, done.stderr
        assert state(tmp_path) == before
    finally:
        for path in (results, *results.rglob("*")):
            path.chmod(0o755)


@pytest.mark.slow
def test_a_dry_run_on_an_object_store_that_is_away_says_so(tmp_path: Path, endpoint: str) -> None:
    env = machine(tmp_path, "one") | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    done = subprocess.run(arguments("s3://results/x", "--dry-run"), env=env, capture_output=True, text=True, timeout=90)
    assert done.returncode == 2 and "error: results s3://results/x can't be read" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "one").exists()


@pytest.mark.parametrize("broken", ["second write", "entries", "no entry", "read", "other content", "delete once"])
def test_a_probe_is_removed_whatever_fails(broken: str, remote: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real: dict[str, Any] = {name: getattr(ObjectStore, name) for name in ("write", "entries", "read", "delete")}
    calls = {"write": 0, "delete": 0}

    def write(self: ObjectStore, name: str, content: bytes, *, exclusive: bool = False) -> bool:
        calls["write"] += 1
        if broken == "second write" and calls["write"] == 2:
            return bool(real["write"](self, name, content))  # not conditional
        return bool(real["write"](self, name, content, exclusive=exclusive))

    def entries(self: ObjectStore, prefix: str = "") -> Any:
        if broken == "entries":
            raise RemoteError("AccessDenied")
        return {} if broken == "no entry" else real["entries"](self, prefix)

    def read(self: ObjectStore, name: str) -> bytes | None:
        if broken == "read":
            raise RemoteError("AccessDenied")
        return b"?" if broken == "other content" else real["read"](self, name)

    def delete(self: ObjectStore, name: str) -> None:
        calls["delete"] += 1
        if broken == "delete once" and calls["delete"] == 1:
            raise RemoteError("SlowDown")
        real["delete"](self, name)

    with monkeypatch.context() as patch:
        for method in (write, entries, read, delete):
            patch.setattr(ObjectStore, method.__name__, method)
        with pytest.raises(ValueError, match=r"can't be used|does not"):
            check_access(remote)
    assert remote.entries() == {}
