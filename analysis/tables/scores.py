"""From cells to the numbers of a table: means over folds and seeds, paired differences, and marks of the best.

A *study* is everything in a store that may be in one table: one data set under one protocol. Its rows are methods
(`MethodKey`), its columns tasks (`Task`). The training seeds of a method are averaged; the episode seeds of a fold are
pooled.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from analysis.results import Results
from analysis.tables.places import METHOD_COLUMNS, METHODS, MethodKey, Task, grouped, memo, one_per_place, ordered
from analysis.tables.table import UNDECIDED, Number, differs, to_number
from diffup.errors import UserError
from diffup.evaluation.stats import RESAMPLES, EpisodeCounts, Estimate, Scores, align, average, bootstrap, join

ONE_TABLE = ("dataset", "dataset_hash", "protocol", "protocol_hash", "trained_dataset")  # never mixed in one
CHUNK = 64  # cells bootstrapped together: a class's sums then stay in cache

Run = tuple[str, ...]  # keys of the cells of one fold and training seed, one per episode seed
Seeds = dict[int, Run]  # by training seed
Runs = dict[int, Seeds]  # by fold
Place = tuple[MethodKey, Task]


@dataclass(frozen=True, slots=True)
class ScoredCell:
    """A cell as tables see it: the fields after the first two are columns of `Results.cells`."""

    method: MethodKey
    task: Task
    fold: int
    train_seed: int
    episode_seed: int
    key: str
    checkpoint: str
    steps: int
    position: int
    miou: float


@dataclass(frozen=True, eq=False)
class Study:
    """The cells of one data set under one protocol.

    Attributes:
        cells: rows of `Results.cells`, at most one per method, task, fold, training seed and episode seed.
        counts: of their episodes.
        warnings: cells left out in favour of others.
        resamples, seed: of the bootstrap.
        scores: bootstrapped runs so far, filled as they are needed.
    """

    cells: pd.DataFrame
    counts: dict[str, EpisodeCounts]
    warnings: tuple[str, ...] = ()
    resamples: int = RESAMPLES
    seed: int = 0
    scores: dict[Run, Scores] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what may not be in one table."""
        for name in ONE_TABLE:
            values = sorted(set(self.cells[name]))
            if len(values) > 1:
                raise UserError(
                    f"these cells have {name} {', '.join(values)}: group them with analysis.tables.scores.studies"
                )

    @cached_property
    def scored(self) -> list[ScoredCell]:
        """The cells in the order of `cells`; equal methods and tasks are one object."""
        kept: dict[Any, Any] = {}
        columns = [item.name for item in fields(ScoredCell)[2:]]
        names = (*METHOD_COLUMNS, "shots", "annotation", *columns)
        found = []
        for row in zip(*(self.cells[name].tolist() for name in names)):
            backbone, weights, trained_on, variant, sampler, given, shots, annotation, *values = row
            method = MethodKey(backbone, weights, trained_on, variant, sampler, given != "given")
            task = Task(int(shots), annotation)
            found.append(ScoredCell(kept.setdefault(method, method), kept.setdefault(task, task), *values))
        return found

    @cached_property
    def methods(self) -> list[MethodKey]:
        """All rows that were asked for: those tested on their training backbone first, then as the grid names them."""
        trained = set(self.cells["trained_on"])
        order: dict[tuple[str, str], tuple[bool, int, str]] = {}
        for cell in self.scored:
            backbone = cell.method.backbone
            rank = (backbone not in trained, cell.position, backbone)
            place = (backbone, cell.method.weights)
            order[place] = min(order.get(place, rank), rank)
        known = list(METHODS)

        def key(method: MethodKey) -> tuple[object, ...]:
            variant = known.index(method.variant) if method.variant in known else len(known)
            # Training-free baselines last, the method itself first.
            return order[method.backbone, method.weights], not method.trained_on, variant, method

        return sorted({cell.method for cell in self.scored}, key=key)

    @cached_property
    def shown(self) -> list[MethodKey]:
        """The rows of tables of results: other samplers of DiffUp's own checkpoints are in the ablation only."""
        whole: set[str] = set()
        for method in self.methods:
            if method.variant == "diffup" and not method.control:
                whole |= self.checkpoints[method]
        return [
            m
            for m in self.methods
            if m.control or m.variant in METHODS or m.method != "diffup" or not self.checkpoints[m] & whole
        ]

    @cached_property
    def by_backbone(self) -> dict[tuple[str, str], list[MethodKey]]:
        """The methods of each backbone with its weights."""
        return grouped(((method.backbone, method.weights), method) for method in self.methods)

    @cached_property
    def weights(self) -> dict[str, list[str]]:
        """Identities of the weights of each backbone."""
        return grouped(self.by_backbone)

    @cached_property
    def trained_on(self) -> list[str]:
        """The training backbones, sorted."""
        return sorted({method.trained_on for method in self.methods if method.trained_on})

    @cached_property
    def checkpoints(self) -> dict[MethodKey, set[str]]:
        """Keys of the training cells that a method's cells use."""
        return {m: set(keys) for m, keys in grouped((cell.method, cell.checkpoint) for cell in self.scored).items()}

    @cached_property
    def runs(self) -> dict[Place, Runs]:
        """Keys of the finished cells by place."""
        found: dict[Place, Runs] = {}
        known = [cell for cell in self.scored if cell.key in self.counts]
        for cell in sorted(known, key=lambda cell: cell.episode_seed):
            seeds = found.setdefault((cell.method, cell.task), {}).setdefault(cell.fold, {})
            seeds[cell.train_seed] = (*seeds.get(cell.train_seed, ()), cell.key)
        return found

    @cached_property
    def folds_by_task(self) -> dict[Task, tuple[int, ...]]:
        """The folds that any method was asked for, by task: a mean needs all of them."""
        folds = grouped((cell.task, cell.fold) for cell in self.scored)
        return {task: tuple(sorted(set(folds[task]))) for task in sorted(folds)}

    @cached_property
    def tasks(self) -> list[Task]:
        """All tasks, by annotation, then shots."""
        return ordered(self.folds_by_task)

    @cached_property
    def _asked(self) -> set[Place]:
        return {(cell.method, cell.task) for cell in self.scored}

    def asked(self, method: MethodKey, task: Task) -> bool:
        """Whether any fold of this place was asked for, finished or not."""
        return (method, task) in self._asked

    @memo
    def number(self, method: MethodKey, task: Task, metric: str = "miou", folds: tuple[int, ...] = ()) -> Number | None:
        """Mean over folds (by default all of the task) and training seeds; None unless all folds are finished.

        Its value is nan where the figure is undefined in one of them.
        """
        by_seed = self.estimates(method, task, metric, folds)
        if not by_seed:
            return None
        runs, folds = self.runs[method, task], folds or self.folds_by_task[task]
        seeds = common_seeds(runs, folds)
        keys = [key for fold in folds for seed in seeds for key in runs[fold][seed]]
        episodes = sum(len(self.counts[key]) for fold in folds for key in runs[fold][seeds[0]])
        return to_number(by_seed, keys, episodes, difference=False)

    def estimates(
        self, method: MethodKey, task: Task, metric: str = "miou", folds: tuple[int, ...] = ()
    ) -> list[Estimate]:
        """Mean over folds of each training seed; empty unless all folds are finished."""
        runs, folds = self.runs.get((method, task), {}), folds or self.folds_by_task.get(task, ())
        return [self._mean(tuple(runs[fold][seed] for fold in folds), metric) for seed in common_seeds(runs, folds)]

    @memo
    def _mean(self, runs: tuple[Run, ...], metric: str) -> Estimate:
        """The mean of runs, one per fold."""
        return average([getattr(self._scores_of(run), metric) for run in runs])

    @memo
    def difference(
        self, first: Place, second: Place, metric: str = "miou", folds: tuple[int, ...] = ()
    ) -> Number | None:
        """Paired difference, first − second, over the episodes and training seeds that both have.

        A training-free side is compared with every training seed of the other.

        Raises:
            UserError: the two were not evaluated on the same manifest.
        """
        tested = {*self.folds_by_task.get(first[1], ()), *self.folds_by_task.get(second[1], ())}
        folds = folds or tuple(sorted(tested))
        a, b = self.runs.get(first, {}), self.runs.get(second, {})
        ones, twos = common_seeds(a, folds), common_seeds(b, folds)
        if first[0].trained_on and second[0].trained_on:
            pairs = [(seed, seed) for seed in ones if seed in twos]
        else:
            pairs = [(one, two) for one in ones for two in twos]
        if not pairs:
            return None
        gaps, keys = [], []
        for one, two in pairs:
            ours, theirs = tuple(a[fold][one] for fold in folds), tuple(b[fold][two] for fold in folds)
            keys += [key for run in (*ours, *theirs) for key in run]
            gaps.append(self._gap(ours, theirs, folds, metric))
        return to_number([gap for gap, _ in gaps], list(dict.fromkeys(keys)), gaps[0][1], difference=True)

    def _gap(
        self, ours: tuple[Run, ...], theirs: tuple[Run, ...], folds: tuple[int, ...], metric: str
    ) -> tuple[Estimate, int]:
        """Mean over folds of the paired differences of runs, and the number of episodes that they share."""
        one, two = self._mean(ours, metric), self._mean(theirs, metric)
        if one.sample == two.sample:  # the same episodes on every fold
            return one.minus(two), sum(len(self.counts[key]) for run in ours for key in run)
        parts = [self._paired(first, second, fold) for fold, first, second in zip(folds, ours, theirs)]
        gaps = [getattr(left, metric).minus(getattr(right, metric)) for left, right, _ in parts]
        return average(gaps), sum(shared for _, _, shared in parts)

    @memo
    def _paired(self, first: Run, second: Run, fold: int) -> tuple[Scores, Scores, int]:
        """Scores of two runs over the episodes that both have, and how many these are."""
        ours, theirs = self.episodes(first), self.episodes(second)
        one, two = self._scores_of(first), self._scores_of(second)
        if one.miou.sample == two.miou.sample:
            return one, two, len(ours)
        aligned = align(ours, theirs)
        one, two = bootstrap(aligned, resamples=self.resamples, seed=self.seed, stream=fold)
        classes = {*ours.class_id.tolist(), *theirs.class_id.tolist()}
        if {first, second} & self.without_miou or classes != set(aligned[0].class_id.tolist()):
            one, two = one.without_miou(), two.without_miou()
        return one, two, len(aligned[0])

    def mark_best(
        self, places: Sequence[Place], metric: str = "miou", folds: tuple[int, ...] = ()
    ) -> list[Number | None]:
        """The numbers of a group, marked: the highest, those below it down to the first that differs, and that one.

        `differs` says what differs. A number below that one isn't marked, though its own difference may be uncertain: a
        mark below a higher number without one reads as an error. Where `differs` can't decide, nothing is marked.
        """
        numbers = [self.number(*place, metric, folds) for place in places]
        known = {i: number for i, number in enumerate(numbers) if number is not None and number.value == number.value}
        if len(known) < 2:
            return numbers
        top, *rest = sorted(known, key=lambda i: known[i].value, reverse=True)
        apart = differs([self.difference(places[top], places[i], metric, folds) for i in rest])
        others = rest[next((k for k, verdict in enumerate(apart) if verdict), len(rest)) :]
        for i, number in known.items():
            if UNDECIDED in apart:
                numbers[i] = replace(number, undecided=True)
            else:
                numbers[i] = replace(number, best=i not in others, second=i in others[:1])
        return numbers

    def episodes(self, run: Run) -> EpisodeCounts:
        """The episodes of a run: of several episode seeds one after the other, with distinct ids."""
        parts = [self.counts[key] for key in run]
        if len(parts) == 1:
            return parts[0]
        return join(parts, np.concatenate([self.counts[key].episode + (self._seeds[key] << 32) for key in run]))

    @cached_property
    def _seeds(self) -> dict[str, int]:
        return {cell.key: cell.episode_seed for cell in self.scored}

    def _scores_of(self, run: Run) -> Scores:
        """The scores of a run; the first call bootstraps all runs, those over the same episodes together."""
        if run in self.scores:
            return self.scores[run]
        groups = grouped(
            ((fold, self.episodes(one).sample), one)
            for runs in self.runs.values()
            for fold, seeds in runs.items()
            for one in set(seeds.values()) - set(self.scores)
        )
        chunks = [
            (fold, members[start : start + CHUNK])
            for (fold, _), members in groups.items()
            for start in range(0, len(members), CHUNK)
        ]

        def scored(chunk: tuple[int, list[Run]]) -> list[Scores]:
            episodes = [self.episodes(one) for one in chunk[1]]
            return bootstrap(episodes, resamples=self.resamples, seed=self.seed, stream=chunk[0])

        # A chunk's products are small: a thread a chunk is faster than all threads on one.
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
            for (_, members), found in zip(chunks, pool.map(scored, chunks)):
                for one, scores in zip(members, found):
                    self.scores[one] = scores.without_miou() if one in self.without_miou else scores
        return self.scores[run]

    @cached_property
    def without_miou(self) -> set[Run]:
        """The runs without mIoU: where no cell has one, a class of the fold may lack that their episodes don't name."""
        lacking = {cell.key for cell in self.scored if cell.miou != cell.miou}
        every = (run for runs in self.runs.values() for seeds in runs.values() for run in seeds.values())
        return {run for run in every if lacking.issuperset(run)}


def common_seeds(runs: Runs, folds: Iterable[int]) -> list[int]:
    """The training seeds that every one of the folds has; none without a fold."""
    seeds = [set(runs.get(fold, {})) for fold in folds]
    return sorted(set.intersection(*seeds)) if seeds else []


def studies(results: Results, *, resamples: int = RESAMPLES, seed: int = 0) -> list[Study]:
    """The store's cells by data set and protocol, duplicates of a place resolved in favour of the latest launch.

    Raises:
        UserError: there is no evaluation cell.
    """
    if results.cells.empty:
        raise UserError(f"{results.root} holds no evaluation cell; run a grid first, e.g. make quickstart")
    found = []
    for _, cells in results.cells.groupby(list(ONE_TABLE), sort=True):
        kept, warnings = one_per_place(cells, results.documents)
        counts = {key: results.counts[key] for key in kept["key"] if key in results.counts}
        found.append(Study(kept, counts, tuple(warnings), resamples, seed))
    return found
