"""The stage before the trials: Ray Data encodes each image once a backbone, then computes each triple's prior maps.

A stage is a stream of small tasks through a pool of workers that keep their models; each task writes one shard and
returns a few figures, so memory is bounded whatever the data set's size, and what a killed stage has written stays. The
stage only saves time: whatever it could not do (a full disk, an image that can't be read) the cells do themselves. An
error that is no user's mistake does not end a stage either, but its traceback is kept and shown.
"""

from __future__ import annotations

import errno
import json
import logging
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch

from cluster.execution.context import Sources, WorkContext, features_of, open_cells_dataset, priors_of, sources
from cluster.execution.work_units import read_cell
from cluster.execution.worker import passes
from cluster.precompute.tasks import Missing
from cluster.storage.depot import Depot
from cluster.storage.feature_cache import TEXT, TEXT_PRIORS, VISUAL, in_words
from diffup.data.dataset import Dataset
from diffup.episodes.cue_source import CueSource
from diffup.errors import UserError
from diffup.evaluation.encode import FeatureCache, to_rows
from diffup.evaluation.priors import PRIOR, Triple
from diffup.evaluation.shards import DATA, ShardStore, shard_name
from diffup.grid.cell import AnyCell, Cell

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
RECOUNT = 10.0  # seconds after which a worker looks again how much all have written


@dataclass
class Report:
    """What a stage did.

    Attributes:
        made: number of rows written, by kind of store.
        seconds: of model work in all workers, by kind.
        bytes: written.
        failed: what could not be made, with the error; each is left to the cells.
        unshared: number of shards that the object store did not take, and why.
        bugs: number of tasks that ended with an error that is no user's mistake, and the first one's traceback.
        full: number of rows that the limit or the disk had no room for.
        wall: seconds.
    """

    made: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    unshared: Counter[str] = field(default_factory=Counter)
    bugs: int = 0
    traceback: str = ""
    full: int = 0
    wall: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "made": dict(self.made), "seconds": dict(self.seconds), "bytes": self.bytes,
            "failed": len(self.failed), "bugs": self.bugs, "full": self.full, "wall": self.wall,
        }  # fmt: skip


def bytes_held(root: Path) -> int:
    """Bytes of all shards; some may be removed meanwhile."""
    held = 0
    for path in root.glob(f"*/*{DATA}"):
        with suppress(FileNotFoundError):
            held += path.stat().st_size
    return held


def storage_problem(error: BaseException) -> bool:
    """Whether an error is of the storage, which a user can mend, and not of the code."""
    return (isinstance(error, OSError) and error.errno in (*NO_ROOM, errno.EPERM)) or (
        isinstance(error, Exception) and passes(error)
    )


