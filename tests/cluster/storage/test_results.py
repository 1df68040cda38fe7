"""The result store: a cell is finished or it isn't, whatever is killed, cut short or flipped."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.code_version import code_hash
from cluster.storage import atomic as files
from cluster.storage.layout import ERROR, IDENTITY, RESULT
from cluster.storage.record import Record
from cluster.storage.results import Store
from diffup.config import SampleConfig
from diffup.grid.cell import Cell, TrainingCell

CELL = Cell(
    dataset="shapes4i", fold=0, shots=1, annotation="mask", backbone="tiny_resnet", weights="random:0",
    sample=SampleConfig(method="prior_mean"), episodes=3,
)  # fmt: skip
TRAINING = TrainingCell(dataset="shapes4i", fold=0, backbone="tiny_resnet", weights="random:0")
EPISODES = pd.DataFrame({"episode": [0, 1, 2], "inter_fg": [1, 2, 3], "union_fg": [4, 5, 6]})


def finish(store: Store, metrics: dict[str, float] | None = None) -> bool:
    metrics, provenance = metrics or {"miou": 50.0}, {"code_hash": code_hash()}
    return store.write_result(CELL, metrics=metrics, provenance=provenance, started=files.now(), episodes=EPISODES)


def test_finished_cell_reads_back(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.read(CELL.key()).status == "missing"
    assert finish(store)
    record = store.read(CELL.key())
    assert (record.status, record.metrics) == ("finished", {"miou": 50.0})
    assert pd.read_parquet(tmp_path / CELL.key() / "episodes.parquet").equals(EPISODES)
    assert list(store.cell_keys()) == [CELL.key()]
    assert store.read_cell(CELL.key())["key"] == CELL.key()
    assert not list(tmp_path.rglob("*.part"))


def test_result_is_written_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert finish(store)
    before = (tmp_path / CELL.key() / RESULT).read_bytes()
    assert not finish(store, {"miou": 1.0})
    assert (tmp_path / CELL.key() / RESULT).read_bytes() == before


def test_failure_counts_attempts_and_gives_way_to_success(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.write_error(CELL, "ValueError: x", "trace") == 1
    assert store.write_error(CELL, "ValueError: y", "trace") == 2
    record = store.read(CELL.key())
    assert (record.status, record.result["error"]) == ("failed", "ValueError: y")
    finish(store)
    assert store.read(CELL.key()).status == "finished"
    assert not (tmp_path / CELL.key() / ERROR).exists()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([RESULT, "episodes.parquet"]), data=st.data())
def test_any_damage_is_noticed(tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    """A file that is cut short, emptied or has one bit flipped never passes for a finished cell's."""
    store = Store(tmp_path_factory.mktemp("store"))
    finish(store)
    path = store.folder(CELL.key()) / name
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), "cut"):
        # The last byte of JSON is a line break, which carries nothing.
        damaged = bytes(content[: data.draw(st.integers(0, len(content) - 2), "length")])
    else:
        place = data.draw(st.integers(0, len(content) - 1), "place")
        content[place] ^= 1 << data.draw(st.integers(0, 7), "bit")
        damaged = bytes(content)
    key = path.read_bytes().find(b'"checksum"')
    path.write_bytes(damaged)
    record = store.read(CELL.key())
    if name == RESULT and record.status == "finished":
        # Only the word "checksum" and white space can change unseen.
        assert record.result["metrics"] == {"miou": 50.0}
        assert b'"checksum"' not in damaged[key : key + 10] or damaged.split() == path.read_bytes().split()
    else:
        assert record.status == "damaged"
        assert str(store.folder(CELL.key())) in record.why


def test_missing_episodes_are_noticed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    finish(store)
    (tmp_path / CELL.key() / "episodes.parquet").unlink()
    assert store.read(CELL.key()).status == "damaged"


def test_a_file_that_cant_be_read_now_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a file server that is away is raised, so that nothing is deleted and computed again."""
    store = Store(tmp_path)
    finish(store)
    honest = Path.read_bytes

    def away(path: Path) -> bytes:
        if path.name == "episodes.parquet":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return honest(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", away)
        with pytest.raises(OSError, match=r"Input/output error.*episodes\.parquet"):
            store.read(CELL.key())
    assert store.read(CELL.key()).status == "finished"


def test_a_checkpoint_is_part_of_a_training_cells_result(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = tmp_path / TRAINING.key() / "checkpoint"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    store.write_result(TRAINING, metrics={"loss": 1.0}, provenance={}, started=files.now())
    assert store.read(TRAINING.key()).status == "finished"
    (folder / "model.safetensors").write_bytes(b"weight?")
    assert store.read(TRAINING.key()).status == "damaged"
    store.forget_result(TRAINING.key())
    assert store.read(TRAINING.key()).status == "missing"
    assert (folder / "model.safetensors").exists()


WRITER = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from tests.cluster.storage.test_results import CELL, finish
from cluster.storage.results import Store
root = Path(sys.argv[1])
print("ready", flush=True)
while True:
    finish(Store(root))
    Store(root).forget(CELL.key())
"""


