"""Before the trials: what their cells read is put into shards, once, by whichever driver comes first."""

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
from cluster.precompute.pipeline import Report, bytes_held, run_stage, storage_problem
from cluster.precompute.tasks import missing, needs, to_stderr
from cluster.storage.backend import FolderPlace
from cluster.storage.depot import Depot
from cluster.storage.feature_cache import KEPT_FREE, in_words, mark_used
from cluster.storage.leases import waited_for
from cluster.storage.results import LEASES
from diffup.errors import REPORT, UserError
from diffup.grid.cell import AnyCell

INSTEAD = "cells compute what they read themselves"


def limit_of(features: Path, asked: int) -> int:
    """Bytes that shards may take in all: as asked, and so that a part of the disk stays free."""
    held = bytes_held(features)
    room = held + int(shutil.disk_usage(features).free * (1 - KEPT_FREE))
    return min(asked, room) if asked else room


def prepared(
    cells: Sequence[AnyCell], context: WorkContext, given: Resources, stopping: Callable[[], bool]
) -> dict[str, Any]:
    """What `prepare` did with the same arguments, as plain JSON types; whatever goes wrong there costs time only.

    Storage that is full or unavailable is a warning. Anything else is a bug and shows its traceback, once; the cells
    are run all the same, since they compute what is in no shard, and fail by themselves if the bug is theirs too.
    """
    say = partial(print, "features:", flush=True)
    try:
        return prepare(cells, context, given, say=say, stopping=stopping).to_dict()
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


def prepare(
    cells: Sequence[AnyCell],
    context: WorkContext,
    given: Resources,
    *,
    say: Callable[[str], None],
    stopping: Callable[[], bool],
) -> Report:
    """Encode images and compute prior maps that are in no shard yet.

    Args:
        cells: that read them.
        context: of the launch.
        given: the cluster's resources.
        say: is told what is done.
        stopping: whether to end early.
    """
    assert context.features is not None
    root, remote = context.features, context.remote
    root.mkdir(parents=True, exist_ok=True)
    found = needs(cells, context)
    for need in found:
        mark_used(root, need.spec)
    if remote:
        Depot(remote, root).mark_used(need.spec.name for need in found)
    lacking = missing(found, root, remote)
    if not lacking:
        return Report()
    with waited_for(
        context.store.leases if remote else FolderPlace(root / LEASES),
        "stage",
        context.launch,
        lambda: say("another launch is encoding; waiting for it"),
        stopping=stopping,
    ) as lease:
        if lease is None:
            return Report()
        lacking = missing(found, root, remote)
        images = sum(len(part.items) for part in lacking if part.need.encodes)
        triples = sum(len(part.items) for part in lacking if not part.need.encodes)
        if not lacking:
            return Report()
        say(f"{images} images to encode and {triples} prior maps to compute, once each")
        report = run_stage(
            lacking, context, workers=given.workers, resources=given.evaluate,
            limit_bytes=limit_of(root, context.features_limit), say=say, stop=stopping,
        )  # fmt: skip
    made = sum(report.made.values())
    say(f"{made} of {images + triples} in shards: {in_words(report.bytes)} in {report.wall:.0f} s ({root})")
    if report.full:
        say(
            f"there was no room for {report.full} more: their cells compute them. Give more with --features-limit, or "
            f"make room: python -m cluster.storage.feature_cache clean {root} --limit SIZE"
        )
    for what, why in list(report.failed.items())[:5]:
        say(f"not made: {what}: {why}")
    for why, count in report.unshared.most_common(5):
        to_stderr(f"{count} shards are on this machine alone, others compute them: {why}")
    if report.bugs:
        print(report.traceback, file=sys.stderr)
        _say_bug(f"{report.bugs} tasks ended with such an error, the first is above")
    return report
