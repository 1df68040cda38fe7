"""What the platform costs where the work costs nothing: running, planning and reading many cells.

    python benchmarks/overhead.py [--cells 500] [--planned 100000] [--read 10000]

Runs no-op cells through the whole path (plan, Ray Tune, store, MLflow), with one and with two workers; plans a grid of
which half is finished; reads finished cells into a data frame. Nothing is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.results import load_results
from cluster.cli import GridOptions, Study, run
from cluster.code_version import code_hash
from cluster.options import Count
from cluster.planning.plan import make_plan, render
from cluster.storage.atomic import now
from cluster.storage.layout import RESULT
from cluster.storage.results import Store, cell_document
from diffup.config import InputConfig, SampleConfig
from diffup.grid.cell import AnyCell, Cell

BASE = Cell(
    dataset="fake", fold=0, shots=1, annotation="mask", backbone="resnet18", weights="random:0", variant="prior_mean",
    input=InputConfig(input_size=32, feature_grid=8), sample=SampleConfig(method="prior_mean"), episodes=20,
)  # fmt: skip
BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101")


def cells(count: int) -> list[AnyCell]:
    """So many different cells."""
    return [
        dataclasses.replace(
            BASE, fold=i % 4, backbone=BACKBONES[i // 4 % 4], shots=1 + i // 16 % 5, episode_seed=i // 80
        )
        for i in range(count)
    ]


def finish(store: Store, cell: Cell, like: Path | None) -> Path:
    """A finished cell; `like` another one but for its identity, which is quicker than writing it."""
    key = cell.key()
    if like is None:
        rows = range(cell.episodes)
        table = pd.DataFrame(
            {
                "episode": rows, "class_id": 0, "class_name": "a", "query": [f"image {i}" for i in rows],
                "inter_fg": 1, "union_fg": 2, "inter_bg": 3, "union_bg": 4, "seconds": 0.1,
            }
        )  # fmt: skip
        made_by = {"code_hash": code_hash(), "git_commit": "", "manifest_hash": "0" * 12}
        store.write_result(
            cell,
            metrics={"miou": 50.0, "fb_iou": 62.5, "seconds": 1.0},
            provenance=made_by,
            started=now(),
            episodes=table,
        )
        return store.folder(key)
    from cluster.storage.atomic import to_json
    from cluster.storage.record import checksum

    folder = store.folder(key)
    folder.mkdir(parents=True)
    (folder / "cell.json").write_bytes(to_json(cell_document(cell)))
    shutil.copyfile(like / "episodes.parquet", folder / "episodes.parquet")
    import json

    document = json.loads((like / RESULT).read_bytes())
    document.pop("checksum")
    document["key"] = key
    (folder / RESULT).write_bytes(to_json({**document, "checksum": checksum(document)}))
    return folder


def no_ops(count: int, workers: int) -> str:
    """Run `count` cells that cost nothing in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, str(Path(__file__).resolve()), "--launch", "--results", f"{folder}/results", "--cells",
            str(count), "--max-concurrent", str(workers),
        ]  # fmt: skip
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - began
        finished = len(list(Path(folder, "results").glob(f"*/{RESULT}")))
        assert finished == count, finished
    each = wall * workers / count
    return f"{count} no-op cells, {workers} workers: {wall:.0f} s in all, {each:.2f} s per cell and worker (bar 0.8)"


def planning(count: int) -> str:
    """Plan `count` cells of which half are finished."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        asked = cells(count)
        like = None
        for cell in asked[::2]:
            assert isinstance(cell, Cell)
            made = finish(store, cell, like)
            like = like or made
        asked = cells(count)  # without the keys that were asked for
        began = time.perf_counter()
        plan = make_plan(asked, store)
        render(plan, "fake", workers=64)
        took = time.perf_counter() - began
        assert len(plan.todo) == count // 2, len(plan.todo)
    return f"planning {count} cells, half of them finished: {took:.1f} s (bar 10)"


def reading(count: int) -> str:
    """Read `count` finished cells into a data frame."""
    with tempfile.TemporaryDirectory() as folder:
        store, like = Store(Path(folder)), None
        for cell in cells(count):
            assert isinstance(cell, Cell)
            made = finish(store, cell, like)
            like = like or made
        began = time.perf_counter()
        found = load_results(Path(folder))
        took = time.perf_counter() - began
        assert len(found.cells) == count and (found.cells["status"] == "finished").all(), found.warnings[:2]
    return f"reading {count} finished cells of {BASE.episodes} episodes into a data frame: {took:.1f} s (bar 10)"


@dataclass(frozen=True, kw_only=True)
class NoOps(GridOptions):
    """Options of the grid of `no_ops`."""

    episodes: Count = 20
    cells: int = 500


def launch(argv: Sequence[str]) -> int:
    """The grid script of `no_ops`."""
    from tests.helpers.fake_work import WORK

    files = {"fake": Path("/nowhere/dataset.json")}
    study = Study(
        name="noop", description="", options=NoOps, build=lambda asked: (cells(asked.cells), files), work=WORK
    )
    return run(study, argv)


def main() -> int:
    """Print all figures."""
    if "--launch" in sys.argv:
        return launch([argument for argument in sys.argv[1:] if argument != "--launch"])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=500)
    parser.add_argument("--planned", type=int, default=100_000)
    parser.add_argument("--read", type=int, default=10_000)
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, code {code_hash()}")
    print(planning(args.planned), flush=True)
    print(reading(args.read), flush=True)
    for workers in (1, 2):
        print(no_ops(args.cells, workers), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
