"""Faults on a real multi-node Ray: ``python -m tools.faults --rounds 20 --seed 0 --out DIR``.

One head and two worker nodes on this machine (in network namespaces as root, else raylets on loopback), an MLflow
server, and a grid that is driven from outside only: command line, processes, files. Each injection runs the grid in
results of its own, does its fault at a moment that the seed decides, launches the same command until it ends with 0,
and then checks that every cell is finished once, that counts and tables are those of the undisturbed run byte for byte,
that nothing finished was executed again, and that MLflow has one FINISHED run a cell. ``DIR/faults.jsonl`` has a line
an injection, ``DIR/faults.md`` the table; the folder of an injection that failed stays. Running it again does what is
left.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.planning.preflight import git_commit
from cluster.storage.atomic import to_json, write_atomically
from tools.faults.grids import FUSED, Grid, arguments_of
from tools.faults.inject import KINDS
from tools.faults.lab import Lab, laboratory
from tools.faults.network import INSTALL, possible
from tools.faults.rounds import FAILED, MISSED, Case, Undisturbed, inject, undisturbed
from tools.faults.table import machine, markdown

SELECT = "variant=prior_mean|prototype"
SMALLER = f"{SELECT},shots=1"


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m tools.faults", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="records, table, evidence")
    made.add_argument("--rounds", type=int, default=20, metavar="N", help="injections of each kind (%(default)s)")
    made.add_argument("--kinds", default=",".join(KINDS), metavar="K[:N],…", help="kinds, with a number of their own")
    made.add_argument("--seed", type=int, default=0, metavar="N")
    made.add_argument("--grid", choices=("fake", "quickstart-slice"), default="fake")
    made.add_argument("--fused", action="store_true", help="cells run in passes, long ones in parts")
    made.add_argument("--select", default="", metavar="K=V,…", help=f"part of the grid (of the quickstart: {SELECT})")
    made.add_argument("--smaller", default=SMALLER, help="part of that part, run before a shard is damaged")
    made.add_argument("--episodes", type=int, default=40, metavar="N", help="of the quickstart (%(default)s)")
    made.add_argument("--shard-glob", default="features/**/*", metavar="GLOB", help="shards below the results")
    made.add_argument("--workers", type=int, default=2, metavar="N", help="worker nodes (%(default)s)")
    made.add_argument("--cpus", type=int, default=1, metavar="N", help="of each node (%(default)s)")
    made.add_argument("--disk-mb", type=int, default=64, metavar="N", help="size of the small disk (%(default)s)")
    made.add_argument("--no-root", action="store_true", help="no namespaces, even for root")
    made.add_argument("--keep", action="store_true", help="keep the folders of injections that went well, too")
    args = made.parse_args(argv)
    try:
        args.kinds = kinds(args.kinds, args.rounds)
    except ValueError as error:
        made.error(str(error))
    return args


def kinds(text: str, rounds: int) -> dict[str, int]:
    """``"worker,raylet:5"`` as number of injections by kind.

    Raises:
        ValueError: an unknown kind, or no number after a colon.
    """
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        kind, colon, number = part.partition(":")
        if kind not in KINDS or (colon and not number.isdigit()):
            raise ValueError(f"--kinds: {part!r} is none of {', '.join(KINDS)}, each perhaps with :NUMBER")
        found[kind] = int(number) if colon else rounds
    return found


def read_records(path: Path) -> list[dict[str, Any]]:
    """The injections so far; a last line that was cut off by a kill is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def add_record(path: Path, record: dict[str, Any]) -> None:
    """Append one injection, on a line of its own even after one that was cut off."""
    before = path.read_bytes() if path.exists() else b""
    with path.open("a") as file:
        file.write(("\n" if before and not before.endswith(b"\n") else "") + json.dumps(record) + "\n")


