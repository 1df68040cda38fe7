"""Shards, parts of cells and training states in an object store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from cluster.__main__ import main as command
from cluster.storage.backend import ObjectStore
from cluster.storage.results import Store
from diffup.grid.cell import Cell
from tests.helpers import fake_grid, fake_work
from tests.helpers.object_store import arguments, lost, machine, ran


def real(uri: str, *more: str) -> list[str]:
    script = Path(__file__).resolve().parents[3] / "experiments" / "quickstart.py"
    chosen = ["--select", "variant=prior_mean,backbone=tiny_resnet", "--episodes", "8", "--max-concurrent", "1"]
    return [sys.executable, str(script), "--results", uri, *chosen, *more]


def stages(remote: ObjectStore) -> list[dict[str, int]]:
    """What each launch's stage has made, in order."""
    notes = [json.loads(content) for _, content in remote.contents(sorted(remote.entries("launches/")))]
    return [note["stage"].get("made", {}) for note in sorted(notes, key=lambda note: str(note["started"]))]


@pytest.mark.ray
def test_shards_are_made_once_for_all_machines(
    remote: ObjectStore, shapes4i: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, *more: str) -> None:
        env = machine(tmp_path, name) | {"DIFFUP_HOME": os.environ["DIFFUP_HOME"]}  # where shapes4i is
        done = subprocess.run(real(remote.uri, *more), env=env, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout + done.stderr

    run("one", "--select", "variant=prior_mean,backbone=tiny_resnet,shots=5")
    run("two")
    first, second = stages(remote)
    assert first["features"] > 0 and first["priors"] > 0
    assert second == {}, "the first support of five is that of one: nothing was new"
    roots = {name: next((tmp_path / name / "results").iterdir()) for name in ("one", "two")}
    made_by_one = {path.name for path in (roots["one"] / "features").rglob("*.safetensors")}
    assert made_by_one == {path.name for path in (roots["two"] / "features").rglob("*.safetensors")}
    store = Store(roots["two"])
    for key in store.cell_keys():
        counts = store.read(key).result["provenance"]
        assert (counts["images_encoded"], counts["priors_computed"]) == (0, 0), key
    assert command(["cache", "list", f"{remote.uri}/features"]) == 0
    listed = capsys.readouterr().out
    rows = [int(line.split()[1]) for line in listed.splitlines() if " rows " in line]
    assert len(rows) == 2 and sum(rows) == first["features"] + first["priors"]
    assert command(["cache", "clean", f"{remote.uri}/features", "--limit", "0"]) == 0
    assert not remote.entries("features/") and "0 B left" in capsys.readouterr().out


@pytest.mark.ray
def test_parts_of_a_cell_are_put_together_from_several_machines(remote: ObjectStore, tmp_path: Path) -> None:
    def parts() -> set[str]:
        named = [name.removesuffix(".json").split("/parts/") for name in remote.entries() if "/parts/" in name]
        return {f"{key}@{part.partition('-')[0]}" for key, part in named if not part.endswith(".parquet")}

    more = ("--variants", "diffup,slow", "--shard-episodes", "8")
    with subprocess.Popen(
        arguments(remote.uri, *more), env=machine(tmp_path, "one"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as driver:
        deadline = time.monotonic() + 120
        while not (known := parts()):
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        lost(driver, tmp_path / "one")
    done = subprocess.run(
        arguments(remote.uri, *more), env=machine(tmp_path, "two"), capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "11 of 11 cells finished" in done.stdout
    times = ran(tmp_path)
    assert {times[name] for name in known} == {1} and len(times) == 1 + 10 * 2  # a training, and halves of cells
    assert not parts()
    assert command(["sync", "pull", remote.uri, str(tmp_path / "pulled")]) == 0
    for cell in fake_grid.grid(("diffup", "slow"), 16):
        if isinstance(cell, Cell):
            pulled = pd.read_parquet(tmp_path / "pulled" / cell.key() / "episodes.parquet")
            pd.testing.assert_frame_equal(pulled, fake_work.counts(cell))


def test_a_training_goes_on_from_the_state_of_a_lost_machine(
    remote: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster.execution import inputs
    from cluster.execution import run_cell as work
    from diffup.training import losses
    from diffup.training import trainer as training
    from tests.helpers import toy_grid, toy_work

    for name in ("_open", "_backbone"):  # toy_work replaces them for good
        monkeypatch.setattr(inputs, name, getattr(inputs, name))
    monkeypatch.setattr(training, "SAVE_EVERY", 1)
    trained, _ = toy_grid.grid()
    calls, honest = [0], losses.step_loss

    def dying(*args: object) -> object:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return honest(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(losses, "step_loss", dying)

    def train(name: str, uri: str) -> bytes:
        options = work.WorkContext(results=tmp_path / name, datasets={"toy": "nowhere"}, remote=uri)
        toy_work.execute(trained, options)
        return (tmp_path / name / trained.key() / "checkpoint" / "model.safetensors").read_bytes()

    with pytest.raises(KeyboardInterrupt):
        train("one", remote.uri)
    assert f"{trained.key()}/checkpoint/state.pt" in remote.entries()
    resumed = train("two", remote.uri)
    assert calls[0] == 3 + 2, "the second machine must go on from step 2"
    assert f"{trained.key()}/checkpoint/state.pt" not in remote.entries()
    assert train("three", "") == resumed
