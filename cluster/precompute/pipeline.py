"""The Ray Data pipeline that encodes each image once per backbone, then computes each triple's prior maps.

It is a stream of small tasks through a pool of workers that keep their models; each task writes one shard and returns a
few figures, so memory is bounded whatever the data set's size, and what a killed run has written stays. It only saves
time: what it could not do (a full disk, an image that can't be read) the cells do themselves. Even a bug does not end
it, but its traceback is kept and shown.
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

from cluster.execution.context import WorkContext
from cluster.execution.inputs import features_of, open_cells_dataset, set_up, sources
from cluster.execution.setting import priors_of
from cluster.execution.worker import passes
from cluster.precompute.tasks import Inputs
from cluster.storage.feature_cache import PIXELS, TEXT_PRIORS, VISUAL, push
from cluster.storage.layout import FEATURES
from cluster.storage.results import cell_of
from cluster.storage.sizes import format_size
from diffup.config import InputConfig
from diffup.data.dataset import Dataset
from diffup.episodes.cue_source import CueSource
from diffup.errors import UserError
from diffup.evaluation.encode import to_rows
from diffup.evaluation.pixels import Square, square
from diffup.evaluation.pixels import to_rows as pixel_rows
from diffup.evaluation.priors import PRIOR, Triple
from diffup.evaluation.shards import DATA, ShardStore, shard_name
from diffup.grid.cell import AnyCell, Cell

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
RECOUNT = 10.0  # seconds after which a worker counts again how much all have written
SAY_EVERY = 15.0  # seconds


@dataclass
class Report:
    """What the pipeline did.

    Attributes:
        made: number of rows written, by kind of store.
        seconds: of model work in all workers, by kind.
        bytes: written.
        failed: what could not be made, with the error; each is left to the cells.
        unshared: number of shards that could not be uploaded to the object store, by reason.
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

    def add(self, done: dict[str, Any]) -> None:
        """Count a task, see `PrecomputeWorker.do`."""
        self.made[done["kind"]] += done["made"]
        self.seconds[done["kind"]] += done["seconds"]
        self.bytes += done["bytes"]
        self.failed |= done["failed"]
        self.full += done["full"]
        self.bugs += "traceback" in done
        self.traceback = self.traceback or done.get("traceback", "")
        if done.get("unshared"):
            self.unshared[done["unshared"]] += 1

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