def _reference(lab: Lab, grid: Grid, out: Path) -> Undisturbed:
    """The undisturbed run: once in a folder, and run twice, so that a grid that differs by itself is found out."""
    path, commit = out / "undisturbed.json", git_commit()  # tables name the commit
    if path.exists() and (kept := json.loads(path.read_bytes()))["commit"] == commit:
        return Undisturbed(**kept["undisturbed"])
    first = undisturbed(lab, grid, out / "undisturbed", f"undisturbed-{os.getpid()}-0")
    second = undisturbed(lab, grid, out / "undisturbed", f"undisturbed-{os.getpid()}-1")
    for what in ("keys", "counts", "tables"):
        if getattr(first, what) != getattr(second, what):
            raise RuntimeError(f"two undisturbed runs differ in their {what}: there is nothing to compare with")
    write_atomically(path, to_json({"commit": commit, "undisturbed": asdict(second)}))
    print(f"undisturbed: {len(second.keys)} cells, {len(second.tables)} tables, {second.seconds:.1f} s", flush=True)
    return second


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if every injection was survived, 1 if not, 2 for bad input, 130 if interrupted."""
    args = parsed(argv)
    out: Path = args.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    isolated = not args.no_root and possible()
    left_out = {kind: INSTALL for kind in args.kinds if KINDS[kind].root and not isolated}
    for kind, why in left_out.items():
        print(f"not run: {kind}: {why}", flush=True)
    path, before = out / "faults.jsonl", read_records(out / "faults.jsonl")
    name, fused = (f"{args.grid}, fused", FUSED) if args.fused else (args.grid, ())
    if any(record["grid"] != name for record in before):
        print(f"error: {path} holds injections into another grid; give another --out", file=sys.stderr)
        return 2
    done = {record["id"] for record in before if record["outcome"] != MISSED}
    cases = [
        Case(kind=kind, number=number, seed=args.seed, shards=args.shard_glob)
        for number in range(max(args.kinds.values(), default=0))
        for kind, count in args.kinds.items()
        if number < count and kind not in left_out
    ]
    todo = [case for case in cases if case.name not in done]
    print(f"{len(cases)} injections, {len(cases) - len(todo)} done before", flush=True)
    grid = Grid(name=name, which="fake", arguments=("--select", args.select, *fused))
    if args.grid == "quickstart-slice":
        whole, smaller = arguments_of(args.select or SELECT, args.smaller, args.episodes)
        grid = Grid(name=name, which="quickstart", arguments=(*whole, *fused), smaller=(*smaller, *fused))
    try:
        if todo:
            with laboratory(
                out / "lab", workers=args.workers, cpus=args.cpus, isolated=isolated, disk_mb=args.disk_mb
            ) as lab:
                reference = _reference(lab, grid, out)
                for case in todo:
                    record = inject(lab, grid, case, reference, out, keep=args.keep)
                    add_record(path, record)
                    print(_line(record), flush=True)
    except KeyboardInterrupt:
        print("interrupted; the same command does the rest", file=sys.stderr)
        return 130
    records = read_records(path)
    text = markdown(records, left_out, machine(isolated=isolated, workers=args.workers, cpus=args.cpus, grid=name))
    write_atomically(out / "faults.md", text.encode())
    print(text)
    return 1 if any(record["outcome"] == FAILED for record in records) else 0


def _line(record: dict[str, Any]) -> str:
    what = f"{record['id']}: {record['outcome']} ({record['seconds']:.0f} s; {record.get('target', 'nothing to hit')}"
    if record.get("moment") is not None:
        what += f" at {record['moment']:.1f} s"
    lines = [f"{what}; exit codes {record.get('codes', [])})"]
    lines += [f"  {problem}" for problem in record.get("problems", [])[:5]]
    return "\n".join(lines)


if __name__ == "__main__":
    if platform.system() != "Linux":
        sys.exit("tools.faults needs Linux: it finds its processes in /proc")
    sys.exit(main())
