"""What must hold after an injection, checked in what lies on disk and in MLflow. Every difference is a line of text."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from cluster.storage.layout import EPISODES
from cluster.storage.results import Store
from tools.faults.grids import Place
from tools.faults.lab import ROOT

CLOCK = "seconds"  # the column of an episode table that depends on the clock
RESAMPLES = "200"
LEFT_BEHIND = (".*.part", "*/.*.part", "*/*/.*.part", ".trash-*", ".tune", ".writable-*", "*/*.lease", "*/*.part")


def counts_hash(results: Path, keys: Iterable[str]) -> str:
    """Hash of all episode tables, column by column and row by row, without what depends on the clock."""
    digest = hashlib.sha256()
    for key in sorted(keys):
        path = results / key / EPISODES
        if path.exists():
            table = pd.read_parquet(path)
            text = table.drop(columns=[name for name in (CLOCK,) if name in table.columns]).to_csv(index=False)
            digest.update(f"{key} {len(text)}\n{text}".encode())
    return digest.hexdigest()


def tables(results: Path, out: Path) -> dict[str, str]:
    """Hash of each file that ``python -m analysis.paper`` writes, by name; empty where it can't evaluate the grid."""
    command = [sys.executable, "-m", "analysis.paper", "--results", str(results), "--out", str(out)]
    done = subprocess.run([*command, "--resamples", RESAMPLES], cwd=ROOT, capture_output=True, timeout=300)
    if done.returncode:
        return {}
    # Times and dates differ from run to run, and the cost table and what shows all tables have them.
    timed = ("cost.", "figure_cost.", "files.", "numbers.", "tables.", "report.", "paper.")
    made = [path for path in sorted(out.iterdir()) if not path.name.startswith(timed)]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in made}


def store_problems(place: Place, expected: Iterable[str]) -> list[str]:
    """Every expected cell is finished, and there is no other."""
    store, wanted = Store(place.results.absolute()), set(expected)
    found = set(store.cell_keys())
    problems = [f"cell {key} is in the store, but not in the grid" for key in sorted(found - wanted)]
    for key in sorted(wanted):
        record = store.read(key)
        if record.status != "finished":
            problems.append(f"cell {key} is {record.status} {record.why}{record.result.get('error', '')}".strip())
    return problems


def repeated(place: Place, snapshots: list[dict[str, int]], damaged: Iterable[str]) -> list[str]:
    """No execution began after its cell had been finished or its part kept, and no finished result was written anew.

    Args:
        place: where.
        snapshots: `Place.results_now` and `Place.parts_now` before each launch but the first, oldest first.
        damaged: cells that were damaged on purpose.
    """
    spared, now = set(damaged), place.results_now()
    problems = []
    for snapshot in snapshots:
        for key in sorted(set(snapshot) - spared):
            if "@" not in key and now.get(key) != snapshot[key]:  # parts go when their cell is finished
                problems.append(f"cell {key} was finished, and its result.json was written again or is gone")
    finished = {**now, **{key: stamp for snapshot in reversed(snapshots) for key, stamp in snapshot.items()}}
    for unit, what, stamp in place.executions():
        key = unit.partition("@")[0]
        if what == "end" or key in spared:
            continue
        for name in dict.fromkeys((key, unit)):
            if stamp > finished.get(name, stamp):
                problems.append(f"{unit} began {(stamp - finished[name]) / 1e9:.2f} s after {name} was finished")
    return list(dict.fromkeys(problems))


def lost(place: Place, damaged: Iterable[str]) -> int:
    """Executions beyond one for each unit: work that a fault threw away, without that of cells damaged on purpose."""
    starts = Counter(unit for unit, what, _ in place.executions() if what == "start")
    spared = set(damaged)
    return sum(count - 1 - (unit.partition("@")[0] in spared) for unit, count in starts.items() if count > 1)


def run_problems(place: Place, expected: Iterable[str]) -> tuple[list[str], dict[str, int]]:
    """Exactly one FINISHED MLflow run a cell; and how many runs there are by status."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=place.lab.tracking_uri)
    experiment = client.get_experiment_by_name(place.name)
    if experiment is None:
        return [f"MLflow has no experiment {place.name}"], {}
    runs, token = [], None
    while True:
        page = client.search_runs([experiment.experiment_id], max_results=1000, page_token=token)
        runs += list(page)
        token = page.token
        if not token:
            break
    cells = [run for run in runs if "key" in run.data.tags]
    finished = Counter(run.data.tags["key"] for run in cells if run.info.status == "FINISHED")
    wanted = set(expected)
    problems = [f"cell {key} has {finished[key]} FINISHED runs in MLflow" for key in wanted if finished[key] != 1]
    problems += [f"MLflow has a FINISHED run of cell {key}, not in the grid" for key in finished if key not in wanted]
    statuses = Counter(f"{'cell' if 'key' in run.data.tags else 'launch'} {run.info.status}" for run in runs)
    return sorted(problems), dict(sorted(statuses.items()))


def left_behind(results: Path) -> list[str]:
    """Temporary files and locks that are still there."""
    return sorted({str(path.relative_to(results)) for pattern in LEFT_BEHIND for path in results.glob(pattern)})