@pytest.mark.slow
def test_sigkill_at_any_moment_leaves_a_finished_cell_or_none(tmp_path: Path) -> None:
    code = WRITER.format(path=[str(Path(__file__).resolve().parents[3])])
    seen = set()
    for round_number in range(5):
        root = tmp_path / str(round_number)
        root.mkdir()
        process = subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.02 + 0.02 * round_number)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        store = Store(root)
        status = store.read(CELL.key()).status
        assert status in ("finished", "missing")
        seen.add(status)
        finish(store)  # and the next launch is not disturbed by what is left
        assert store.read(CELL.key()).status == "finished"
    assert seen


def test_forced_cells_are_forgotten_with_all_they_hold(tmp_path: Path) -> None:
    store = Store(tmp_path)
    finish(store)
    store.forget(CELL.key())
    assert store.read(CELL.key()).status == "missing"
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_loads_other_weights_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.pin_weights("resnet50", "hub", "aaaa")
    store.pin_weights("resnet50", "hub", "aaaa")
    store.pin_weights("resnet50", "sha256:1", "bbbb")
    with pytest.raises(ValueError, match=r"'resnet50' with weights 'hub' loaded cccc.*made with aaaa"):
        store.pin_weights("resnet50", "hub", "cccc")


def test_a_results_directory_that_can_not_be_written_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"is not writable .*--results"):
        Store(tmp_path / "file" / "results").make_writable()


def test_a_store_has_an_id_that_moves_with_it(tmp_path: Path) -> None:
    first, second = Store(tmp_path / "a"), Store(tmp_path / "b")
    identity = first.identity()
    assert first.identity() == identity != second.identity()
    first.root.rename(tmp_path / "c")
    assert Store(tmp_path / "c").identity() == identity != first.identity()
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(Store.identity, [Store(tmp_path / "d")] * 8))) == 1
    (second.root / IDENTITY).write_text("{}")
    with pytest.raises(ValueError, match=r"store\.json can't be read"):
        second.identity()


def test_logged_once_per_tracking_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    finish(store)
    assert not store.logged(CELL.key(), "sqlite:///a.db")
    store.mark_logged(CELL.key(), "sqlite:///a.db", "run")
    assert store.logged(CELL.key(), "sqlite:///a.db")
    assert not store.logged(CELL.key(), "sqlite:///b.db")


def test_undefined_figures_are_absent_with_their_reason(tmp_path: Path) -> None:
    """``result.json`` is JSON, and its checksum holds."""
    store = Store(tmp_path)
    metrics = {"miou": float("nan"), "fb_iou": 40.0, "loss": float("inf")}
    store.write_result(
        CELL, metrics=metrics, provenance={"cost": {"gflops": float("nan")}}, started=files.now(), episodes=EPISODES,
        undefined={"miou": "no episode of heron"},
    )  # fmt: skip
    text = (store.folder(CELL.key()) / "result.json").read_text()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    written = json.loads(text, parse_constant=refuse)
    assert written["metrics"] == {"fb_iou": 40.0}
    assert written["undefined"] == {"miou": "no episode of heron", "loss": "it came out as no finite number"}
    assert written["provenance"] == {"cost": {"gflops": None}}
    record = store.read(CELL.key())
    assert (record.status, record.metrics, record.undefined) == ("finished", {"fb_iou": 40.0}, written["undefined"])


def test_results_of_earlier_versions_with_nan_are_read(tmp_path: Path) -> None:
    """As they were written, checksum and all."""
    store = Store(tmp_path)
    finish(store)
    path = store.folder(CELL.key()) / "result.json"
    document = json.loads(path.read_bytes())
    del document["checksum"]
    document["metrics"]["fb_iou"] = float("nan")
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    checksum = hashlib.sha256(text.encode()).hexdigest()[:12]
    path.write_text(json.dumps({**document, "checksum": checksum}, indent=1, sort_keys=True) + "\n")
    assert "NaN" in path.read_text()
    record = store.read(CELL.key())
    assert (record.status, record.metrics) == ("finished", {"miou": 50.0})
    assert record.undefined == {"fb_iou": "it came out as no finite number"}


JSON = st.recursive(
    st.none() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_whatever_is_written_is_json(value: object) -> None:
    """Read by a reader that knows no NaN, and written again as it was."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = files.to_json({"value": value})
    assert files.to_json(json.loads(text, parse_constant=refuse)) == text


@pytest.mark.parametrize(
    ("metrics", "headline"), [({"miou": 12.34}, "mIoU 12.3"), ({"fb_iou": 40.0}, "mIoU undefined")]
)
def test_a_launch_says_that_a_figure_is_undefined(tmp_path: Path, metrics: dict[str, float], headline: str) -> None:
    """In the line of the cell, and not as a loss that it has not."""
    from cluster.execution.worker import _finished

    record = Record(key=CELL.key(), status="finished", result={"metrics": metrics})
    assert _finished(CELL.key(), record, Store(tmp_path), CELL, None)["headline"] == headline
