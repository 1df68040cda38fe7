"""The records of injections as a table in Markdown, with the machine that they were made on."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from tools.faults.inject import KINDS
from tools.faults.rounds import AGAIN, FAILED, FIRST, MISSED, RETRY

OUTCOMES = (FIRST, AGAIN, RETRY, FAILED)
PACKAGES = ("ray", "mlflow", "torch", "pandas", "pyarrow")
SHOWN = 20  # failures


def machine(*, isolated: bool, workers: int, cpus: int, grid: str) -> str:
    """What the injections ran on, in words."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    nodes = f"one head and {workers} workers of {cpus} CPU each"
    where = "in network namespaces" if isolated else "raylets on loopback addresses"
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"Grid `{grid}`; Ray with {nodes}, {where}. {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB, "
        f"Linux {platform.release()}; Python {platform.python_version()}, {versions}."
    )


def markdown(records: Sequence[Mapping[str, Any]], left_out: Mapping[str, str], where: str) -> str:
    """One row a kind: how many were injected and how they ended; then each failure."""
    latest = {record["id"]: record for record in records}
    lines = [
        "| Fault | injected | survived: " + " | ".join(OUTCOMES) + " | launches, at most | s, median |",
        "| :--- |" + " ---: |" * (len(OUTCOMES) + 3),
    ]
    for kind in KINDS:
        found = [record for record in latest.values() if record["kind"] == kind]
        hit = [record for record in found if record["outcome"] != MISSED]
        if not found and kind not in left_out:
            continue
        if kind in left_out and not hit:
            lines.append(f"| {KINDS[kind].words} | not run: {left_out[kind]} |" + " |" * (len(OUTCOMES) + 2))
            continue
        counts = [str(sum(record["outcome"] == outcome for record in hit)) for outcome in OUTCOMES]
        launches = max((record["reruns"] + 1 for record in hit), default=0)
        seconds = statistics.median([record["seconds"] for record in found])
        lines.append(f"| {KINDS[kind].words} | {len(hit)} | {' | '.join(counts)} | {launches} | {seconds:.0f} |")
    missed = sum(record["outcome"] == MISSED for record in latest.values())
    failures = [record for record in latest.values() if record["outcome"] == FAILED]
    text = "\n".join(lines) + f"\n\n{where}\n"
    commits = sorted({record["commit"][:7] for record in latest.values()})
    text += f"Commit {', '.join(f'`{commit}`' for commit in commits)}.\n"
    if missed:
        text += f"\n{missed} more came too late, after the driver had ended.\n"
    for record in failures[:SHOWN]:
        problems = record["problems"]
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        text += f"\n* `{record['id']}`: {'; '.join(problems[:3])}{more}"
    if len(failures) > SHOWN:
        text += f"\n* … and {len(failures) - SHOWN} more failures"
    return text.rstrip() + "\n"
