"""From cells to the numbers of a table: which cells stand at a place, their mean over folds and seeds, and differences.

A *study* is everything in a store that may stand in one table: one data set under one protocol. A *subject* is a row (a
method with a test backbone), a *task* is a number of shots with an annotation. The training seeds of a subject are
averaged; the episode seeds of a fold are pooled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from analysis.frame import Results
from analysis.places import METHODS, Subject, Task, one_per_place, subject_of, task_of
from analysis.stats import LEVEL, RESAMPLES, EpisodeCounts, Estimate, Scores, align, average, bootstrap, holm
from analysis.tables import Number

CHUNK = 256

Seeds = dict[int, tuple[str, ...]]  # training seed → keys, one per episode seed
Runs = dict[int, Seeds]  # by fold


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

    @cached_property
    def subjects(self) -> list[Subject]:
        """All rows that were asked for: those tested on their training backbone first, then as the grid names them."""
        trained = set(self.cells["trained_on"])
        order: dict[Subject, tuple[bool, int, str]] = {}
        for row in _rows(self.cells):
            subject = subject_of(row)
            rank = (subject.backbone not in trained, int(row.position), subject.backbone)
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
    def runs(self) -> dict[tuple[Subject, Task], Runs]:
        """Keys of the finished cells by place."""
        found: dict[tuple[Subject, Task], Runs] = {}
        cells = self.cells[self.cells["key"].isin(list(self.counts)) & self.cells["miou"].notna()]
        for row in _rows(cells.sort_values("episode_seed")):
            seeds = found.setdefault((subject_of(row), task_of(row)), {}).setdefault(int(row.fold), {})
            seeds[int(row.train_seed)] = (*seeds.get(int(row.train_seed), ()), str(row.key))
        return found

    @cached_property
    def folds_by_task(self) -> dict[Task, tuple[int, ...]]:
        """The folds that any subject was asked for, by task: a mean needs all of them."""
        folds: dict[Task, set[int]] = {}
        for row in _rows(self.cells):
            folds.setdefault(task_of(row), set()).add(int(row.fold))
        return {task: tuple(sorted(found)) for task, found in sorted(folds.items())}

    def asked(self, subject: Subject, task: Task) -> bool:
        """Whether any fold of this place was asked for, finished or not."""
        return (subject, task) in self._asked

    @cached_property
    def _asked(self) -> set[tuple[Subject, Task]]:
        return {(subject_of(row), task_of(row)) for row in _rows(self.cells)}

    @cached_property
    def steps(self) -> dict[Subject, int]:
        """Sampler steps by subject."""
        return {subject_of(row): int(row.steps) for row in _rows(self.cells)}

    def checkpoints(self, subject: Subject) -> frozenset[str]:
        """Keys of the training cells that a subject's cells use."""
        return self._checkpoints.get(subject, frozenset())

    @cached_property
    def _checkpoints(self) -> dict[Subject, frozenset[str]]:
        found: dict[Subject, set[str]] = {}
        for row in _rows(self.cells):
            found.setdefault(subject_of(row), set()).add(str(row.checkpoint))
        return {subject: frozenset(keys) for subject, keys in found.items()}

    def number(self, subject: Subject, task: Task, metric: str = "miou", folds: Sequence[int] = ()) -> Number | None:
        """Mean over folds (by default all of the task) and training seeds; None unless all folds are finished."""
        runs = self.runs.get((subject, task), {})
        folds = tuple(folds) or self.folds_by_task.get(task, ())
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
        self._prepare()
        return [
            average([getattr(self._scores[runs[fold][seed]], metric) for fold in folds])
            for seed in self._common_seeds(runs, folds)
        ]

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
            ValueError: the two were not evaluated on the same manifest.
        """
        a, b = self.runs.get(first, {}), self.runs.get(second, {})
        folds = tuple(folds) or tuple(
            sorted({*self.folds_by_task.get(first[1], ()), *self.folds_by_task.get(second[1], ())})
        )
        if not folds or not all(fold in a and fold in b for fold in folds):
            return None
        pairs = self._seed_pairs(first[0], second[0], [(a[fold], b[fold]) for fold in folds])
        if not pairs:
            return None
        by_seed, keys, episodes = [], [], 0
        for number, (one, two) in enumerate(pairs):
            parts = []
            for fold in folds:
                ours, theirs, shared = self._paired(a[fold][one], b[fold][two], fold)
                parts.append(getattr(ours, metric).minus(getattr(theirs, metric)))
                keys += [*a[fold][one], *b[fold][two]]
                episodes += shared if number == 0 else 0
            by_seed.append(average(parts))
        return to_number(by_seed, list(dict.fromkeys(keys)), episodes, difference=True)

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

        Told apart: the paired difference to the highest has a p-value below 1 - `LEVEL` after Holm's correction for the
        number of comparisons.
        """
        known = [i for i, number in enumerate(numbers) if number is not None and not np.isnan(number.value)]
        marked = list(numbers)
        if len(known) < 2:
            return marked
        known.sort(key=lambda i: numbers[i].value, reverse=True)  # type: ignore[union-attr]
        top, rest = known[0], known[1:]
        gaps = [self.difference(places[top], places[i], metric, folds) for i in rest]
        adjusted = holm([float("nan") if gap is None else gap.p for gap in gaps])
        apart = [i for i, p in zip(rest, adjusted) if not p >= 1 - LEVEL]
        for i in known:
            marked[i] = replace(numbers[i], best=i not in apart, second=i in apart[:1])  # type: ignore[type-var]
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
        return {str(row.key): int(row.episode_seed) for row in _rows(self.cells)}

    def _prepare(self) -> None:
        """Bootstrap all runs, those over the same episodes together."""
        if not self._unscored:
            return
        groups: dict[tuple[int, str], list[tuple[tuple[str, ...], EpisodeCounts]]] = {}
        for runs in self.runs.values():
            for fold, seeds in runs.items():
                for keys in set(seeds.values()) & self._unscored:
                    counts = self.episodes(keys)
                    groups.setdefault((fold, counts.sample()), []).append((keys, counts))
        for (fold, _), members in groups.items():
            for start in range(0, len(members), CHUNK):
                chunk = members[start : start + CHUNK]
                episodes = [counts for _, counts in chunk]
                found = bootstrap(episodes, resamples=self.resamples, seed=self.seed, stream=fold)
                self._scores.update(zip((keys for keys, _ in chunk), found))
        self._unscored.clear()

    @cached_property
    def _unscored(self) -> set[tuple[str, ...]]:
        every = {keys for runs in self.runs.values() for seeds in runs.values() for keys in seeds.values()}
        return every - set(self._scores)

    def _paired(self, first: tuple[str, ...], second: tuple[str, ...], fold: int) -> tuple[Scores, Scores, int]:
        self._prepare()
        one, two = self._scores[first], self._scores[second]
        if one.miou.sample == two.miou.sample:
            return one, two, len(self.episodes(first))
        if (first, second) not in self._differences:
            aligned = align(self.episodes(first), self.episodes(second))
            scores = bootstrap(aligned, resamples=self.resamples, seed=self.seed, stream=fold)
            self._differences[first, second] = (scores[0], scores[1])
        one, two = self._differences[first, second]
        return one, two, len(np.intersect1d(self.episodes(first).episode, self.episodes(second).episode))


