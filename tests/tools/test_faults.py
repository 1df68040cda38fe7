"""The harness of faults itself, without root: one worker and one driver killed on a Ray of two raylets."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from tools.faults.__main__ import add_record, kinds, main, read_records
from tools.faults.lab import BASE, PREFIX
from tools.faults.rounds import AGAIN, FIRST
from tools.faults.verify import counts_hash

pytestmark = pytest.mark.tools


def test_a_killed_worker_and_a_killed_driver_lose_nothing(tmp_path: Path) -> None:
    before = set(BASE.glob(f"{PREFIX}*"))
    out = tmp_path / "out"
    command = ["--out", str(out), "--rounds", "1", "--kinds", "worker,driver", "--no-root"]
    command += ["--select", "variant=diffup,backbone=resnet18", "--workers", "1"]  # 6 cells
    assert main(command) == 0
    records = {record["kind"]: record for record in read_records(out / "faults.jsonl")}
    assert records["worker"]["target"].startswith("ray::CellTrial")
    assert records["worker"]["outcome"] in (FIRST, AGAIN)
    assert records["driver"]["codes"] == [-9, 0]
    assert records["driver"]["outcome"] == AGAIN
    assert all(record["problems"] == [] for record in records.values())
    assert set(BASE.glob(f"{PREFIX}*")) <= before  # nodes, server and folders are gone
    table = (out / "faults.md").read_text()
    assert "| SIGKILL of the driver | 1 | 0 | 1 | 0 | 0 | 2 |" in table
    assert main(command) == 0  # all is done: no cluster is started
    assert len(read_records(out / "faults.jsonl")) == 2


def test_kinds_have_a_number_of_their_own() -> None:
    assert kinds("worker,raylet:5", 20) == {"worker": 20, "raylet": 5}
    with pytest.raises(ValueError, match="'earthquake' is none of worker"):
        kinds("earthquake", 1)


def test_a_record_that_was_cut_off_counts_as_not_done(tmp_path: Path) -> None:
    path = tmp_path / "faults.jsonl"
    path.write_text(json.dumps({"id": "worker-0-000"}) + '\n{"id": "driv')
    add_record(path, {"id": "driver-0-000"})
    assert [record["id"] for record in read_records(path)] == ["worker-0-000", "driver-0-000"]


def test_counts_differ_by_a_single_pixel_but_not_by_the_clock(tmp_path: Path) -> None:
    hashes = []
    for name, inter, seconds in (("a", 7, 0.5), ("b", 7, 0.9), ("c", 8, 0.5)):
        (tmp_path / name / "key").mkdir(parents=True)
        table = pd.DataFrame({"episode": [0, 1], "inter_fg": [3, inter], "seconds": [0.1, seconds]})
        table.to_parquet(tmp_path / name / "key" / "episodes.parquet", index=False)
        hashes.append(counts_hash(tmp_path / name, ["key"]))
    assert hashes[0] == hashes[1] != hashes[2]
