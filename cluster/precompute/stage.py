"""The stage before the trials that fills the cache with what their cells read, by one launch at a time."""

from __future__ import annotations

import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cluster.execution.context import WorkContext
from cluster.execution.tuner import Resources
from cluster.precompute.pipeline import Report, bytes_held, run_pipeline, storage_problem
from cluster.precompute.tasks import inputs_of, missing, to_stderr
from cluster.storage.feature_cache import KEPT_FREE, mark_used
from cluster.storage.layout import FEATURES, LEASES
from cluster.storage.leases import waited_for
from cluster.storage.sizes import format_size
from diffup.errors import REPORT, UserError
from diffup.grid.cell import AnyCell

INSTEAD = "cells compute what they read themselves"


def precompute(
    cells: Sequence[AnyCell], context: WorkContext, given: Resources, stopping: Callable[[], bool]
) -> dict[str, Any]:
    """Resize or encode images and compute prior maps that are in no shard yet; whatever goes wrong costs time only.

    Storage that is full or unavailable is a warning. Anything else is a bug and shows its traceback, once; the cells
    are run all the same, since they compute what is in no shard, and fail by themselves if the bug is theirs too.

    Args:
        cells: that read them.
        context: of the launch.
        given: the cluster's resources.
        stopping: whether to end early.

    Returns:
        what was done, as plain JSON types.
    """
    try:
        say = partial(print, "features:", flush=True)
        return run_stage(cells, context, given, say=say, stopping=stopping).to_dict()
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        if isinstance(error, UserError) or storage_problem(error):
            to_stderr(f"features are not in shards ({error}); {INSTEAD}")
        else:
            traceback.print_exc()
            _say_bug(why)
        return {"error": why}


def _say_bug(what: str) -> None:
    print(f"features are not in shards ({what}); {INSTEAD}. {REPORT}", file=sys.stderr, flush=True)


def run_stage(
    cells: Sequence[AnyCell],
    context: WorkContext,
    given: Resources,
    *,
    say: Callable[[str], None],
    stopping: Callable[[], bool],
) -> Report:
    """`precompute`, whose arguments it takes, with its errors; `say` is called with what is done."""
    assert context.features is not None
    cache = context.store.sync.below(FEATURES, context.features)
    cache.root.mkdir(parents=True, exist_ok=True)
    found = inputs_of(cells, context)
    for part in found:
        mark_used(cache, part.spec.name)
    lacking, waiting = missing(found, cache), "another launch is encoding; waiting for it"
    if not lacking:
        return Report()
    leases = cache.backend.below(LEASES)
    with waited_for(leases, "stage", context.launch, lambda: say(waiting), stopping=stopping) as lease:
        lacking = missing(found, cache) if lease else []
        if not lacking:
            return Report()
        images = sum(len(part.items) for part in lacking if part.encodes)
        triples = sum(len(part.items) for part in lacking if not part.encodes)
        workers, resources = given.workers, given.evaluate
        if context.cache == "pixels":
            workers, resources = given.cpus, {"CPU": 1.0}
            say(f"{images} photographs to read and resize, once each")
        else:
            say(f"{images} images to encode and {triples} prior maps to compute, once each")
        report = run_pipeline(
            lacking, context, workers=workers, resources=resources,
            limit_bytes=_limit(cache.root, context.features_limit), say=say, stop=stopping,
        )  # fmt: skip
    _tell(report, images + triples, cache.root, say)
    return report


def _limit(root: Path, asked: int) -> int:
    """Bytes that shards may take in all: as asked, and so that a part of the disk stays free."""
    room = bytes_held(root) + int(shutil.disk_usage(root).free * (1 - KEPT_FREE))
    return min(asked, room) if asked else room


def _tell(report: Report, total: int, root: Path, say: Callable[[str], None]) -> None:
    made = sum(report.made.values())
    say(f"{made} of {total} in shards: {format_size(report.bytes)} in {report.wall:.0f} s ({root})")
    if report.full:
        say(
            f"there was no room for {report.full} more: their cells compute them. Give more with --features-limit, or "
            f"make room: diffup cache clean {root} --limit SIZE"
        )
    for what, why in list(report.failed.items())[:5]:
        say(f"not made: {what}: {why}")
    for why, count in report.unshared.most_common(5):
        to_stderr(f"{count} shards are on this machine alone, others compute them: {why}")
    if report.bugs:
        print(report.traceback, file=sys.stderr)
        _say_bug(f"{report.bugs} tasks ended with such an error, the first is above")
