"""The harness of faults itself, without root: one worker and one driver killed on a Ray of two raylets."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from cluster.execution.context import WorkContext
from cluster.execution.work_units import WorkUnit
from cluster.execution.worker import in_one_pass, run_units
from diffup.grid.axes import PRIOR_MEAN, Backbone, evaluation_cells, tasks
from tools.faults.__main__ import add_record, kinds, main, read_records
from tools.faults.grid import DATA, INPUT
from tools.faults.grids import Place
from tools.faults.lab import BASE, PREFIX
from tools.faults.rounds import AGAIN, FIRST
from tools.faults.verify import counts_hash, lost, repeated
from tools.faults.work import LOG, RAISES, WORK

pytestmark = pytest.mark.tools


def test_a_killed_worker_and_a_killed_driver_lose_nothing(tmp_path: Path) -> None:
    before = set(BASE.glob(f"{PREFIX}*"))
    out = tmp_path / "out"
    command = ["--out", str(out), "--rounds", "1", "--kinds", "worker,driver", "--no-root", "--fused"]
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


def test_a_cell_that_raises_in_the_middle_of_a_pass_fails_alone(tmp_path: Path) -> None:
    backbone = [Backbone(name="resnet18", weights="random:0")]
    of = partial(evaluation_cells, DATA, 0, backbone, tasks((1, 5), ("mask",)), config=INPUT, episodes=8)
    good, bad = of(sample=PRIOR_MEAN), of(sample=PRIOR_MEAN, variant=RAISES)
    context = WorkContext(
        results=tmp_path / "results", datasets={DATA.name: str(tmp_path / "dataset.json")}, cache="none", batch_size=4,
        work=WORK,
    )  # fmt: skip
    units = [WorkUnit(cell) for cell in [*good, *bad]]
    assert in_one_pass(units, context)
    ended = [(unit.cell, outcome["status"]) for unit, outcome in run_units(units, context)]
    assert ended == [(cell, "failed") for cell in bad] + [(cell, "finished") for cell in good]
    place = Place(lab=None, grid=None, name="", folder=tmp_path, results=context.results)  # type: ignore[arg-type]
    assert sorted(place.results_now()) == sorted(cell.key() for cell in good)
    assert lost(place, ()) == 0 and not repeated(place, [], ())


def test_what_begins_again_after_it_was_kept_is_found(tmp_path: Path) -> None:
    place = Place(lab=None, grid=None, name="", folder=tmp_path, results=tmp_path / "results")  # type: ignore[arg-type]
    for path in (place.results / "a" / "result.json", place.results / "b" / "parts" / "20-40.json"):
        path.parent.mkdir(parents=True)
        path.touch()
    kept = place.results_now() | place.parts_now()
    assert set(kept) == {"a", "b@20"}
    after = max(kept.values()) + 10**9
    log = tmp_path / LOG
    log.write_text("".join(f"{unit} 1 host start 5\n" for unit in ("a", "b@0", "b@20")) + f"b@0 1 host start {after}\n")
    assert repeated(place, [kept], ()) == [] and lost(place, ()) == 1
    with log.open("a") as more:
        more.write(f"a@0 1 host start {after}\nb@20 1 host start {after}\n")
    assert [problem.split(" s after ")[1] for problem in repeated(place, [kept], ())] == [
        "a was finished",
        "b@20 was finished",
    ]
    assert len(repeated(place, [kept], ["a"])) == 1 and lost(place, ["b"]) == 0


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
