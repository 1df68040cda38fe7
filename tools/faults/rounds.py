"""One injection from beginning to end: a launch, a fault at a random moment, launches until all is done, and checks."""

from __future__ import annotations

import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.planning.preflight import git_commit
from cluster.storage.atomic import now
from tools.faults.grids import HUNG, Driver, Grid, Place
from tools.faults.inject import BALLAST, KINDS, POLL, Hit
from tools.faults.lab import Lab
from tools.faults.verify import counts_hash, left_behind, lost, repeated, run_problems, store_problems, tables

RERUNS = 4
DRAWS = 3  # an injection that came too late is tried again, at another moment
FIRST, AGAIN, RETRY, FAILED, MISSED = "first run", "after re-run", "after --retry-failed", "FAILED", "missed"


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """What the grid gives when nothing goes wrong.

    Attributes:
        seconds: of the driver, from start to end.
        began, ended: when the first cell began and the last one ended, in seconds since then.
        keys: of all cells.
        counts: hash of all episode tables.
        tables: hash of each table by file name.
    """

    seconds: float
    began: float
    ended: float
    keys: list[str]
    counts: str
    tables: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One injection.

    Attributes:
        kind: one of `KINDS`.
        number: among those of its kind, from 0.
        seed: with kind and number, all that is random comes from it.
        shards: which files of the results are shards, as a glob.
    """

    kind: str
    number: int
    seed: int
    shards: str

    @property
    def name(self) -> str:
        """Name of its folder and of its MLflow experiment."""
        return f"{self.kind}-{self.seed}-{self.number:03d}"


def limit(undisturbed: Undisturbed | None) -> float:
    """Seconds after which a driver counts as hung."""
    return 180.0 + 4 * (undisturbed.seconds if undisturbed else 600.0)


def undisturbed(lab: Lab, grid: Grid, folder: Path, name: str) -> Undisturbed:
    """Run the grid without any fault.

    Raises:
        RuntimeError: it does not end with 0: then there is nothing to compare with.
    """
    place = _place(lab, grid, folder, name, small=False)
    clock, driver = time.time(), place.start()
    code = driver.wait(limit(None))
    seconds = driver.seconds
    if code != 0:
        raise RuntimeError(f"the undisturbed grid ended with {code}; see {driver.log}")
    stamps = [stamp / 1e9 - clock for _, _, stamp in place.executions()]
    times = [stamp / 1e9 - clock for stamp in place.results_now().values()]
    keys = sorted(place.results_now())
    return Undisturbed(
        seconds=seconds,
        began=min(stamps or times),
        ended=max(times),
        keys=keys,
        counts=counts_hash(place.results, keys),
        tables=tables(place.results, folder / "tables"),
    )


def _place(lab: Lab, grid: Grid, folder: Path, name: str, *, small: bool) -> Place:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    results = folder / "results"
    if small:
        assert lab.disk is not None
        (lab.disk / BALLAST).unlink(missing_ok=True)
        results = lab.disk / folder.name
        shutil.rmtree(results, ignore_errors=True)
    return Place(lab=lab, grid=grid, name=name, folder=folder, results=results)


def inject(
    lab: Lab, grid: Grid, case: Case, reference: Undisturbed, out: Path, *, keep: bool = False
) -> dict[str, Any]:
    """One injection; its folder stays if something is wrong (or `keep`).

    Returns:
        the record, as it goes into ``faults.jsonl``.
    """
    began = time.monotonic()
    record: dict[str, Any] = {"id": case.name, "kind": case.kind, "number": case.number, "seed": case.seed}
    record |= {"grid": grid.name, "commit": git_commit(), "time": now()}
    for attempt in range(DRAWS):
        draw = random.Random(f"{case.kind} {case.number} {case.seed} {attempt}")
        healed = lab.heal()
        name = f"{case.name}-{time.time_ns() // 1000000}"  # of an experiment of its own each time
        place = _place(lab, grid, out / case.name, name, small=case.kind == "disk")
        run = _Run(place=place, reference=reference)
        hit = run.damaged(case, draw) if KINDS[case.kind].damage else run.disturbed(case, draw)
        if hit is not None:
            break
    record |= {"attempt": attempt, "new_cluster": healed, **run.facts}
    if hit is None:
        record |= {"outcome": MISSED, "seconds": round(time.monotonic() - began, 1)}
        shutil.rmtree(place.folder, ignore_errors=True)
        return record
    run.finish()
    record |= run.checked()
    if place.results.parent != place.folder:  # from the small disk
        if record["problems"] or keep:
            shutil.copytree(place.results, place.folder / "results", dirs_exist_ok=True)
        shutil.rmtree(place.results, ignore_errors=True)
    if not (record["problems"] or keep):
        shutil.rmtree(place.folder, ignore_errors=True)
    return record | {"seconds": round(time.monotonic() - began, 1)}


class _Run:
    """The launches of one injection and what is learnt from them."""

    def __init__(self, *, place: Place, reference: Undisturbed) -> None:
        self.place, self.reference = place, reference
        self.codes: list[int | str] = []
        self.snapshots: list[dict[str, int]] = []
        self.said: list[list[str]] = []
        self.spared: list[str] = []  # cells that were damaged on purpose
        self.facts: dict[str, Any] = {}
        self.retried = False

    def disturbed(self, case: Case, draw: random.Random) -> Hit | None:
        """A launch, and a fault at a random moment of it."""
        kind, reference = KINDS[case.kind], self.reference
        assert kind.fault is not None
        share = draw.random()
        moment = share * reference.seconds
        if kind.busy:
            moment = reference.began + share * (reference.ended - reference.began)
        driver = self.place.start()
        while driver.alive and driver.seconds < moment:
            time.sleep(POLL)
        finished = len(self.place.results_now())
        hit = kind.fault(self.place, driver, draw)
        self.facts = {"share": round(share, 4), "moment": round(driver.seconds, 2), "cells_finished_then": finished}
        if hit is None:
            driver.wait(limit(reference))
            return None
        self.facts |= {"target": hit.target, "away": round(hit.after, 1)}
        back = time.monotonic() + hit.after
        try:
            while time.monotonic() < back and (hit.at_least or driver.alive):
                time.sleep(POLL)
        finally:
            hit.undo()
        self._ended(driver)
        return hit

    def damaged(self, case: Case, draw: random.Random) -> Hit | None:
        """A launch, or one of a smaller part of the grid where shards are damaged, and then damage to a file."""
        damage = KINDS[case.kind].damage
        assert damage is not None
        smaller = case.kind == "bitflip" and bool(self.place.grid.smaller)
        first = self.place.start(smaller=smaller)
        code = first.wait(limit(self.reference))
        if code != 0:
            raise RuntimeError(f"an undisturbed launch ended with {code}; see {first.log}")
        target, self.spared = damage(self.place, draw, case.shards)
        self.facts = {"share": None, "moment": None, "target": target, "cells_damaged": self.spared}
        self._launch()
        return Hit(target=target)

    def _launch(self, *more: str) -> None:
        self.snapshots.append(self.place.results_now() | self.place.parts_now())
        self._ended(self.place.start(*more))

    def _ended(self, driver: Driver) -> None:
        self.codes.append(driver.wait(limit(self.reference) - driver.seconds))
        self.said.append(driver.said())

    def finish(self) -> None:
        """The same command until it ends with 0; where only cells that failed are left, once with --retry-failed."""
        while self.codes[-1] != 0 and len(self.codes) <= RERUNS:
            before = self.place.results_now()
            self.place.lab.heal()
            self._launch()
            if self.codes[-1] == 1 and len(self.codes) > 2 and self.place.results_now() == before:
                break  # nothing more comes of it
        if self.codes[-1] == 1:
            self.retried = True
            self._launch("--retry-failed")
        self.facts |= {"reruns": len(self.codes) - 1, "codes": list(self.codes)}

    def checked(self) -> dict[str, Any]:
        """A last launch, which must have nothing to do but what tracking has missed, and all checks."""
        reference, place = self.reference, self.place
        problems = [f"a driver hung: see driver-{i}.log" for i, code in enumerate(self.codes) if code == HUNG]
        if self.codes[-1] != 0:
            problems.append(f"no launch ended with 0 in {len(self.codes)}: {self.codes}")
        place.lab.heal()
        starts, last = len(place.executions()), len(self.codes)
        self._launch()
        if self.codes[last] != 0:
            problems.append(f"the last launch, with nothing to do, ended with {self.codes[last]}")
        if len(place.executions()) != starts:
            problems.append("the last launch executed cells")
        problems += store_problems(place, reference.keys)
        problems += repeated(place, self.snapshots, self.spared)
        if counts_hash(place.results, reference.keys) != reference.counts:
            problems.append("the episodes' counts differ from those of the undisturbed run")
        made = tables(place.results, place.folder / "tables")
        differ = [name for name in {**made, **reference.tables} if made.get(name) != reference.tables.get(name)]
        if differ:
            problems.append(f"tables differ from those of the undisturbed run: {', '.join(sorted(differ))}")
        tracked, statuses = run_problems(place, reference.keys)
        problems += tracked
        reruns = len(self.codes) > (1 if self.snapshots else 0) + 1
        survived = RETRY if self.retried else AGAIN if reruns else FIRST
        return {
            **self.facts,
            "outcome": FAILED if problems else survived,
            "problems": problems,
            "runs": statuses,
            "lost_executions": lost(place, self.spared),
            "left_behind": left_behind(place.results),
            "said": self.said,
        }
