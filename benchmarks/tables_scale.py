"""How long a large frame takes to become tables: 100,000 made-up cells, seconds and gigabytes.

    python benchmarks/tables_scale.py [--cells 100000] [--episodes 100] [--resamples 2000]

4 data sets × 4 folds × 25 tasks × 25 backbones × 10 methods, each cell with its own counts of shared episodes; every
table of results with its intervals and paired marks (not those of quality, which read each cell's file).
"""

from __future__ import annotations

import argparse
import itertools
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.build import QUESTIONS
from analysis.results import COLUMNS, COSTS, NO_RESULT, TRAINING, Results
from analysis.tables.scores import studies
from analysis.tables.table import to_csv, to_markdown
from diffup.evaluation.stats import EpisodeCounts

DATASETS, FOLDS, BACKBONES = 4, 4, 25
METHODS = ("diffup", "prior_mean", "prototype", *(f"variant_{n}" for n in range(7)))
TASKS = [(0, "text"), *itertools.product((1, 2, 3, 5, 7, 10), ("mask", "box", "scribble", "mask+text"))]


def made_up(cells: int, episodes: int) -> Results:
    """The first `cells` of the grid, finished."""
    rng = np.random.default_rng(0)
    rows, counts, class_id = [], {}, np.arange(episodes) % 5
    queries = [np.array([f"{c}_{rng.integers(40)}" for c in class_id]) for _ in range(FOLDS)]
    axes = itertools.product(range(DATASETS), range(FOLDS), TASKS, range(BACKBONES), METHODS)
    for number, (dataset, fold, (shots, annotation), backbone, method) in enumerate(itertools.islice(axes, cells)):
        key = f"{number:012x}"
        union = rng.integers(1000, 9000, episodes)
        inter = (union * rng.random(episodes)).astype(np.int64)
        pixels = np.stack([inter, union, 60000 - union, 60000 - inter], axis=1)
        counts[key] = EpisodeCounts(np.arange(episodes), class_id, queries[fold], pixels)
        trained = method not in ("prior_mean", "prototype")
        rows.append(
            {
                **NO_RESULT, **dict.fromkeys(COSTS, 1.0), "key": key, "dataset": f"data{dataset}", "dataset_hash": "x",
                "protocol": "paired", "protocol_hash": "y", "annotation": annotation, "backbone": f"backbone{backbone}",
                "weights": "hub", "trained_on": "backbone0" if trained else "", "trained_dataset": "",
                "checkpoint": f"{method}{dataset}{fold}" if trained else "", "variant": method, "fold": fold,
                "shots": shots, "train_seed": 0, "episode_seed": 0, "episodes": episodes, "class_names": "given",
                "method": "diffup" if trained else method, "steps": 10, "status": "finished", "miou": 50.0,
                "fb_iou": 60.0, "seconds": 1.0, "device": "cpu", "launch": 0, "position": number,
            }
        )  # fmt: skip
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return Results(Path("made-up"), frame, pd.DataFrame(columns=list(TRAINING)), {}, counts, ())


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--resamples", type=int, default=2000)
    options = parser.parse_args()
    results = made_up(options.cells, options.episodes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    began, tables, characters = time.perf_counter(), 0, 0
    found = studies(results, resamples=options.resamples)
    while found:
        study = found.pop(0)
        for question in QUESTIONS:
            at = time.perf_counter()
            table = question(study)
            if table is not None:
                tables += 1
                characters += len(to_csv(table)) + len(to_markdown(table))
                print(f"  {table.name:12} {len(table.rows):6} rows, {time.perf_counter() - at:.1f} s")
    seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{len(results.cells)} cells of {options.episodes} episodes, {options.resamples} resamples: {tables} tables, "
        f"{characters / 1e6:.1f} MB of text in {seconds:.1f} s; {peak:.2f} GiB at most, {before:.2f} GiB before"
    )


if __name__ == "__main__":
    main()
