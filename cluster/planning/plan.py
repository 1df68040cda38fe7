"""Plans a launch: the unfinished cells of a grid, in an order that loads each backbone as rarely as possible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from cluster.code_version import code_hash
from cluster.planning.estimate import Past, duration, expected_seconds, past_cells, wall_seconds
from cluster.storage.record import Record
from cluster.storage.results import Store
from diffup.backbones.registry import has_text_encoder
from diffup.grid.axes import describe, unique
from diffup.grid.cell import AnyCell, Cell, TrainingCell

SHOWN = 40
VERIFIED = 5000  # cells up to which a plan reads all that finished ones hold


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A cell that this launch does not run, and why."""

    cell: AnyCell
    status: str  # "finished", "failed", "invalid" or "blocked"
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A grid split into what to run and what not.

    Attributes:
        todo: cells to run, in order: those that wait for nothing first, then those that need training in this launch.
        left_out: all other cells of the grid.
        forced: cells to run though they are finished.
        damaged: results that can't be trusted and are made again, with the reason.
        stale: finished cells that were made by other code.
        seconds: expected seconds of work by key, for the cells that past ones tell something about.
        by_rates: of how many of these it is a machine's rates that tell, as no cell of their kind has finished.
        past: what finished cells cost.
    """

    todo: list[AnyCell]
    left_out: list[LeftOut]
    forced: list[AnyCell] = field(default_factory=list)
    damaged: list[Record] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    by_rates: int = 0
    past: list[tuple[AnyCell, Past]] = field(default_factory=list)

    def count(self, status: str) -> int:
        """Number of cells left out with `status`."""
        return sum(left.status == status for left in self.left_out)


def invalid_reason(cell: AnyCell) -> str:
    """Why a cell can never run, or ``""``."""
    adapted = isinstance(cell, Cell) and cell.sample.method == "adapter"  # a foreign method reads text itself
    if isinstance(cell, Cell) and "text" in cell.annotation.split("+") and not adapted:
        reader = cell.input.companion or cell.backbone
        if not _reads_text(reader):
            return f"annotation {cell.annotation!r}: {reader} has no text encoder and no companion text model is named"
    return ""


@lru_cache(maxsize=256)
def _reads_text(backbone: str) -> bool:
    return has_text_encoder(backbone)


def make_plan(
    cells: Sequence[AnyCell],
    store: Store,
    *,
    retry_failed: bool = False,
    force: str = "",
    forced: frozenset[str] = frozenset(),
    verify: bool = False,
    past: Sequence[Store] = (),
) -> Plan:
    """Compare a grid with the store.

    Args:
        cells: the grid; a cell that occurs twice is run once.
        store: the results so far; only read.
        retry_failed: run cells again that failed before.
        force: ``"all"``: run finished cells again; ``"other-code"``: those made by other code; ``""``: none.
        forced: keys that `force` applies to.
        verify: read all that finished cells hold, see `Store.read`; a grid of up to `VERIFIED` cells is read anyway.
        past: other stores to estimate from.
    """
    cells = unique(cells)
    verify = verify or len(cells) <= VERIFIED
    records = {cell.key(): store.read(cell.key(), verify=verify) for cell in cells}
    code = code_hash()
    stale = [key for key, record in records.items() if record.status == "finished" and _code(record) != code]

    def again(key: str) -> bool:
        return key in forced and (force == "all" or (force == "other-code" and key in stale))

    left_out: list[LeftOut] = []
    todo: list[AnyCell] = []
    training: set[str] = set()  # keys of training cells that this launch runs
    not_run: dict[str, str] = {}  # status of the training cells that it does not run
    for cell in [c for c in cells if isinstance(c, TrainingCell)] + [c for c in cells if isinstance(c, Cell)]:
        record = records[cell.key()]
        needs = cell.checkpoint if isinstance(cell, Cell) else ""
        reason, status = invalid_reason(cell), "invalid"
        if not reason and record.status == "finished" and not again(cell.key()):
            status, reason = "finished", "finished"
        elif not reason and record.status == "failed" and not (retry_failed or again(cell.key()) or record.passing):
            status, reason = "failed", f"failed before ({record.result['error']}); --retry-failed runs it again"
        elif not reason and needs and needs not in training:
            before = not_run.get(needs) or _status(needs, records, store)
            if before == "failed":  # and not for a reason that passes: then it would be among those to run
                status, reason = "blocked", f"its training cell {needs} failed before; --retry-failed runs both"
            elif before != "finished":
                status, reason = "invalid", f"its training cell {needs} is neither in this grid nor in {store.root}"
        if reason:
            left_out.append(LeftOut(cell=cell, status=status, reason=reason))
            if isinstance(cell, TrainingCell):
                not_run[cell.key()] = status
        else:
            todo.append(cell)
            if isinstance(cell, TrainingCell):
                training.add(cell.key())
    damaged = [record for record in records.values() if record.status == "damaged"]
    todo = in_order(todo)
    known = past_cells(cells, records, (store, *past)) if todo else []
    seconds = expected_seconds(todo, known)
    forced_cells = [cell for cell in todo if records[cell.key()].status == "finished"]
    return Plan(
        todo=todo, left_out=left_out, forced=forced_cells, damaged=damaged, stale=stale, seconds=seconds, past=known
    )


def _status(key: str, records: dict[str, Record], store: Store) -> str:
    if key not in records:  # a training cell of another grid
        records[key] = store.read(key, verify=False)
    return records[key].status


def _code(record: Record) -> str:
    return str(record.result.get("provenance", {}).get("code_hash", ""))


def resource_class(cell: AnyCell) -> str:
    """Cells of one resource class can share a worker process."""
    return "train" if isinstance(cell, TrainingCell) else "evaluate"


def in_order(cells: Iterable[AnyCell]) -> list[AnyCell]:
    """Training first, then what waits for none of it, then the rest; within each by seed and variant, then by place.

    Neighbours share backbone and features in a worker's memory. Cells that differ in seed or variant alone, which share
    prior maps on disk, are kept apart: side by side, two workers would both compute them.
    """
    cells = list(cells)
    training = {cell.key() for cell in cells if isinstance(cell, TrainingCell)}

    def rank(cell: AnyCell) -> tuple[Any, ...]:
        place: tuple[Any, ...] = (cell.backbone, cell.weights, cell.dataset, cell.fold)
        if isinstance(cell, TrainingCell):
            return (0, cell.variant != "diffup", cell.variant, cell.train_seed, *place, cell.key())
        late = 2 if cell.checkpoint in training else 1
        apart = (cell.train_seed, cell.variant != "diffup", cell.variant)
        return (late, *apart, *place, cell.annotation, cell.shots, cell.key())

    return sorted(cells, key=rank)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def render(plan: Plan, name: str, *, workers: int = 0, rated: bool = False, listed: bool = False) -> str:
    """The plan in words.

    Args:
        plan: what to show.
        name: of the grid.
        workers: also say how long it takes on so many.
        rated: whether an estimate from rates follows where past cells give none.
        listed: also name the cells to run, of many the first.
    """
    kinds = Counter(resource_class(cell) for cell in plan.todo)
    total = len(plan.todo) + len(plan.left_out)
    finished = plan.count("finished")
    lines = [f"{name}: {total} cells, {finished} finished, {len(plan.todo)} to do"]
    if plan.todo:
        lines[0] += f" ({kinds['train']} training, {kinds['evaluate']} evaluation)"
    for status in ("failed", "blocked", "invalid"):
        if count := plan.count(status):
            lines[0] += f", {count} {status}"
    if listed:
        lines += _listed([f"  to do: {cell.key()} {describe(cell)}" for cell in plan.todo])
    skipped = [left for left in plan.left_out if left.status != "finished"]
    lines += _listed([f"  {left.status}: {left.cell.key()} {describe(left.cell)}: {left.reason}" for left in skipped])
    if plan.stale:
        lines.append(f"  {len(plan.stale)} finished cells were made by other code; --force=other-code runs them again")
    lines += [f"  warning: {record.key}: {record.why}; it is made again" for record in plan.damaged]
    if plan.todo and plan.seconds:
        known = [plan.seconds[cell.key()] for cell in plan.todo if cell.key() in plan.seconds]
        rest = f", {plan.by_rates} of them by rates of a machine" if plan.by_rates else ""
        rest += f", without {len(plan.todo) - len(known)} that nothing tells of" if len(known) < len(plan.todo) else ""
        timed = [cell for cell in plan.todo if cell.key() in plan.seconds]
        wall = duration(wall_seconds(timed, plan.seconds, workers)) if workers else ""
        on = f"about {wall} on {workers} worker{'s' if workers > 1 else ''}, " if workers else "about "
        lines.append(f"  {on}{duration(sum(known))} of work, from past cells{rest}")
    elif plan.todo and not rated:
        where = "in this results directory (--past DIR names another; --dry-run estimates from rates)"
        lines.append(f"  no estimate of time: no cell has finished {where}")
    return "\n".join(lines)


def _listed(lines: list[str]) -> list[str]:
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"  … and {len(lines) - SHOWN} more"]
