"""How often a grid encodes an image and computes a triple's prior maps, and what its launch costs beyond the models.

    python -m benchmarks.encode_once --dataset DIR/dataset.json --weights-dir DIR --out DIR [--trained RESULTS]

Runs the grid of 3 backbones × all folds × 1 and 5 shots × mask, box and scribble (72 evaluation cells on four folds)
with the shards of `cluster.storage.feature_cache`, in a launch of its own; then some of its cells again, each as a
launch of its own without shards, as a loop over scripts does. ``--trained`` takes finished training cells from another
results directory, so that the figures are of evaluation alone. Counts: what the workers report, against
what the manifests name.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import launches
from cluster.cli import Grid, Study
from cluster.code_version import code_hash
from cluster.options import Count
from cluster.storage.results import Store
from diffup.grid.axes import evaluation_cells, named_backbone, tasks, training_cell
from diffup.grid.cell import AnyCell, Cell
from diffup.grid.datasets import open_data
from diffup.training import recipes

NAME = "encode_once"
BACKBONES = ("resnet50", "mobilenetv2_100", "deit_tiny_patch16_224")
RECIPE = recipes.msrc15()
SHOTS, ANNOTATIONS = (1, 5), ("mask", "box", "scribble")
SPREAD = 13  # cells between those that are run alone: each differs from the last in fold or backbone, and in its task


@dataclass(frozen=True, kw_only=True)
class EncodeOnce(launches.BenchmarkOptions):
    """Options of this benchmark."""

    episodes: Count = 500
    separate: int = 6
    """cells that are run again, alone"""


def build(args: EncodeOnce) -> Grid:
    """The grid: one training cell a fold, and 18 evaluation cells."""
    data = open_data(args.dataset, shots=max(SHOTS))
    backbones = [named_backbone(name, weights_dir=args.run.weights_dir) for name in BACKBONES]
    cells: list[AnyCell] = []
    for fold in range(data.folds):
        trained = training_cell(data, fold, backbones[0], RECIPE)
        kinds = tasks(SHOTS, ANNOTATIONS)
        cells += [
            trained,
            *evaluation_cells(
                data, fold, backbones, kinds, config=RECIPE.input, episodes=args.episodes, trained=trained
            ),
        ]
    return cells, data.files()


def report(args: EncodeOnce, cells: Sequence[AnyCell], datasets: dict[str, Path]) -> list[str]:
    """Run everything; the lines of the report."""
    from cluster.execution.context import WorkContext
    from cluster.precompute.tasks import inputs_of

    results = args.out / "grid"
    launches.take(args.trained, results, cells)
    wall = launches.launched(NAME, args, results)
    evaluated = [cell for cell in cells if isinstance(cell, Cell)]
    workers = args.run.max_concurrent or 2
    paths = {name: str(path) for name, path in datasets.items()}
    wanted = inputs_of(evaluated, WorkContext(results=results, datasets=paths, weights_dir=args.run.weights_dir))
    images = sum(len(each.items) for each in wanted if each.encodes)
    triples = sum(len(each.items) for each in wanted if not each.encodes)
    notes = [json.loads(path.read_bytes()) for path in sorted((results / "launches").glob("*.json"))]
    made = {kind: sum(note["stage"]["made"].get(kind, 0) for note in notes) for kind in ("features", "priors")}
    spent = {kind: sum(note["stage"]["seconds"].get(kind, 0) for note in notes) for kind in ("features", "priors")}
    store = Store(results)
    done = [store.read(cell.key()).result for cell in evaluated]
    in_cells = {name: sum(r["provenance"][name] for r in done) for name in ("images_encoded", "priors_computed")}
    seconds = sum(r["metrics"]["seconds"] for r in done)
    model = sum(spent.values()) + seconds
    lines = [
        f"{len(evaluated)} evaluation cells of {args.episodes} episodes, {workers} workers, one launch: {wall:.0f} s",
        f"forward passes: {made['features']} in the stage + {in_cells['images_encoded']} in cells, for {images} pairs "
        f"of backbone and image: {(made['features'] + in_cells['images_encoded']) / images:.4f} each",
        f"prior maps: {made['priors']} in the stage + {in_cells['priors_computed']} in cells, for {triples} triples: "
        f"{(made['priors'] + in_cells['priors_computed']) / triples:.4f} each",
        f"model seconds: {spent['features']:.0f} encoding + {spent['priors']:.0f} prior maps + {seconds:.0f} decoding "
        f"and scoring = {model:.0f} s; over {workers} workers {model / workers:.0f} s",
        f"wall / (model seconds / workers): {wall * workers / model:.2f} (bar 1.25)",
    ]
    if args.separate:
        alone = [evaluated[SPREAD * i % len(evaluated)] for i in range(args.separate)]
        walls = []
        for cell in alone:
            place = args.out / "alone" / cell.key()
            launches.take(results, place, [c for c in cells if c.key() == cell.checkpoint])
            how = ("--cache", "none", "--max-concurrent", "1", "--select", f"key={cell.key()}")
            walls.append(launches.launched(NAME, args, place, *how))
        mean = sum(walls) / len(walls)
        lines.append(
            f"alone and without shards, {len(alone)} of the cells took {mean:.0f} s each ({min(walls):.0f} – "
            f"{max(walls):.0f}): {len(evaluated)} on {workers} workers {mean * len(evaluated) / workers:.0f} s, "
            f"{mean * len(evaluated) / workers / wall:.1f} times the launch's (aim 5)"
        )
    return lines


def benchmark(args: EncodeOnce) -> int:
    """Run and print the report."""
    cells, datasets = build(args)
    lines = report(args, cells, datasets)
    print(f"{platform.machine()}, Python {platform.python_version()}, code {code_hash()}")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(launches.main(Study(name=NAME, description=__doc__, options=EncodeOnce, build=build), benchmark))
