"""A grid like the paper's, in passes over the episodes from pixels on disk, against one cell at a time.

    python -m benchmarks.grid_pass --out DIR

Made-up photographs in COCO's layout (640 × 480, JPEG), two backbones with random weights × the paper's 13 tasks on one
fold, by a checkpoint of two training steps, through the launch that a study has. In turns: one cell at a time, each
reading and encoding photographs by itself as its worker's memory allows (no cache on disk); and in passes from pixels,
the photographs read once by Ray Data ahead of the cells. Counts of every episode must be the same on a CPU; on a GPU
rows that differ are counted. With a GPU the sizes are COCO's (`FULL`), else small ones (`SMALL`). Writes
``DIR/grid_pass.json``.
"""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks import launches
from benchmarks.decode_speed import machine
from cluster.cli import Grid, GridOptions, Study, run_study
from cluster.code_version import code_hash
from cluster.options import Count, Folder, Name, NamesOrNone
from cluster.storage.atomic import to_json, write_atomically
from cluster.storage.results import Store
from diffup.config import InputConfig, TrainConfig
from diffup.errors import command_line
from diffup.grid.axes import Backbone, evaluation_cells, named_backbone, training_cell
from diffup.grid.cell import AnyCell, Cell
from diffup.grid.datasets import open_data
from diffup.models.card import versions
from diffup.training.recipes import Recipe
from experiments.full_grid import TASKS

NAME = "grid_pass"
FOLDS, OBJECTS = 4, 3  # folds of the classes, and objects on a photograph
WIDTH, HEIGHT, SIDE = 640, 480, 180
COUNTS = ["episode", "class_id", "query", "inter_fg", "union_fg", "inter_bg", "union_bg"]
FULL: dict[str, Any] = {
    "photographs": 4000, "classes": 80, "episodes": 1000, "size": 400, "cells": 30,
    "backbones": ("resnet50", "vit_base_patch16_224"), "companion": "open_clip:ViT-B-16",
}  # fmt: skip
SMALL: dict[str, Any] = {
    "photographs": 60, "classes": 8, "episodes": 40, "size": 160, "cells": 10,
    "backbones": ("resnet18", "mobilenetv2_100"), "companion": "tiny_clip",
}  # fmt: skip
WAYS = {"one cell at a time": ("--alone", "--cache", "none"), "passes from pixels": ("--cache", "pixels")}


@dataclass(frozen=True, kw_only=True)
class GridPass(GridOptions):
    """Options of this benchmark; 0 or nothing: by whether there is a GPU."""

    out: Folder = None
    """folder of the benchmark"""
    photographs: int = 0
    classes: int = 0
    size: int = 0
    """of the input in pixels"""
    cells: int = 0
    """of the feature grid, a side"""
    backbones: NamesOrNone = None
    companion: Name = ""
    """reads text"""
    rounds: Count = 1
    grid: bool = False
    """only run the grid (what the benchmark itself calls)"""
    alone: bool = False
    """one cell at a time"""


def resolved(asked: GridPass) -> GridPass:
    """With the sizes that were left out."""
    import torch

    sizes = FULL if torch.cuda.is_available() else SMALL
    return replace(asked, **{name: getattr(asked, name) or value for name, value in sizes.items()})


def make_data(folder: Path, count: int, classes: int) -> Path:
    """Photographs with `OBJECTS` squares of different classes each; returns the path of their ``dataset.json``."""
    path, names = folder / "dataset.json", [f"class {number}" for number in range(classes)]
    if path.exists():
        return path
    rng, annotations, images = np.random.default_rng(0), list[dict[str, Any]](), list[dict[str, Any]]()
    (folder / "images").mkdir(parents=True, exist_ok=True)
    colours: NDArray[np.int64] = rng.integers(40, 256, (classes, 3))
    for number in range(count):
        noise = rng.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8)
        photo = Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(photo)
        for shown in rng.choice(classes, OBJECTS, replace=False).tolist():
            x, y = int(rng.integers(WIDTH - SIDE)), int(rng.integers(HEIGHT - SIDE))
            draw.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), fill=tuple(colours[shown].tolist()))
            corners = [x, y, x + SIDE, y, x + SIDE, y + SIDE, x, y + SIDE]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": shown + 1, "iscrowd": 0,
                 "segmentation": [corners], "area": SIDE**2, "bbox": [x, y, SIDE, SIDE]}
            )  # fmt: skip
        photo.save(folder / "images" / f"{number:06d}.jpg", quality=90)
        images.append({"id": number, "file_name": f"{number:06d}.jpg", "height": HEIGHT, "width": WIDTH})
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(names)]
    write_atomically(
        folder / "instances.json", to_json({"images": images, "annotations": annotations, "categories": categories})
    )
    folds = [names[fold::FOLDS] for fold in range(FOLDS)]
    write_atomically(path, to_json({"name": "made_up", "layout": "coco", "classes": names, "folds": folds}))
    return path


