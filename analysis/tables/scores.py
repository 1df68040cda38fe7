"""From cells to the numbers of a table: which cells stand at a place, their mean over folds and seeds, and differences.

A *study* is everything in a store that may stand in one table: one data set under one protocol. A *subject* is a row (a
method with a test backbone), a *task* is a number of shots with an annotation. The training seeds of a subject are
averaged; the episode seeds of a fold are pooled.
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
from analysis.stats import LEVEL, RESAMPLES, EpisodeCounts, Estimate, Scores, align, average, bootstrap, holm
from analysis.tables.places import METHODS, SUBJECT, Subject, Task, one_per_place
from analysis.tables.table import Number
from diffup.errors import UserError

ONE_TABLE = ("dataset", "dataset_hash", "protocol", "protocol_hash", "trained_dataset")  # never mixed in one
UNDECIDED = None
CHUNK = 64  # cells bootstrapped together: a class's sums then stay in cache

Seeds = dict[int, tuple[str, ...]]  # training seed → keys, one per episode seed
Runs = dict[int, Seeds]  # by fold
Members = list[tuple[tuple[str, ...], EpisodeCounts]]  # runs with their episodes


@dataclass(frozen=True, slots=True)
class Seat:
    """A cell as tables see it: the fields after the first two are columns of `Results.cells`."""

    subject: Subject
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
        cells: rows of `Results.cells`, at most one per subject, task, fold, training seed and episode seed.
        counts: of their episodes.
        warnings: cells left out in favour of others.
        resamples, seed: of the bootstrap.
    """

    cells: pd.DataFrame
    counts: dict[str, EpisodeCounts]
    warnings: tuple[str, ...] = ()
    resamples: int = RESAMPLES
    seed: int = 0
    _scores: dict[tuple[str, ...], Scores] = field(default_factory=dict)
    _differences: dict[tuple[tuple[str, ...], tuple[str, ...]], tuple[Scores, Scores]] = field(default_factory=dict)
    _means: dict[tuple[Any, ...], Estimate] = field(default_factory=dict)
    _numbers: dict[tuple[Any, ...], Number | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what may not stand in one table."""
        for name in ONE_TABLE:
            values = sorted(set(self.cells[name]))
            if len(values) > 1:
                raise UserError(
                    f"these cells have {name} {', '.join(values)}: group them with analysis.tables.scores.studies"
                )

    @cached_property
    def seats(self) -> list[Seat]:
        """The cells with what tables ask of them, in the order of `cells`; equal subjects and tasks are one object."""
        kept: dict[Any, Any] = {}
        names = (*SUBJECT, "shots", "annotation", *(item.name for item in fields(Seat) if item.name in self.cells))
        found = []
        for row in zip(*(self.cells[name].tolist() for name in names)):
            backbone, weights, trained_on, variant, method, given, shots, annotation = row[: len(SUBJECT) + 2]
            subject = Subject(backbone, weights, trained_on, variant, method, given != "given")
            task = Task(int(shots), annotation)
            place = kept.setdefault(subject, subject), kept.setdefault(task, task)
            found.append(Seat(*place, *row[len(SUBJECT) + 2 :]))
        return found

    @cached_property
    def subjects(self) -> list[Subject]:
        """All rows that were asked for: those tested on their training backbone first, then as the grid names them."""
        trained = set(self.cells["trained_on"])
        order: dict[Subject, tuple[bool, int, str]] = {}
        for seat in self.seats:
            subject = seat.subject
            rank = (subject.backbone not in trained, seat.position, subject.backbone)
            order[subject] = min(order.get(subject, rank), rank)
        backbones: dict[tuple[str, str], tuple[bool, int, str]] = {}
        for subject, rank in order.items():
            place = (subject.backbone, subject.weights)
            backbones[place] = min(backbones.get(place, rank), rank)
        methods = list(METHODS)

        def key(subject: Subject) -> tuple[object, ...]:
            known = methods.index(subject.variant) if subject.variant in methods else len(methods)
            # Training-free baselines last, the method itself first.
            return (backbones[subject.backbone, subject.weights], not subject.trained_on, known, subject)

        return sorted(order, key=key)

    @cached_property
    def by_backbone(self) -> dict[tuple[str, str], list[Subject]]:
        """The subjects of each backbone with its weights."""
        found: dict[tuple[str, str], list[Subject]] = {}
        for subject in self.subjects:
            found.setdefault((subject.backbone, subject.weights), []).append(subject)
        return found

    @cached_property
    def places(self) -> dict[str, int]:
        """The row of `cells` of each key."""
        return {seat.key: place for place, seat in enumerate(self.seats)}

    @cached_property
    def weights(self) -> dict[str, set[str]]:
        """Identities of the weights of each backbone."""
        found: dict[str, set[str]] = {}
        for backbone, weights in self.by_backbone:
            found.setdefault(backbone, set()).add(weights)
        return found

    @cached_property
    def trained_on(self) -> set[str]:
        """The training backbones."""
        return {subject.trained_on for subject in self.subjects if subject.trained_on}

    @cached_property
    def runs(self) -> dict[tuple[Subject, Task], Runs]:
        """Keys of the finished cells by place."""
        found: dict[tuple[Subject, Task], Runs] = {}
        known = [seat for seat in self.seats if seat.key in self.counts]
        for seat in sorted(known, key=lambda seat: seat.episode_seed):
            seeds = found.setdefault((seat.subject, seat.task), {}).setdefault(seat.fold, {})
            seeds[seat.train_seed] = (*seeds.get(seat.train_seed, ()), seat.key)
        return found

    @cached_property
    def folds_by_task(self) -> dict[Task, tuple[int, ...]]:
        """The folds that any subject was asked for, by task: a mean needs all of them."""
        folds: dict[Task, set[int]] = {}
        for seat in self.seats:
            folds.setdefault(seat.task, set()).add(seat.fold)
        return {task: tuple(sorted(found)) for task, found in sorted(folds.items())}

    def asked(self, subject: Subject, task: Task) -> bool:
        """Whether any fold of this place was asked for, finished or not."""
        return (subject, task) in self._asked

    @cached_property
    def _asked(self) -> set[tuple[Subject, Task]]:
        return {(seat.subject, seat.task) for seat in self.seats}

    @cached_property
    def steps(self) -> dict[Subject, int]:
        """Sampler steps by subject."""
        return {seat.subject: seat.steps for seat in self.seats}

    def checkpoints(self, subject: Subject) -> frozenset[str]:
        """Keys of the training cells that a subject's cells use."""
        return self._checkpoints.get(subject, frozenset())

    @cached_property
    def _checkpoints(self) -> dict[Subject, frozenset[str]]:
        found: dict[Subject, set[str]] = {}
        for seat in self.seats:
            found.setdefault(seat.subject, set()).add(seat.checkpoint)
        return {subject: frozenset(keys) for subject, keys in found.items()}

    def number(self, subject: Subject, task: Task, metric: str = "miou", folds: Sequence[int] = ()) -> Number | None:
        """Mean over folds (by default all of the task) and training seeds; None unless all folds are finished.

        Its value is nan where the figure is undefined in one of them.
        """
        folds = tuple(folds) or self.folds_by_task.get(task, ())
        place = (subject, task, metric, folds)
        if place not in self._numbers:
            self._numbers[place] = self._number(subject, task, metric, folds)
        return self._numbers[place]

    def _number(self, subject: Subject, task: Task, metric: str, folds: tuple[int, ...]) -> Number | None:
        runs = self.runs.get((subject, task), {})
        by_seed = self.estimates(subject, task, metric, folds)
        if not by_seed:
            return None
        seeds = self._common_seeds(runs, folds)
        keys = [key for fold in folds for seed in seeds for key in runs[fold][seed]]
        episodes = sum(len(self.counts[key]) for fold in folds for key in runs[fold][seeds[0]])
        return to_number(by_seed, keys, episodes, difference=False)

    def estimates(
        self, subject: Subject, task: Task, metric: str = "miou", folds: Sequence[int] = ()
    ) -> list[Estimate]:  # fmt: skip
        """Mean over folds of each training seed; empty unless all folds are finished."""
        runs = self.runs.get((subject, task), {})
        folds = tuple(folds) or self.folds_by_task.get(task, ())
        seeds = self._common_seeds(runs, folds)
        return [self._mean([runs[fold][seed] for fold in folds], metric) for seed in seeds]

    def _mean(self, keys: Sequence[tuple[str, ...]], metric: str) -> Estimate:
        """The mean of runs, one a fold."""
        self._prepare()
        place = (*keys, metric)
        if place not in self._means:
            self._means[place] = average([getattr(self._scores[run], metric) for run in keys])
        return self._means[place]

    @staticmethod
    def _common_seeds(runs: Runs, folds: Sequence[int]) -> list[int]:
        """The training seeds that every one of the folds has."""
        if not folds or not all(fold in runs for fold in folds):
            return []
        return sorted(set.intersection(*(set(runs[fold]) for fold in folds)))

    def difference(
        self,
        first: tuple[Subject, Task],
        second: tuple[Subject, Task],
        metric: str = "miou",
        folds: Sequence[int] = (),
    ) -> Number | None:
        """Paired difference, first − second, over the episodes and training seeds that both have.

        A training-free side is compared with every training seed of the other.

        Raises:
            UserError: the two were not evaluated on the same manifest.
        """
        folds = tuple(folds) or tuple(
            sorted({*self.folds_by_task.get(first[1], ()), *self.folds_by_task.get(second[1], ())})
        )
        place = (first, second, metric, folds)
        if place not in self._numbers:
            self._numbers[place] = self._difference(first, second, metric, folds)
        return self._numbers[place]

    def _difference(
        self, first: tuple[Subject, Task], second: tuple[Subject, Task], metric: str, folds: tuple[int, ...]
    ) -> Number | None:
        a, b = self.runs.get(first, {}), self.runs.get(second, {})
        if not folds or not all(fold in a and fold in b for fold in folds):
            return None
        pairs = self._seed_pairs(first[0], second[0], [(a[fold], b[fold]) for fold in folds])
        if not pairs:
            return None
        by_seed, keys, episodes = [], [], 0
        for number, (one, two) in enumerate(pairs):
            ours, theirs = [a[fold][one] for fold in folds], [b[fold][two] for fold in folds]
            keys += [key for run in (*ours, *theirs) for key in run]
            gap, shared = self._gap(ours, theirs, folds, metric)
            by_seed.append(gap)
            episodes += shared if number == 0 else 0
        return to_number(by_seed, list(dict.fromkeys(keys)), episodes, difference=True)

    def _gap(
        self, ours: Sequence[tuple[str, ...]], theirs: Sequence[tuple[str, ...]], folds: Sequence[int], metric: str
    ) -> tuple[Estimate, int]:
        """Mean over folds of the paired differences of runs, and the number of episodes that they share."""
        one, two = self._mean(ours, metric), self._mean(theirs, metric)
        if one.sample == two.sample:  # the same episodes on every fold
            return one.minus(two), sum(len(self.counts[key]) for run in ours for key in run)
        parts, episodes = [], 0
        for fold, first, second in zip(folds, ours, theirs):
            left, right, shared = self._paired(first, second, fold)
            parts.append(getattr(left, metric).minus(getattr(right, metric)))
            episodes += shared
        return average(parts), episodes

    def _seed_pairs(
        self, first: Subject, second: Subject, folds: Iterable[tuple[Seeds, Seeds]]
    ) -> list[tuple[int, int]]:  # fmt: skip
        ones, twos = zip(*folds)
        common_one, common_two = set.intersection(*map(set, ones)), set.intersection(*map(set, twos))
        if first.trained_on and second.trained_on:
            return [(seed, seed) for seed in sorted(common_one & common_two)]
        return [(one, two) for one in sorted(common_one) for two in sorted(common_two)]

    def mark_best(self, places: Sequence[tuple[Subject, Task]], numbers: Sequence[Number | None],
                  metric: str = "miou", folds: Sequence[int] = ()) -> list[Number | None]:  # fmt: skip
        """Mark the highest number, all that can't be told from it, and the highest of the rest as the second.

        What can be told from it: `differs`. Where that can't be decided, nothing of the group is marked.
        """
        known = [i for i, number in enumerate(numbers) if number is not None and not np.isnan(number.value)]
        marked = list(numbers)
        if len(known) < 2:
            return marked
        known.sort(key=lambda i: numbers[i].value, reverse=True)  # type: ignore[union-attr]
        top, rest = known[0], known[1:]
        apart = differs([self.difference(places[top], places[i], metric, folds) for i in rest])
        if UNDECIDED in apart:
            for i in known:
                marked[i] = replace(numbers[i], undecided=True)  # type: ignore[type-var]
            return marked
        others = [i for i, verdict in zip(rest, apart) if verdict]
        for i in known:
            marked[i] = replace(numbers[i], best=i not in others, second=i in others[:1])  # type: ignore[type-var]
        return marked

    def episodes(self, keys: tuple[str, ...]) -> EpisodeCounts:
        """The episodes of a run, given its cells: of several episode seeds one after the other, ids kept apart."""
        parts = [self.counts[key] for key in keys]
        if len(parts) == 1:
            return parts[0]
        seeds = self._episode_seeds
        episode = np.concatenate([part.episode + (seeds[key] << 32) for key, part in zip(keys, parts)])
        return EpisodeCounts(
            episode,
            np.concatenate([part.class_id for part in parts]),
            np.concatenate([part.query for part in parts]),
            np.concatenate([part.counts for part in parts]),
        )

    @cached_property
    def _episode_seeds(self) -> dict[str, int]:
        return {seat.key: seat.episode_seed for seat in self.seats}

    def _prepare(self) -> None:
        """Bootstrap all runs, those over the same episodes together."""
        if not self._unscored:
            return
        groups: dict[tuple[int, str], Members] = {}
        for runs in self.runs.values():
            for fold, seeds in runs.items():
                for keys in set(seeds.values()) & self._unscored:
                    counts = self.episodes(keys)
                    groups.setdefault((fold, counts.sample()), []).append((keys, counts))
        chunks = [
            (fold, members[start : start + CHUNK])
            for (fold, _), members in groups.items()
            for start in range(0, len(members), CHUNK)
        ]

        def scored(fold: int, members: Members) -> list[Scores]:
            episodes = [counts for _, counts in members]
            return bootstrap(episodes, resamples=self.resamples, seed=self.seed, stream=fold)

        # A chunk's products are small: a thread a chunk is faster than all threads on one.
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
            for (_, members), found in zip(chunks, pool.map(lambda chunk: scored(*chunk), chunks)):
                for (keys, _), scores in zip(members, found):
                    self._scores[keys] = scores.without_miou() if keys in self.without_miou else scores
        self._unscored.clear()

    @cached_property
    def _unscored(self) -> set[tuple[str, ...]]:
        every = {keys for runs in self.runs.values() for seeds in runs.values() for keys in seeds.values()}
        return every - set(self._scores)

    @cached_property
    def without_miou(self) -> set[tuple[str, ...]]:
        """The runs without mIoU: where no cell has one, a class of the fold may lack that their episodes don't name."""
        lacking = {seat.key for seat in self.seats if seat.miou != seat.miou}
        every = (keys for runs in self.runs.values() for seeds in runs.values() for keys in seeds.values())
        return {keys for keys in every if lacking.issuperset(keys)}

    def _paired(self, first: tuple[str, ...], second: tuple[str, ...], fold: int) -> tuple[Scores, Scores, int]:
        self._prepare()
        one, two = self._scores[first], self._scores[second]
        if one.miou.sample == two.miou.sample:
            return one, two, len(self.episodes(first))
        if (first, second) not in self._differences:
            aligned = align(self.episodes(first), self.episodes(second))
            scores = bootstrap(aligned, resamples=self.resamples, seed=self.seed, stream=fold)
            classes = {*self.episodes(first).class_id.tolist(), *self.episodes(second).class_id.tolist()}
            if {first, second} & self.without_miou or classes != set(aligned[0].class_id.tolist()):
                scores = [one.without_miou() for one in scores]
            self._differences[first, second] = (scores[0], scores[1])
        one, two = self._differences[first, second]
        return one, two, len(np.intersect1d(self.episodes(first).episode, self.episodes(second).episode))


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


def differs(gaps: Sequence[Number | None]) -> list[bool | None]:
    """Which of several paired differences exclude 0 together: p-value below 1 - `LEVEL` after Holm's correction.

    Args:
        gaps: what is compared in one table or group. None, a pair that can't be compared, differs and doesn't count.

    Returns:
        one verdict each; `UNDECIDED` where no p-value that the images and resamples allow would be small enough.
    """
    adjusted = holm([float("nan") if gap is None else gap.p for gap in gaps])
    verdicts: list[bool | None] = []
    for gap, p in zip(gaps, adjusted):
        known = gap is None or not p >= 1 - LEVEL or gap.p > gap.least_p
        verdicts.append(not p >= 1 - LEVEL if known else UNDECIDED)
    return verdicts


def to_number(by_seed: Sequence[Estimate], keys: Sequence[str], episodes: int, *, difference: bool) -> Number:
    """The mean over training seeds of estimates, one a seed, with its interval and the seeds' spread."""
    mean = average(by_seed)
    low, high = mean.interval()
    values = [estimate.value for estimate in by_seed]
    std = float(np.std(values, ddof=1)) if len(values) > 1 and mean.value == mean.value else None
    p = mean.p_value() if difference else float("nan")
    return Number(
        value=mean.value, low=low, high=high, std=std, seeds=len(values), episodes=episodes, keys=tuple(keys),
        difference=difference, p=p, least_p=mean.least_p if difference else 0.0,
    )  # fmt: skip
