"""The same cells in every way that the platform can run them: are the counts of every episode the same?

    python -m benchmarks.determinism --dataset DIR/dataset.json --weights-dir DIR --trained RESULTS --out DIR

24 cells (3 backbones × 2 folds × 1 and 5 shots × mask and scribble) with finished checkpoints of another results
directory and features in float32: one after the other in one process without Ray or shards; by two workers without
shards of features; with them; and cut into parts of 100 episodes. Then with features in float16, for the difference.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from benchmarks import launches
from cluster.cli import Grid, Study
from cluster.code_version import code_hash
from cluster.options import Count
from cluster.storage.results import Store
from diffup.grid.axes import evaluation_cells, named_backbone, tasks, training_cell
from diffup.grid.cell import AnyCell, Cell
from diffup.grid.datasets import open_data
from diffup.training import recipes

NAME = "determinism"
BACKBONES = ("resnet50", "mobilenetv2_100", "deit_tiny_patch16_224")
FOLDS, KINDS = (0, 1), tasks((1, 5), ("mask", "scribble"))
RECIPE = recipes.msrc15().changed(input={"pixel_dtype": "uint8"})
BATCH = "10"  # parts are then whole batches
HOW = ("--batch-size", BATCH)
COUNTS = ["episode", "class_id", "query", "inter_fg", "union_fg", "inter_bg", "union_bg"]
PARTS = ("--shard-episodes", "20")
WAYS = {  # those without features on disk evaluate cells together, in passes
    "2 workers, features on disk": ("--cache", "features"),
    "2 workers, features on disk, parts of 20": ("--cache", "features", *PARTS),
    "2 workers, pixels on disk": ("--cache", "pixels"),
    "2 workers, pixels on disk, parts of 20": ("--cache", "pixels", *PARTS),
    "2 workers, nothing on disk": ("--cache", "none"),
}


@dataclass(frozen=True, kw_only=True)
class Determinism(launches.BenchmarkOptions):
    """Options of this benchmark."""

    episodes: Count = 40
    dtype: Literal["float16", "float32"] = "float32"
    """of features"""
    steps: Count = RECIPE.train.steps
    """of training"""


def build(args: Determinism) -> Grid:
    """The training cells and the 24 evaluation cells."""
    data = open_data(args.dataset, shots=5)
    backbones = [named_backbone(name, weights_dir=args.run.weights_dir) for name in BACKBONES]
    recipe = RECIPE.changed(train={"steps": args.steps})
    config = dataclasses.replace(RECIPE.input, feature_dtype=args.dtype)
    cells: list[AnyCell] = []
    for fold in FOLDS:
        trained = training_cell(data, fold, backbones[0], recipe)
        cells += [
            trained,
            *evaluation_cells(data, fold, backbones, KINDS, config=config, episodes=args.episodes, trained=trained),
        ]
    return cells, data.files()


def serial(
    args: Determinism, results: Path, cells: Sequence[AnyCell], paths: dict[str, str]
) -> dict[str, pd.DataFrame]:
    """All cells one after the other in this process; kept, so that a second call is quick."""
    from cluster.execution.run_cell import WorkContext, execute

    context = WorkContext(
        results=results, datasets=paths, weights_dir=args.run.weights_dir, batch_size=int(BATCH), threads=1
    )
    tables = {}
    for cell in cells:
        if isinstance(cell, Cell):
            path = results / f"serial-{cell.key()}.parquet"
            if not path.exists():
                table = execute(cell, context).episodes
                assert table is not None
                table.to_parquet(path)
            tables[cell.key()] = pd.read_parquet(path)
    return tables


def benchmark(args: Determinism) -> int:
    """Run in all ways and print what differs; returns 1 if anything does."""
    cells, datasets = build(args)
    evaluated = [cell for cell in cells if isinstance(cell, Cell)]
    print(
        f"{len(evaluated)} cells of {args.episodes} episodes, batches of {BATCH}, 1 thread a worker, code {code_hash()}"
    )
    folders = {way: args.out / way.replace(", ", "-").replace(" ", "-") for way in WAYS}
    first, trained, code = next(iter(folders.values())), args.trained, 0
    steps, expected = ("--steps", str(args.steps)), dict[str, pd.DataFrame]()
    for way, more in WAYS.items():
        results = folders[way]
        launches.take(trained, results, cells)
        seconds = launches.launched(NAME, args, results, *HOW, *steps, "--dtype", "float32", *more)
        trained = trained or first
        if not expected:
            launches.take(trained, args.out / "serial", cells)
            began = time.perf_counter()
            expected = serial(args, args.out / "serial", cells, {name: str(path) for name, path in datasets.items()})
            print(f"in one process, without Ray: {time.perf_counter() - began:.0f} s", flush=True)
        found = {cell.key(): pd.read_parquet(results / cell.key() / "episodes.parquet") for cell in evaluated}
        rows = sum((found[key][COUNTS] != table[COUNTS]).any(axis=1).sum() for key, table in expected.items())
        total = sum(len(table) for table in expected.values())
        print(f"{way}: {seconds:.0f} s; rows that differ: {rows} of {total}", flush=True)
        code |= bool(rows)
    half = dataclasses.replace(args, dtype="float16")
    others, _ = build(half)
    results = args.out / "float16"
    launches.take(args.trained, results, others)
    launches.launched(NAME, args, results, *HOW, *steps, "--dtype", "float16")
    full, store = Store(first), Store(results)
    pairs = zip(evaluated, [cell for cell in others if isinstance(cell, Cell)], strict=True)
    apart = [abs(full.read(a.key()).metrics["miou"] - store.read(b.key()).metrics["miou"]) for a, b in pairs]
    mean = sum(apart) / len(apart)
    print(f"float16 against float32 features: mIoU differs by {max(apart):.4f} at most, {mean:.4f} on average")
    return code


if __name__ == "__main__":
    sys.exit(launches.main(Study(name=NAME, description=__doc__, options=Determinism, build=build), benchmark))
