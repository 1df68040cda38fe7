"""The stage before the trials costs time only, and never hides why: storage is a warning, a bug shows its traceback."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.__main__ import main as command
from cluster.execution import inputs as opened
from cluster.execution.context import WorkContext
from cluster.precompute import pipeline, stage
from cluster.precompute.pipeline import PrecomputeWorker, Report, bytes_held, run_pipeline, storage_problem
from cluster.precompute.tasks import inputs_of, missing
from cluster.storage import feature_cache as stores
from cluster.storage.backend import RemoteError
from cluster.storage.sync import Sync
from diffup.errors import REPORT, UserError
from diffup.evaluation.shards import ShardStore
from diffup.grid.cell import cell_from_dict, cell_to_dict
from tests.cluster.precompute.test_pipeline import cells, context
from tests.helpers.toy import ToyDataset

pytestmark = pytest.mark.usefixtures("one_thread", "toy")
ANY: Any = None


def prepared(monkeypatch: pytest.MonkeyPatch, error: Exception) -> dict[str, Any]:
    def failing(*args: object, **more: object) -> Report:
        raise error

    monkeypatch.setattr(stage, "run_stage", failing)
    return stage.precompute(ANY, ANY, ANY, lambda: False)


@pytest.mark.parametrize(
    "error", [TypeError("a bug"), ValueError("operands could not be broadcast"), KeyError("x"), FileNotFoundError("x")]
)
def test_a_bug_shows_its_traceback_once_and_the_cells_go_on(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepared(monkeypatch, error)["error"] == f"{type(error).__name__}: {error}"
    shown = capsys.readouterr().err
    assert shown.count("Traceback (most recent call last)") == 1 and "in failing" in shown
    assert "cells compute what they read themselves" in shown and REPORT in shown


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EACCES, "Permission denied"),
        RemoteError("the object store does not answer"),
        UserError("the store.json is damaged"),
    ],
)
def test_storage_is_a_warning(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(monkeypatch, error)
    shown = capsys.readouterr().err
    assert shown.startswith("warning: features are not in shards") and str(error) in shown
    assert "Traceback" not in shown and REPORT not in shown


def test_what_is_a_storage_problem() -> None:
    assert storage_problem(OSError(errno.EIO, "x")) and storage_problem(RemoteError("x"))
    assert not any(map(storage_problem, (ValueError("x"), FileNotFoundError(errno.ENOENT, "x"), KeyboardInterrupt())))


def test_cells_that_cant_be_read_are_counted_with_their_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = cells()
    assert inputs_of(grid, context(tmp_path))
    changed = ToyDataset()
    changed.fingerprint = "another data"
    monkeypatch.setattr(opened, "_open", lambda path: changed)
    told: list[str] = []
    assert inputs_of(grid, context(tmp_path), told.append) == []
    (warning,) = told
    assert warning.startswith(f"{len(grid)} cells") and "has changed" in warning


def test_a_bug_in_reading_cells_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "_open", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        inputs_of(cells(), context(tmp_path))


def worker(root: Path, *, remote: str = "") -> tuple[PrecomputeWorker, dict[str, Any]]:
    """A worker, and its first task."""
    (root / "features").mkdir(exist_ok=True)
    found = missing(inputs_of(cells(), context(root)), Sync(root / "features"))
    return PrecomputeWorker(replace(context(root), remote=remote), 10**9), next(found[0].tasks())


@pytest.mark.parametrize(
    ("error", "full", "has_traceback", "word"),
    [
        (ValueError("shape mismatch"), 0, True, "ValueError: shape mismatch"),
        (FileNotFoundError(errno.ENOENT, "gone"), 0, True, "gone"),
        (UserError("image 7 can't be read"), 0, False, "image 7 can't be read"),
        (OSError(errno.EIO, "Input/output error"), 0, False, "storage unavailable"),
        (OSError(errno.ENOSPC, "No space left"), 1, False, ""),
    ],
)
def test_a_worker_tells_bugs_from_bad_images_and_bad_storage(
    error: Exception, full: int, has_traceback: bool, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, task = worker(tmp_path)

    def failing(*args: object) -> dict[str, Any]:
        raise error

    monkeypatch.setattr(made, "_encode", failing)
    done = json.loads(json.dumps(made.do(task)))
    assert (done["full"] > 0, "traceback" in done) == (bool(full), has_traceback)
    assert word in "".join(done["failed"].values()) and bool(done["failed"]) is bool(word)
    if has_traceback:
        assert "in failing" in done["traceback"]


def test_a_stage_keeps_the_first_traceback_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"kind": stores.VISUAL, "made": 0, "seconds": 0.0, "bytes": 0, "failed": {}, "full": 0}
    rows = [{**row, "traceback": "first"}, {**row, "traceback": "second"}, {**row, "unshared": "no answer"}, row]
    monkeypatch.setattr(pipeline, "_stream", lambda tasks, *more: iter(rows if tasks else []))
    found = missing(inputs_of(cells(), context(tmp_path)), Sync(tmp_path / "features"))
    report = run_pipeline(
        [part for part in found if part.encodes], ANY, workers=1, resources={}, limit_bytes=1, say=print
    )
    assert (report.bugs, report.traceback, report.unshared.total()) == (2, "first", 1)
    assert report.to_dict()["bugs"] == 2


def test_a_shard_that_the_object_store_does_not_take_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: object) -> None:
        raise RemoteError("the object store does not answer")

    monkeypatch.setattr(pipeline, "push", failing)
    monkeypatch.setattr(opened, "pull", lambda *args: 0)
    made, task = worker(tmp_path, remote="memory://bucket")
    done = made.do(task)
    assert done["made"] and "does not answer" in done["unshared"]


def test_a_worker_warns_of_shards_that_it_can_not_bring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*args: object) -> None:
        raise RemoteError("the object store does not answer")

    monkeypatch.setattr(opened, "pull", failing)
    monkeypatch.setattr(opened, "_downloaded", set())
    (part, *_) = inputs_of(cells(), context(tmp_path))
    remote = WorkContext(results=tmp_path, datasets={}, features=tmp_path, remote="memory://bucket")
    for _ in range(2):
        opened.download(remote, part.spec)
    assert capsys.readouterr().err.count("does not answer") == 1


def test_shards_that_vanish_while_they_are_counted_do_no_harm(tmp_path: Path) -> None:
    ShardStore(tmp_path / "features-x").write(["a"], {"x": torch.zeros(1, 3)})
    (tmp_path / "features-x" / "gone.safetensors").symlink_to("nowhere")
    assert bytes_held(tmp_path) > 0


def test_a_process_keeps_a_bounded_number_of_stores_open(tmp_path: Path) -> None:
    first = stores._opened(tmp_path / "0")
    assert stores._opened(tmp_path / "0") is first
    for i in range(3 * stores.OPEN):
        stores._opened(tmp_path / f"{i}")
    assert len(stores._stores) == stores.OPEN
    assert list(stores._stores)[-1] == tmp_path / f"{3 * stores.OPEN - 1}"


def test_a_bug_in_listing_shards_is_no_users_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "listed", lambda backend: int("no number"))
    with pytest.raises(ValueError, match="invalid literal"):
        command(["cache", "list", str(tmp_path)])


@pytest.mark.parametrize(
    "document", [{"input": "abc"}, {"input": [1]}, {"input": {}}, {"fold": "x"}, {"annotation": 3}]
)
def test_a_malformed_cell_is_a_users_error(document: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        cell_from_dict({**cell_to_dict(cells()[0]), **document})
