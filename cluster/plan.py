"""What remains to be done: plan = grid − finished, in an order that loads each backbone as seldom as possible."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.store import Record, Store, code_hash
from diffup.backbones.names import has_text_encoder
from experiments.cell import AnyCell, Cell, TrainingCell, cell_to_dict
from experiments.grids import describe, unique

SHOWN = 40


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
        damaged: results that can't be trusted and are made again, with the reason.
        stale: finished cells that were made by other code.
        seconds: expected seconds of work by key, for the cells that past ones tell something about.
    """

    todo: list[AnyCell]
    left_out: list[LeftOut]
    damaged: list[Record] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def count(self, status: str) -> int:
        """Number of cells left out with `status`."""
        return sum(left.status == status for left in self.left_out)


def invalid_reason(cell: AnyCell) -> str:
    """Why a cell can never run, or ``""``."""
    adapted = isinstance(cell, Cell) and cell.sample.method == "adapter"  # a foreign method reads text itself
    if isinstance(cell, Cell) and "text" in cell.annotation.split("+") and not adapted:
        reader = cell.input.companion or cell.backbone
        if not has_text_encoder(reader):
            return f"annotation {cell.annotation!r}: {reader} has no text encoder and no companion text model is named"
    return ""


def make_plan(
    cells: Sequence[AnyCell],
    store: Store,
    *,
    retry_failed: bool = False,
    force: str = "",
    forced: frozenset[str] = frozenset(),
) -> Plan:
    """Compare a grid with the store.

    Args:
        cells: the grid; a cell that occurs twice is run once.
        store: the results so far; only read.
        retry_failed: run cells again that failed before.
        force: ``"all"``: run finished cells again; ``"other-code"``: those made by other code; ``""``: none.
        forced: keys that `force` applies to.
    """
    cells = unique(cells)
    records = {cell.key(): store.read(cell.key()) for cell in cells}
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
        elif not reason and record.status == "failed" and not (retry_failed or again(cell.key())):
            status, reason = "failed", f"failed before ({record.result['error']}); --retry-failed runs it again"
        elif not reason and needs and needs not in training:
            before = not_run.get(needs) or store.read(needs).status
            if before == "failed":
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
    return Plan(todo=todo, left_out=left_out, damaged=damaged, stale=stale, seconds=estimate(todo, store))


def _code(record: Record) -> str:
    return str(record.result.get("provenance", {}).get("code_hash", ""))


def resource_class(cell: AnyCell) -> str:
    """Cells of one resource class can share a worker process."""
    return "train" if isinstance(cell, TrainingCell) else "evaluate"


def in_order(cells: Iterable[AnyCell]) -> list[AnyCell]:
    """Training first, then what waits for none of it, then the rest; within each by seed and variant, then by place.

    Neighbours share backbone and features in a worker's memory. Cells that differ in seed or variant alone, which share
    prior maps on disk, lie apart: side by side, two workers would both compute them.
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


def _amount(document: dict[str, Any]) -> float:
    if document["kind"] == "train":
        train = document["train"]
        return float(train["steps"] * train["batch_size"] * train.get("accumulate", 1))
    return float(document["episodes"])


def _likeness(document: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Groups of like cost that a cell belongs to, the narrowest first."""
    what = (document["kind"], document["input"]["input_size"], document.get("sample", {}).get("method", ""))
    backbone = (*what, document["backbone"])
    cues = (*backbone, document.get("shots", 0), document.get("annotation", ""))
    return [cues, backbone, what, what[:1]]


def estimate(cells: Sequence[AnyCell], store: Store) -> dict[str, float]:
    """Expected seconds of work by key, from the finished cells that are most alike (per episode)."""
    seconds: dict[tuple[Any, ...], float] = defaultdict(float)
    amounts: dict[tuple[Any, ...], float] = defaultdict(float)
    if not cells:
        return {}
    for key in store.cell_keys():
        record, document = store.read(key), store.read_cell(key)
        try:
            took, amount, groups = float(record.metrics["seconds"]), _amount(document), _likeness(document)
        except (KeyError, TypeError, ValueError):
            continue
        for group in groups:
            seconds[group] += took
            amounts[group] += amount
    expected = {}
    for cell in cells:
        document = cell_to_dict(cell)
        for group in [group for group in _likeness(document) if amounts.get(group)][:1]:
            expected[cell.key()] = seconds[group] / amounts[group] * _amount(document)
    return expected


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def render(plan: Plan, name: str, *, details: bool = False) -> str:
    """The plan in words.

    Args:
        plan: what to show.
        name: of the grid.
        details: also list the cells to run.
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
    if plan.stale:
        lines.append(f"  {len(plan.stale)} finished cells were made by other code; --force=other-code runs them again")
    lines += [f"  warning: {record.key}: {record.why}; it is made again" for record in plan.damaged]
    if plan.todo and plan.seconds:
        known = [plan.seconds[cell.key()] for cell in plan.todo if cell.key() in plan.seconds]
        mean = sum(known) / len(known)
        rest = f"; {len(plan.todo) - len(known)} of them guessed" if len(known) < len(plan.todo) else ""
        lines.append(f"  about {mean * len(plan.todo) / 3600:.2f} hours of device time, from past cells{rest}")
    elif plan.todo:
        lines.append("  no estimate of time: no cell has finished in this results directory")
    skipped = [left for left in plan.left_out if left.status != "finished"]
    lines += _listed([f"  {left.status}: {left.cell.key()} {describe(left.cell)}: {left.reason}" for left in skipped])
    if details:
        lines += _listed([f"  to do: {cell.key()} {describe(cell)}" for cell in plan.todo])
    return "\n".join(lines)


def _listed(lines: list[str]) -> list[str]:
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"  … and {len(lines) - SHOWN} more"]