class Maker:
    """A worker of the pool: does tasks of `cluster.precompute.tasks.Missing`, one shard each."""

    def __init__(self, context: WorkContext, limit_bytes: int) -> None:
        """Args: context of the launch, with ``features``; bytes that all shards may take."""
        self.context = context
        self.limit, self._held, self._counted = limit_bytes, 0, float("-inf")
        self._unshared = ""
        torch.set_num_threads(self.context.threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """One task in, its figures out."""
        return {"done": [json.dumps(self.do(json.loads(task))) for task in batch["task"]]}

    def do(self, task: dict[str, Any]) -> dict[str, Any]:
        """Make one shard; errors are returned rather than raised, so that one image does not end the stage."""
        what = f"{task['kind']} of {task['cell']['backbone']}"
        count = len(task["images"]) + len(task["triples"])
        began = time.perf_counter()
        result: dict[str, Any] = {"kind": task["kind"], "made": 0, "bytes": 0, "failed": {}, "full": 0}
        if self._no_room():
            return {**result, "full": count, "seconds": 0.0}
        try:
            made = self._encode(task) if task["images"] else self._match(task)
            result |= made
            self._held += made["bytes"]
        except UserError as error:
            result["failed"] = {what: str(error)}
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                result["full"] = count
            elif storage_problem(error):
                result["failed"] = {what: f"storage unavailable: {error}"}
            else:
                result["failed"] = {what: f"{type(error).__name__}: {error}"}
                result["traceback"] = traceback.format_exc()
        unshared, self._unshared = self._unshared, ""
        return {**result, "unshared": unshared, "seconds": time.perf_counter() - began}

    def _no_room(self) -> bool:
        if time.monotonic() - self._counted > RECOUNT:
            root = self.context.features
            assert root is not None
            self._held = bytes_held(root)
            self._counted = time.monotonic()
        return self._held >= self.limit

    def _encode(self, task: dict[str, Any]) -> dict[str, Any]:
        made_for = self._open(task)
        dataset, encoder, of = made_for.dataset, made_for.features.encoder, made_for.of
        images, failed = {}, {}
        for image_id in task["images"]:
            try:
                images[image_id] = dataset.image(image_id)
            except UserError as error:
                failed[image_id] = str(error)
        if not images:
            return {"made": 0, "bytes": 0, "failed": failed}
        ids, pixels = list(images), list(images.values())
        steps = range(0, len(ids), encoder.batch)
        if task["kind"] == VISUAL:
            store = of.visual.make(made_for.root, encoder.visual)
            rows = to_rows(
                [
                    f
                    for s in steps
                    for f in encoder.encode_visual(pixels[s : s + encoder.batch], ids[s : s + encoder.batch])
                ]
            )
        else:
            assert of.text is not None
            store = of.text.make(made_for.root, encoder.reader)
            texts = [
                text
                for s in steps
                for text in encoder.encode_text(pixels[s : s + encoder.batch], ids[s : s + encoder.batch])
            ]
            rows = {"text": torch.stack(texts)}
        return {"made": len(ids), "bytes": self._write(store, ids, rows), "failed": failed}

    def _match(self, task: dict[str, Any]) -> dict[str, Any]:
        made_for = self._open(task)
        cell, dataset, features = made_for.cell, made_for.dataset, made_for.features
        assert isinstance(cell, Cell)
        spec, identity = made_for.of.priors, features.encoder.visual
        if task["kind"] == TEXT_PRIORS:
            assert made_for.of.text_priors is not None
            spec, identity = made_for.of.text_priors, features.encoder.identity
        priors = priors_of(cell, dataset, CueSource(dataset, cell.input), features, self.context)
        made = list(priors.compute(Triple(*triple) for triple in task["triples"]))
        ids = [triple.key for triple, _ in made]
        store = spec.make(made_for.root, identity)
        written = self._write(store, ids, {PRIOR: torch.stack([maps for _, maps in made])})
        return {"made": len(made), "bytes": written, "failed": {}}

    def _write(self, store: ShardStore, ids: list[str], rows: dict[str, torch.Tensor]) -> int:
        """Add a shard, for the machines that share an object store too; returns its bytes."""
        written = store.write(ids, rows)
        if self.context.remote:
            try:
                Depot(self.context.remote, store.folder.parent).push(store.folder.name, shard_name(ids))
            except OSError as error:  # then others compute these rows
                self._unshared = f"{type(error).__name__}: {error}"
        return written

    def _open(self, task: dict[str, Any]) -> _Opened:
        cell, root = read_cell(task["cell"]), self.context.features
        assert root is not None
        dataset = open_cells_dataset(cell, self.context)
        features = features_of(cell, dataset, self.context)
        return _Opened(cell, root, dataset, features, sources(cell, dataset.fingerprint, self.context.device))


@dataclass(frozen=True)
class _Opened:
    """What a task is about."""

    cell: AnyCell
    root: Path
    dataset: Dataset
    features: FeatureCache
    of: Sources


def run_stage(
    lacking: Sequence[Missing],
    context: WorkContext,
    *,
    workers: int,
    resources: dict[str, float],
    limit_bytes: int,
    say: Callable[[str], None],
    stop: Callable[[], bool] = lambda: False,
) -> Report:
    """Make what is lacking, on the Ray cluster that this process is connected to.

    Args:
        lacking: see `cluster.precompute.tasks.missing`.
        context: of the launch.
        workers: at most so many.
        resources: of each, ``CPU`` and ``GPU``.
        limit_bytes: that all shards may take.
        say: is told how far it is, now and then.
        stop: asked after each task whether to end early.
    """
    report, began = Report(), time.monotonic()
    for name, encodes in (("images", True), ("prior maps", False)):  # prior maps are made from features
        parts = [part for part in lacking if part.need.encodes is encodes]
        total = sum(len(part.items) for part in parts)
        spoke = time.monotonic()
        for done in _stream(
            [task for part in parts for task in part.tasks()], context, workers, resources, limit_bytes
        ):
            report.made[done["kind"]] += done["made"]
            report.seconds[done["kind"]] += done["seconds"]
            report.bytes += done["bytes"]
            report.failed |= done["failed"]
            report.full += done["full"]
            report.bugs += "traceback" in done
            report.traceback = report.traceback or done.get("traceback", "")
            if done.get("unshared"):
                report.unshared[done["unshared"]] += 1
            if time.monotonic() - spoke > 15:
                spoke = time.monotonic()
                say(f"{name}: {_count(report, encodes)} of {total} ({in_words(report.bytes)})")
            if stop():
                break
        if stop():
            break
    report.wall = time.monotonic() - began
    return report


def _count(report: Report, encodes: bool) -> int:
    return sum(count for kind, count in report.made.items() if (kind in (VISUAL, TEXT)) is encodes)


def _stream(
    tasks: list[dict[str, Any]], launch: WorkContext, workers: int, resources: dict[str, float], limit_bytes: int
) -> Iterator[dict[str, Any]]:
    """The figures of each task as it ends."""
    if not tasks:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    pool = ray.data.ActorPoolStrategy(size=max(1, min(workers, len(tasks))))
    rows: Iterable[dict[str, Any]] = (
        ray.data.from_items([{"task": json.dumps(task)} for task in tasks], override_num_blocks=len(tasks))
        .map_batches(
            Maker,
            fn_constructor_args=(launch, limit_bytes),
            compute=pool,
            batch_size=1,
            num_cpus=resources.get("CPU", 1.0),
            num_gpus=resources.get("GPU", 0.0) or None,
        )
        .iter_rows()
    )
    for row in rows:
        yield json.loads(row["done"])