def build(asked: GridPass) -> Grid:
    """One training cell, and 13 tasks for each backbone on fold 0."""
    assert asked.out is not None and asked.backbones is not None and asked.episodes is not None
    data = open_data(make_data(asked.out / "data", asked.photographs, asked.classes), shots=max(k for k, _ in TASKS))
    *backbones, companion = [
        named_backbone(name) if name.startswith("tiny_") else Backbone(name=name, weights="random:0")
        for name in (*asked.backbones, asked.companion)
    ]
    config = InputConfig(input_size=asked.size, feature_grid=asked.cells, pixel_dtype="uint8")
    recipe = Recipe(input=config, train=TrainConfig(steps=2, batch_size=2))
    trained = training_cell(data, 0, backbones[0], recipe, companion=companion)
    evaluated = evaluation_cells(
        data, 0, backbones, TASKS, config=config, episodes=asked.episodes, trained=trained, companion=companion
    )
    return [trained, *evaluated], data.files()


def run_grid(asked: GridPass) -> int:
    """The grid as any study; one cell at a time where the work has no function for several."""
    study = Study(name=NAME, description=__doc__, options=GridPass, build=build)
    if asked.alone:
        from cluster.execution.run_cell import CELLS

        study = replace(study, work=replace(CELLS, execute_together=None))
    return run_study(study, asked)


def measured(store: Store, evaluated: Sequence[Cell]) -> dict[str, float]:
    """What workers report of their cells, and what the stage ahead of them made."""
    facts = [store.read(cell.key()).result["provenance"] for cell in evaluated]
    notes = [json.loads(path.read_bytes())["stage"] for path in (store.root / "launches").glob("*.json")]
    return {
        "images_encoded": sum(each["images_encoded"] for each in facts),
        "priors_computed": sum(each["priors_computed"] for each in facts),
        "photographs_kept": sum(note.get("made", {}).get("pixels", 0) for note in notes),
        "stage_seconds": sum(note.get("wall", 0.0) for note in notes),
    }


def benchmark(asked: GridPass) -> int:
    """Run the grid in both ways, in turns; returns 1 if counts differ on a CPU."""
    assert asked.out is not None and asked.backbones is not None
    cells, _ = build(asked)
    evaluated = [cell for cell in cells if isinstance(cell, Cell)]
    words = ["--out", str(asked.out), "--companion", asked.companion, "--backbones", ",".join(asked.backbones)]
    for name in ("photographs", "classes", "episodes", "size", "cells"):
        words += [f"--{name}", str(getattr(asked, name))]
    if asked.run.max_concurrent:
        words += ["--max-concurrent", str(asked.run.max_concurrent)]
    trained = asked.out / "trained"
    launches.run_grid(NAME, trained, *words, "--select", "kind=train", "--cache", "none")
    rounds = list[dict[str, Any]]()
    stores = dict[str, Store]()
    for number in range(asked.rounds):
        for way, how in WAYS.items():
            results = asked.out / f"{number}-{way.replace(' ', '-')}"
            launches.take(trained, results, cells)
            seconds = launches.run_grid(NAME, results, *words, *how)
            stores[way] = Store(results)
            rounds.append({"way": way, "seconds": seconds, **measured(stores[way], evaluated)})
            print(f"{way}: {seconds:.1f} s", flush=True)
    return report(asked, rounds, differing(stores, evaluated), evaluated)


def differing(stores: dict[str, Store], evaluated: Sequence[AnyCell]) -> int:
    """Episodes whose counts are not the same in both ways."""
    count = 0
    for cell in evaluated:
        one, other = (
            pd.read_parquet(store.folder(cell.key()) / "episodes.parquet")[COUNTS] for store in stores.values()
        )
        count += int((one != other).any(axis=1).sum())
    return count


def report(asked: GridPass, rounds: list[dict[str, Any]], differ: int, evaluated: Sequence[Cell]) -> int:
    """Print and write figures; returns the exit code."""
    assert asked.out is not None
    total = sum(cell.episodes for cell in evaluated)
    lines = [
        "| way | seconds | episodes a second | images encoded | prior maps | photographs kept |",
        "| --- " * 6 + "|",
    ]
    medians = dict[str, float]()
    for way in WAYS:
        of = [each for each in rounds if each["way"] == way]
        medians[way] = statistics.median(each["seconds"] for each in of)
        made = [f"{of[-1][name]:,}" for name in ("images_encoded", "priors_computed", "photographs_kept")]
        lines.append(f"| {way} | {medians[way]:.1f} | {total / medians[way]:.1f} | {' | '.join(made)} |")
    ratio = medians["one cell at a time"] / medians["passes from pixels"]
    lines += [
        "",
        f"{len(evaluated)} cells, {total:,} episodes; in passes {ratio:.2f} times as fast, the whole launch counted",
        f"episodes whose counts differ: {differ}",
        machine(),
    ]
    print("\n".join(lines))
    document = {
        "command": shlex.join(["python", "-m", f"benchmarks.{NAME}", *sys.argv[1:]]), "machine": machine(),
        "versions": versions(), "code": code_hash(), "rounds": rounds, "ratio": ratio, "episodes": total,
        "cells": len(evaluated), "differ": differ,
        "options": {name: value for name, value in asdict(asked).items() if isinstance(value, int | str | tuple)},
    }  # fmt: skip
    write_atomically(asked.out / f"{NAME}.json", to_json(document))
    return 1 if differ and not _on_gpu() else 0


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the grid alone, or the benchmark around it; returns the exit code."""
    asked = resolved(Study(name=NAME, description=__doc__, options=GridPass, build=build).parse(argv))
    if asked.out is None:
        print("error: give --out, a folder", file=sys.stderr)
        return 2
    return run_grid(asked) if asked.grid else benchmark(asked)


if __name__ == "__main__":
    sys.exit(command_line(main))
