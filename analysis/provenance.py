"""What made a store's results: data, protocols, code, versions and devices, as short lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from analysis.results import Results


def facts(results: Results) -> dict[str, str]:
    """Lines by name, each with the values that finished cells have and how many have them."""
    cells = results.cells[results.cells["status"] == "finished"]
    rows: list[Any] = list(cells.itertuples())
    lines = {
        "data": _counted(f"{row.dataset} ({row.dataset_hash or 'no fingerprint'})" for row in rows),
        "protocol": _counted(f"{row.protocol} ({row.protocol_hash or 'no hash'})" for row in rows),
        "git commit": _counted(commit or "unknown" for commit in cells["git_commit"]),
        "method's code": _counted(code or "unknown" for code in cells["code_hash"]),
        "manifests": _counted(cells["manifest_hash"]),
        "device": _counted(cells["device"]),
        "episode seeds": _counted(map(str, cells["episode_seed"])),
        "training seeds": _counted(map(str, cells[cells["trained_on"] != ""]["train_seed"])),
        "weights": _counted(f"{row.backbone} {row.weights}" for row in rows),
        "versions": _versions(results),
        "first and last result": " to ".join(sorted({cells["finished"].min(), cells["finished"].max()}))
        if len(cells)
        else "",
    }
    return {name: value for name, value in lines.items() if value}


def _counted(values: Iterable[object]) -> str:
    counted = Counter(str(value) for value in values)
    if len(counted) == 1:
        return next(iter(counted))
    shown = [f"{value} ({count} cells)" for value, count in counted.most_common(12)]
    return "; ".join([*shown, *([f"and {len(counted) - 12} more"] if len(counted) > 12 else [])])


def _versions(results: Results) -> str:
    """Versions in the newest result; other results may name others."""
    cells = results.cells[results.cells["status"] == "finished"].sort_values("finished")
    for key in reversed(cells["key"].tolist()):
        try:
            found = json.loads((results.root / key / "result.json").read_bytes())["provenance"]["versions"]
            return ", ".join(f"{name} {version}" for name, version in found.items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return ""
