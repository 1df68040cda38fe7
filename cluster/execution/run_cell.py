"""Runs one cell, from its data set to its metrics.

Without Ray: the same functions run a cell in a worker, in a test, or by hand. A long evaluation cell can be split into
parts: `execute` is `conclude` of the `evaluate_part` of all episodes.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
from PIL import Image

from cluster.execution.context import WorkContext
from cluster.execution.inputs import (
    CHECKPOINT,
    features_of,
    keep_for,
    open_cells_dataset,
    provenance,
    reads_text,
    set_up,
    training_pools_of,
)
from cluster.execution.live import LiveTraining
from cluster.execution.memory import Took, measured
from cluster.execution.setting import Setting, training_bank
from cluster.execution.work_units import Part
from cluster.options import Work
from cluster.storage.layout import STATE
from cluster.storage.sync import Sync
from diffup.config import parse_annotation, support_kinds
from diffup.episodes.cue_source import CueSource
from diffup.episodes.episode import Episode
from diffup.episodes.sampling import held_out_classes
from diffup.errors import UserError
from diffup.evaluation.bank import NO_BANK
from diffup.evaluation.evaluate import batches, evaluate, predict, reads_priors, triples
from diffup.evaluation.metrics import fb_iou, miou, undefined
from diffup.evaluation.panels import panel, shown_episodes
from diffup.evaluation.priors import PriorSource, Triple
from diffup.grid.cell import AnyCell, Cell, TrainingCell, cell_to_dict
from diffup.models.card import versions
from diffup.models.flops import method_cost
from diffup.training.distributed import ProcessGroup
from diffup.training.sampler import EpisodeSampler
from diffup.training.trainer import train

TOOK = "took"  # of a part, in its provenance

__all__ = ["Outcome", "Part", "WorkContext", "conclude", "evaluate_part", "execute"]


@dataclass(frozen=True)
class Outcome:
    """Result of a cell: metrics, the episode table (None for a training cell), provenance and panels by name."""

    metrics: dict[str, float]
    episodes: pd.DataFrame | None
    provenance: dict[str, Any]
    panels: dict[str, Image.Image] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)  # why metrics are nan


def execute(cell: AnyCell, context: WorkContext) -> Outcome:
    """Run one cell.

    Raises:
        UserError: data, weights or checkpoint are missing or not those the cell names.
    """
    set_up(context)
    with measured(context.device, context.threads) as took:
        if isinstance(cell, Cell):
            setting = Setting.of(cell, context)
            outcome = _concluded(cell, context, setting, [_part(context, setting, 0, cell.episodes)])
        else:
            started = time.perf_counter()
            outcome = _train(cell, context)
            outcome.metrics.setdefault("seconds", time.perf_counter() - started)
    return _measured(outcome, context, took)


def evaluate_part(cell: Cell, context: WorkContext, start: int, end: int) -> Part:
    """Evaluate episodes `start` to `end` of a cell's manifest.

    Parts that are split at multiples of the batch size are, merged, what one unit would give.

    Raises:
        UserError: data, weights or checkpoint are missing or not those the cell names.
    """
    set_up(context)
    with measured(context.device, context.threads) as took:
        part = _part(context, Setting.of(cell, context), start, end)
    return Part(part.episodes, {**part.provenance, TOOK: dataclasses.asdict(took)}, part.seconds)


def _part(context: WorkContext, setting: Setting, start: int, end: int) -> Part:
    before = setting.made()
    began = time.perf_counter()
    table = evaluate(
        setting.what, setting.episodes[start:end], setting.cues, setting.features,
        batch_size=context.batch_size, progress=context.progress, priors=setting.priors,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    facts = {**setting.provenance, **{name: count - before[name] for name, count in setting.made().items()}}
    return Part(table, facts, seconds)


def conclude(cell: Cell, context: WorkContext, parts: list[Part]) -> Outcome:
    """A cell from all of its parts, in order.

    Raises:
        UserError: they are not all of its episodes.
    """
    with measured(context.device, context.threads) as took:
        outcome = _concluded(cell, context, Setting.of(cell, context), parts)
    return _measured(outcome, context, sum((Took(**part.provenance.get(TOOK, {})) for part in parts), took))


def _concluded(cell: Cell, context: WorkContext, setting: Setting, parts: list[Part]) -> Outcome:
    table = pd.concat([part.episodes for part in parts], ignore_index=True) if len(parts) > 1 else parts[0].episodes
    if list(table["episode"]) != [episode.index for episode in setting.episodes]:
        raise ValueError(f"cell {cell.key()}: its parts are not its {len(setting.episodes)} episodes")
    panels = _panels(context, setting, [setting.episodes[place] for place in shown_episodes(table)])
    seconds = sum(part.seconds for part in parts)
    metrics = {
        "miou": miou(table["class_id"], table["inter_fg"], table["union_fg"], setting.what.class_indices),
        "fb_iou": fb_iou(table["inter_fg"], table["union_fg"], table["inter_bg"], table["union_bg"]),
        "episodes_per_s": len(table) / seconds,
        "seconds": seconds,
    }
    names = {c: setting.cues.dataset.classes[c] for c in setting.what.class_indices}
    reasons = undefined(table["class_id"], table[["inter_fg", "union_fg", "inter_bg", "union_bg"]], names)
    counts = {name: sum(part.provenance[name] for part in parts) for name in setting.made()}
    facts = {**setting.provenance, **counts, "cost": _cost(cell, setting)}
    return Outcome(metrics, table, facts, panels, reasons)


def _panels(context: WorkContext, setting: Setting, episodes: list[Episode]) -> dict[str, Image.Image]:
    made: dict[str, Image.Image] = {}
    for start in range(0, len(episodes), context.batch_size):
        chunk = episodes[start : start + context.batch_size]
        shown = predict(setting.what, chunk, setting.cues, setting.features, setting.priors)
        for episode, prediction in zip(chunk, shown, strict=True):
            made[f"episode_{episode.index:04d}"] = panel(setting.what, episode, prediction, setting.cues)
    return made


def _cost(cell: Cell, setting: Setting) -> dict[str, float]:
    """Costs of an episode by architecture; those of a foreign method are unknown."""
    if setting.what.method is not None:
        return {}
    model = setting.what.model.config if setting.what.model is not None else None
    texts = int("text" in parse_annotation(cell.annotation))
    supports = len(support_kinds(cell.annotation, cell.shots))
    try:
        return method_cost(cell.backbone, cell.input, model, cell.sample, supports, texts)
    except UserError:  # a backbone whose architecture can't be built by its name: its costs are unknown
        return {}


def _measured(outcome: Outcome, context: WorkContext, took: Took) -> Outcome:
    """With what all that ran for the cell took."""
    outcome.metrics.update(took.metrics(context.device))
    return outcome


def execute_together(
    cells: Sequence[Cell], context: WorkContext, start: int = 0, end: int = 0
) -> Iterator[tuple[Cell, Outcome | Part | Exception]]:
    """Evaluate cells in one pass over their episodes: what they share is read, encoded and matched once.

    Counts are those of `execute`: each cell has its own batches, and on a CPU neither an image's features nor a pair's
    maps depend on what else is computed. A cell that raises ends alone. Shared seconds count in equal parts, forward
    passes for the first cell that needs them; memory and busy share are those of the pass so far.

    Args:
        cells: of one pass (`cluster.execution.work_units.pass_of`).
        context: of the launch.
        start, end: the episodes; an `end` of 0: all.

    Yields:
        each cell as it ends, with its error, or its outcome, or its part where `end` is given.
    """
    set_up(context)
    ends, so_far = _ends(cells, context, start, end), Took()
    while True:
        with measured(context.device, context.threads) as took:  # up to the next end, without what its reader does
            found = next(ends, None)
        if found is None:
            return
        so_far += took
        cell, made = found
        if isinstance(made, Outcome):
            _measured(made, context, so_far)
        elif isinstance(made, Part):
            made.provenance[TOOK] = dataclasses.asdict(so_far)
        yield cell, made


def _ends(
    cells: Sequence[Cell], context: WorkContext, start: int, end: int
) -> Iterator[tuple[Cell, Outcome | Part | Exception]]:
    running, sources = list[_Pass](), dict[Any, PriorSource | None]()
    beside: Cell | None = None
    for cell in sorted(cells, key=lambda cell: not reads_text(cell)):  # the others share the features of these
        try:
            setting = Setting.of(cell, context, beside)
        except Exception as error:
            yield cell, error
            continue
        beside = beside or (cell if reads_text(cell) else None)
        shared = sources.setdefault((id(setting.features), cell.input.cues, cell.input.negatives), setting.priors)
        running.append(_Pass(cell, replace(setting, priors=shared), context, start, end))
    prepared: dict[int, int] = {}
    while running:
        _prepare(running, prepared)
        for each in running.copy():
            made: Outcome | Part | Exception | None
            try:
                made = each.step()
            except Exception as error:
                made = error
            if made is not None:
                running.remove(each)
                yield each.cell, made


class _Pass:
    """One cell on its way through its episodes, or through some of them."""

    def __init__(self, cell: Cell, setting: Setting, context: WorkContext, start: int, end: int) -> None:
        self.cell, self.setting, self.context, self.whole = cell, setting, context, not end
        self.episodes = setting.episodes[start : end or None]
        self.batches = batches(
            setting.what, self.episodes, setting.cues, setting.features, batch_size=context.batch_size,
            priors=setting.priors, window=0,
        )  # fmt: skip
        self.rows: list[dict[str, Any]] = []
        self.seconds, self.made = 0.0, dict.fromkeys(setting.made(), 0)

    def triples(self, count: int) -> list[Triple]:
        """What its next episodes read."""
        if not reads_priors(self.setting.what):
            return []
        ahead = self.episodes[len(self.rows) : len(self.rows) + count]
        return [triple for episode in ahead for triple in triples(self.setting.what, episode)]

    def count(self, began: float, before: dict[str, int], shared_by: int = 1) -> None:
        """Add what was done since."""
        self.seconds += (time.perf_counter() - began) / shared_by
        self.made = {name: self.made[name] + now - before[name] for name, now in self.setting.made().items()}

    def step(self) -> Outcome | Part | None:
        """Its next batch, or after the last one its outcome or part."""
        began, before = time.perf_counter(), self.setting.made()
        batch = next(self.batches, None)
        self.count(began, before)
        if batch is not None:
            self.rows += batch
            return None
        part = Part(pd.DataFrame(self.rows), {**self.setting.provenance, **self.made}, self.seconds)
        return _concluded(self.cell, self.context, self.setting, [part]) if self.whole else part


def _prepare(running: list[_Pass], prepared: dict[int, int]) -> None:
    """Compute the prior maps of as many episodes as memory has room for, once for all cells.

    Args:
        running: cells at the same episode.
        prepared: by source of prior maps, the episode up to which they are there.
    """
    by_source: dict[int, list[_Pass]] = {}
    for each in running:
        by_source.setdefault(id(each.setting.priors), []).append(each)
    for source, group in by_source.items():
        place, priors = len(group[0].rows), group[0].setting.priors
        if priors is None or place < prepared.get(source, 0):
            continue
        batch = group[0].context.batch_size
        of_one = {triple for each in group for triple in each.triples(1)}
        window = max(batch, priors.window(len(of_one)) // batch * batch)
        prepared[source] = place + window
        began, before = time.perf_counter(), group[0].setting.made()
        priors.prepare(triple for each in group for triple in each.triples(window))
        for number, each in enumerate(group):
            each.count(began, before if number == 0 else each.setting.made(), len(group))


CELLS = Work(execute, evaluate_part, conclude, execute_together)


def _train(cell: TrainingCell, context: WorkContext) -> Outcome:
    group = ProcessGroup.current()
    dataset = open_cells_dataset(cell, context)
    features = features_of(cell, dataset, context)
    cues = CueSource(dataset, cell.input.cues)
    held_out = held_out_classes(dataset, cell.fold, cell.train.hold_out, cell.train_seed)
    pools = training_pools_of(cell, dataset, context)
    source = (dataset.fingerprint, cell.protocol_hash, cell.lists)
    keep = keep_for(context, *source, features.encoder.identity, cell.input, held_out)
    given = training_bank(cell, dataset, features, cues, context)
    sampler = EpisodeSampler(cues, features, pools, cell.fold, cell.train_seed, cell.model, cell.train, keep, given)
    before = features.encoded
    sync, state = Sync(context.results, context.remote), f"{cell.key()}/{STATE}"  # errors there cost steps only
    if group.rank == 0:
        with suppress(OSError):
            sync.download(state)
    warnings = [NO_BANK] if cell.input.bank and given is None else []

    def upload() -> None:
        with suppress(OSError):
            sync.upload(state)

    def other_code(why: str) -> None:
        """Keep a warning: the state file of an interrupted training was written by other code."""
        warnings.append(why)
        print(f"warning: cell {cell.key()}: {why}", file=sys.stderr)

    with closing(LiveTraining(cell, context)) as live:
        metrics = train(
            sampler,
            context.results / cell.key() / CHECKPOINT,
            facts={
                "cell": cell_to_dict(cell),
                "key": cell.key(),
                "classes": [dataset.classes[c] for c in sorted(pools)],
                "left_out": [dataset.classes[c] for c in (*dataset.novel_classes(cell.fold), *held_out)],
                "versions": versions(),
                **({"bank": list(given.images)} if given else {}),
            },
            progress=context.progress,
            report=live,
            device=context.device,
            group=group,
            saved=upload,
            other_code=other_code,
        )
    if group.rank == 0:
        with suppress(OSError):
            sync.remove(state)
    facts = {**provenance(context, features, dataset), "train_workers": group.size, "curve": live.curve}
    facts |= {"warnings": warnings} if warnings else {}
    return Outcome(metrics, None, {**facts, "images_encoded": features.encoded - before})