class PrecomputeWorker:
    """A worker of the pool: does tasks of `cluster.precompute.tasks.Inputs`, one shard each."""

    def __init__(self, context: WorkContext, limit_bytes: int) -> None:
        """Args: context of the launch, with ``features``; bytes that all shards may take."""
        assert context.features is not None
        self.context, self.cache = context, context.store.sync.below(FEATURES, context.features)
        self.limit, self._held, self._counted = limit_bytes, 0, float("-inf")
        set_up(self.context)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """One task in, its figures out."""
        return {"done": [json.dumps(self.do(json.loads(task))) for task in batch["task"]]}

    def do(self, task: dict[str, Any]) -> dict[str, Any]:
        """Make one shard; errors are returned rather than raised, so that one image does not end the pipeline."""
        what = f"{task['kind']} of {task['cell']['backbone']}"
        count = len(task["images"]) + len(task["triples"])
        began = time.perf_counter()
        result: dict[str, Any] = {"kind": task["kind"], "made": 0, "bytes": 0, "failed": {}, "full": 0, "unshared": ""}
        if self._no_room():
            return {**result, "full": count, "seconds": 0.0}
        try:
            make = self._square if task["kind"] == PIXELS else self._encode if task["images"] else self._match
            result |= make(task)
            self._held += result["bytes"]
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
        return {**result, "seconds": time.perf_counter() - began}

    def _no_room(self) -> bool:
        if time.monotonic() - self._counted > RECOUNT:
            self._held = bytes_held(self.cache.root)
            self._counted = time.monotonic()
        return self._held >= self.limit

    def _square(self, task: dict[str, Any]) -> dict[str, Any]:
        """Images as squares, for all backbones."""
        cell = cell_of(task["cell"])
        dataset = open_cells_dataset(cell, self.context)
        spec = sources(cell, dataset.fingerprint, self.context.device).pixels
        squares, failed = _squares(task, dataset, cell.input)
        if spec is None or not squares:
            return {"failed": failed}
        rows = pixel_rows(list(squares.values()))
        return {**self._write(spec.make(self.cache.root, ""), list(squares), rows), "failed": failed}

    def _encode(self, task: dict[str, Any]) -> dict[str, Any]:
        cell, dataset, features, of = self._open(task)
        encoder = features.encoder
        squares, failed = _squares(task, dataset, cell.input)
        if not squares:
            return {"failed": failed}
        ids, pixels = list(squares), list(squares.values())
        batches = [slice(start, start + encoder.batch) for start in range(0, len(ids), encoder.batch)]
        if task["kind"] == VISUAL:
            store = of.visual.make(self.cache.root, encoder.visual)
            rows = to_rows([row for batch in batches for row in encoder.encode_visual(pixels[batch], ids[batch])])
        else:
            assert of.text is not None
            store = of.text.make(self.cache.root, encoder.reader)
            texts = [text for batch in batches for text in encoder.encode_text(pixels[batch], ids[batch])]
            rows = {"text": torch.stack(texts).cpu()}
        return {**self._write(store, ids, rows), "failed": failed}

    def _match(self, task: dict[str, Any]) -> dict[str, Any]:
        cell, dataset, features, of = self._open(task)
        assert isinstance(cell, Cell)
        spec, identity = of.priors, features.encoder.visual
        if task["kind"] == TEXT_PRIORS:
            assert of.text_priors is not None
            spec, identity = of.text_priors, features.encoder.identity
        priors = priors_of(cell, dataset, CueSource(dataset, cell.input.cues), features, self.context)
        made = list(priors.compute(Triple(*triple) for triple in task["triples"]))
        rows = {PRIOR: torch.stack([maps for _, maps in made]).cpu()}
        return self._write(spec.make(self.cache.root, identity), [triple.key for triple, _ in made], rows)

    def _write(self, store: ShardStore, ids: list[str], rows: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Add a shard and publish it; returns its figures."""
        result = {"made": len(ids), "bytes": store.write(ids, rows)}
        try:
            push(self.cache, store.folder.name, shard_name(ids))
        except OSError as error:  # then others compute these rows
            return {**result, "unshared": f"{type(error).__name__}: {error}"}
        return result

    def _open(self, task: dict[str, Any]) -> tuple[AnyCell, Any, Any, Any]:
        """The cell that a task names, its data set, its features, and which folders they are in."""
        cell = cell_of(task["cell"])
        dataset = open_cells_dataset(cell, self.context)
        features = features_of(cell, dataset, self.context)
        return cell, dataset, features, sources(cell, dataset.fingerprint, self.context.device)


def _squares(task: dict[str, Any], dataset: Dataset, given: InputConfig) -> tuple[dict[str, Square], dict[str, str]]:
    """A task's images, resized, and why others can't be read."""
    squares, failed = {}, {}
    for image_id in task["images"]:
        try:
            squares[image_id] = square(dataset.image(image_id), given.input_size, given.pixel_dtype)
        except UserError as error:
            failed[image_id] = str(error)
    return squares, failed


def run_pipeline(
    lacking: Sequence[Inputs],
    context: WorkContext,
    *,
    workers: int,
    resources: dict[str, float],
    limit_bytes: int,
    say: Callable[[str], None],
    stop: Callable[[], bool] = lambda: False,
) -> Report:
    """Make what is missing, on the Ray cluster that this process is connected to.

    Args:
        lacking: see `cluster.precompute.tasks.missing`.
        context: of the launch.
        workers: at most so many.
        resources: of each, ``CPU`` and ``GPU``.
        limit_bytes: that all shards may take.
        say: is called with the progress, now and then.
        stop: asked after each task whether to end early.
    """
    report, began = Report(), time.monotonic()
    for name, encodes in (("images", True), ("prior maps", False)):  # prior maps are made from features
        parts = [part for part in lacking if part.encodes is encodes]
        total = sum(len(part.items) for part in parts)
        count, spoke = 0, time.monotonic()
        tasks = [task for part in parts for task in part.tasks()]
        for done in _stream(tasks, context, workers, resources, limit_bytes):
            report.add(done)
            count += done["made"]
            if time.monotonic() - spoke > SAY_EVERY:
                spoke = time.monotonic()
                say(f"{name}: {count} of {total} ({format_size(report.bytes)})")
            if stop():
                break
        if stop():
            break
    report.wall = time.monotonic() - began
    return report


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
    rows: Iterable[dict[str, Any]] = (
        ray.data.from_items([{"task": json.dumps(task)} for task in tasks], override_num_blocks=len(tasks))
        .map_batches(
            PrecomputeWorker,
            fn_constructor_args=(launch, limit_bytes),
            compute=ray.data.ActorPoolStrategy(size=max(1, min(workers, len(tasks)))),
            batch_size=1,
            num_cpus=resources.get("CPU", 1.0),
            num_gpus=resources.get("GPU", 0.0) or None,
        )
        .iter_rows()
    )
    for row in rows:
        yield json.loads(row["done"])