def studies(results: Results, *, resamples: int = RESAMPLES, seed: int = 0) -> list[Study]:
    """The store's cells by data set and protocol, duplicates of a place resolved in favour of the latest launch.

    Raises:
        ValueError: there is no evaluation cell.
    """
    if results.cells.empty:
        raise ValueError(f"{results.root} holds no evaluation cell; run a grid first, e.g. make quickstart")
    by = ["dataset", "dataset_hash", "protocol", "protocol_hash", "trained_dataset"]
    found = []
    for _, cells in results.cells.groupby(by, sort=True):
        kept, warnings = one_per_place(cells, results.documents)
        counts = {key: results.counts[key] for key in kept["key"] if key in results.counts}
        found.append(Study(kept, counts, tuple(warnings), resamples, seed))
    return found


def _rows(cells: pd.DataFrame) -> Iterator[Any]:
    return cells.itertuples()


def to_number(by_seed: Sequence[Estimate], keys: Sequence[str], episodes: int, *, difference: bool) -> Number:
    """The mean over training seeds of estimates, one a seed, with its interval and the seeds' spread."""
    mean = average(by_seed)
    low, high = mean.interval()
    values = [estimate.value for estimate in by_seed]
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    p = mean.p_value() if difference else float("nan")
    return Number(
        value=mean.value, low=low, high=high, std=std, seeds=len(values), episodes=episodes, keys=tuple(keys),
        difference=difference, p=p,
    )  # fmt: skip
