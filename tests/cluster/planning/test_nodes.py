"""What nodes see: a launch begins only if all of them read and write the same folders."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.planning.nodes import look, wait_for_nodes
from cluster.storage.backend import Backend, Folder
from tests.cluster.test_launch import SCRIPT, environment
from tests.helpers.heads import RAY, free_ports

MARK = ".node-1"


def answers(root: Path, **paths: Path) -> list[str]:
    places: dict[str, Backend] = {"the results": Folder(root)}
    return list(look(places, paths, (), MARK, f"{MARK}-a", patience=0.3).values())


def test_a_node_that_sees_all_answers_where_it_was_asked(tmp_path: Path) -> None:
    (tmp_path / MARK).write_text(MARK)
    assert answers(tmp_path, weights=tmp_path) == []
    assert (tmp_path / f"{MARK}-a").read_bytes() == b"seen"


@pytest.mark.parametrize("left", ["", "of somebody else"])
def test_a_folder_of_the_same_name_is_not_the_same_folder(left: str, tmp_path: Path) -> None:
    if left:
        (tmp_path / MARK).write_text(left)
    (said,) = answers(tmp_path)
    assert said == f"it does not see the results ({tmp_path}) as the driver does"
    assert not (tmp_path / f"{MARK}-a").exists()


def test_what_is_only_read_must_be_there(tmp_path: Path) -> None:
    (tmp_path / MARK).write_text(MARK)
    assert answers(tmp_path, weights=tmp_path / "no") == [f"it has no weights ({tmp_path / 'no'})"]


def test_a_place_that_can_not_be_used_is_a_complaint_and_no_crash(tmp_path: Path) -> None:
    class Broken(Folder):
        def read(self, name: str) -> bytes | None:
            raise PermissionError(13, "Permission denied")

    (said,) = look({"the results": Broken(tmp_path)}, {}, (), MARK, "a", patience=0.3).values()
    assert said == f"it can't use the results ({tmp_path}): [Errno 13] Permission denied"


def test_each_machines_own_folder_must_take_files(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    own = [tmp_path / "new" / "copy", tmp_path / "file" / "copy"]
    (said,) = look({}, {}, own, MARK, "a", patience=0.3).values()
    assert own[0].is_dir() and f"it can't write to {own[1]}" in said


def test_a_launch_waits_for_the_first_node_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [{}, {"CPU": 0.0}, {"CPU": 4.0, "GPU": 1.0}]
    monkeypatch.setattr("ray.cluster_resources", lambda: answers.pop(0) if answers else {})
    wait_for_nodes(patience=60)
    assert capsys.readouterr().out == "no node can run cells yet; waiting up to 1 min for one\n" and not answers
    with pytest.raises(ValueError, match="min_workers: 1, minReplicas: 1"):
        wait_for_nodes(patience=0)


def _may_hide() -> bool:
    """Whether this process may give another one file systems of its own."""
    done = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    return done.returncode == 0


@pytest.fixture
def cluster_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Starts a head and a worker by separate raylets; the worker with a file system of its own over given folders."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    folder, nodes = tempfile.mkdtemp(prefix="dn-", dir="/tmp"), []

    def start(*hidden: Path) -> str:
        ports = free_ports(2)
        common = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats", "--block"]
        commands = [
            [*common, "--head", f"--port={ports[0]}", f"--temp-dir={folder}", "--include-dashboard=false"],
            [*common, f"--address=127.0.0.1:{ports[0]}"],
        ]
        covers = "".join(f"mount -t tmpfs none {path} && " for path in hidden)
        for number, words in enumerate(commands):
            command = [str(RAY), "start", "--node-ip-address=127.0.0.1", *words]
            if number and hidden:
                command = ["unshare", "--mount", "sh", "-c", f'{covers}exec "$@"', "sh", *command]
            log = (tmp_path / f"ray{number}.log").open("w")
            nodes.append(subprocess.Popen(command, stdout=log, stderr=log, env=_environment(), start_new_session=True))
            if not number:
                _wait_for(tmp_path / "ray0.log", "Ray runtime started")
        _wait_for(tmp_path / "ray1.log", "Ray runtime started")
        return f"127.0.0.1:{ports[0]}"

    yield start
    for node in nodes:
        os.killpg(node.pid, 9)
        node.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _environment() -> dict[str, str]:
    return {**environment(), "PYTHONPATH": str(Path(__file__).resolve().parents[3])}


def _wait_for(log: Path, words: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while words not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.5)


def run(results: Path, address: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--results", str(results), *more],
        env={**_environment(), "RAY_ADDRESS": address}, cwd=results.parent, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


@pytest.mark.ray
def test_a_launch_on_two_nodes_begins_only_if_both_see_the_results(
    cluster_of_two: Callable[..., str], tmp_path: Path
) -> None:
    seen = tmp_path / "seen" / "results"
    blind = tmp_path / "blind" / "results"
    own = tmp_path / "own"
    for folder in (seen, blind, own):
        folder.mkdir(parents=True)
    address = cluster_of_two(*([blind, own] if _may_hide() else []))
    done = run(seen, address, "--features", str(own))
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(seen.glob(".node-*"))
    warning = f"it does not see the feature cache ({own}) as the driver does; it computes what others have encoded"
    assert (warning in done.stderr) == _may_hide(), done.stderr
    if not _may_hide():
        return
    refused = run(blind, address)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "1 of 2 nodes can't take part" in refused.stderr
    assert f"it does not see the results ({blind}) as the driver does" in refused.stderr
    assert "Traceback" not in refused.stderr and not list(blind.glob("*/result.json"))
