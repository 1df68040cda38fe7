"""What made a store's results: data, protocols, code, versions and devices, as short lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

import pandas as pd

from analysis.results import UNREADABLE, Results

SHOWN = 12  # values of a line


def facts(results: Results) -> dict[str, str]:
    """Lines by name, each with the values that finished cells have and how many have them."""
    cells = results.cells[results.cells["status"] == "finished"]
    times = {cells["finished"].min(), cells["finished"].max()} if len(cells) else set()
    lines = {
        "data": _counted(_pairs(cells, "dataset", "dataset_hash", "fingerprint")),
        "protocol": _counted(_pairs(cells, "protocol", "protocol_hash", "hash")),
        "git commit": _counted(commit or "unknown" for commit in cells["git_commit"]),
        "method's code": _counted(code or "unknown" for code in cells["code_hash"]),
        "manifests": _counted(cells["manifest_hash"]),
        "device": _counted(cells["device"]),
        "episode seeds": _counted(map(str, cells["episode_seed"])),
        "training seeds": _counted(map(str, cells[cells["trained_on"] != ""]["train_seed"])),
        "training steps": _counted(cells[cells["train_steps"] > 0]["train_steps"]),
        "weights": _counted(cells["backbone"] + " " + cells["weights"]),
        "versions": _versions(results, cells),
        "first and last result": " to ".join(sorted(times)),
    }
    return {name: value for name, value in lines.items() if value}


def _pairs(cells: pd.DataFrame, name: str, identity: str, what: str) -> list[str]:
    return [f"{value} ({known or f'no {what}'})" for value, known in zip(cells[name], cells[identity])]


def _counted(values: Iterable[object]) -> str:
    counted = Counter(str(value) for value in values)
    if len(counted) == 1:
        return next(iter(counted))
    shown = [f"{value} ({count} cells)" for value, count in counted.most_common(SHOWN)]
    return "; ".join([*shown, *([f"and {len(counted) - SHOWN} more"] if len(counted) > SHOWN else [])])


def _versions(results: Results, cells: pd.DataFrame) -> str:
    """Versions in the newest result; other results may name others."""
    for key in reversed(cells.sort_values("finished")["key"].tolist()):
        try:
            found = json.loads((results.root / key / "result.json").read_bytes())["provenance"]["versions"]
            return ", ".join(f"{name} {version}" for name, version in found.items())
        except UNREADABLE:
            continue
    return ""
