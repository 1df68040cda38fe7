"""What a plan will read: images by backbone, triples by backbone and way to annotate, each once, as tasks of a stage.

An image is encoded once a backbone, whatever the number of shots, annotations, folds, variants and seeds; a triple's
prior maps are computed once, whatever the number of variants, training seeds and nested shots.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.execution.context import (
    WorkContext,
    classes_of,
    manifest_for_cell,
    open_cells_dataset,
    sources,
    training_pools_of,
)
from cluster.storage.depot import Depot
from cluster.storage.feature_cache import TEXT, VISUAL, Spec
from cluster.storage.results import cell_document
from diffup.errors import UserError
from diffup.evaluation.evaluate import Evaluation, triples
from diffup.evaluation.priors import Triple
from diffup.evaluation.shards import ShardStore
from diffup.grid.cell import AnyCell, Cell, TrainingCell

IMAGES_A_TASK, TRIPLES_A_TASK = 32, 512
REASONS = 10  # that are shown


@dataclass(frozen=True)
class Need:
    """What one folder of shards must hold for a plan.

    Attributes:
        spec: of the folder.
        cell: one of the cells that read it; it tells a worker which backbone and data set to load.
        items: image ids, or triples, each once.
    """

    spec: Spec
    cell: AnyCell
    items: dict[Any, None] = field(default_factory=dict)

    @property
    def encodes(self) -> bool:
        """Whether the items are images rather than triples."""
        return self.spec.kind in (VISUAL, TEXT)


def to_stderr(warning: str) -> None:
    """Print a warning."""
    print(f"warning: {warning}", file=sys.stderr, flush=True)


def needs(cells: Iterable[AnyCell], context: WorkContext, warn: Callable[[str], None] = to_stderr) -> list[Need]:
    """What `cells` read, in their order: features first, then prior maps.

    A cell that can't be read (its data set has changed, say) is left out: it fails by itself, with its reason.

    Args:
        cells: whose needs.
        context: where their data are.
        warn: is told, once per reason, how many cells were left out and why; of at most `REASONS` reasons.
    """
    found: dict[str, Need] = {}
    left_out: Counter[str] = Counter()

    def add(spec: Spec | None, cell: AnyCell, items: Iterable[Any]) -> None:
        if spec is not None:
            found.setdefault(spec.name, Need(spec, cell)).items.update(dict.fromkeys(items))

    for cell in cells:
        if isinstance(cell, Cell) and cell.sample.method == "adapter":
            continue
        try:
            dataset = open_cells_dataset(cell, context)
            of = sources(cell, dataset.fingerprint, context.device)
            if isinstance(cell, TrainingCell):
                images = list(
                    dict.fromkeys(i for pool in training_pools_of(cell, dataset, context).values() for i in pool)
                )
                add(of.visual, cell, images)
                add(of.text, cell, images)
                continue
            classes = classes_of(cell, dataset)
            episodes = manifest_for_cell(cell, dataset, classes, context).episodes
        except UserError as error:
            left_out[str(error)] += 1
            continue
        what = Evaluation(
            model=None, sample=cell.sample, annotation=cell.annotation, shots=cell.shots,
            class_indices=tuple(classes), deranged=cell.input.class_names == "deranged",
        )  # fmt: skip
        cues = [triple for episode in episodes for triple in triples(what, episode)]
        add(of.visual, cell, dict.fromkeys(i for cue in cues for i in (cue.query, cue.support) if i))
        add(of.text, cell, (cue.query for cue in cues if cue.kind == "text"))
        if cell.sample.method != "prototype":
            add(of.priors, cell, (cue for cue in cues if cue.kind != "text"))
            add(of.text_priors, cell, (cue for cue in cues if cue.kind == "text"))
    for reason, count in left_out.most_common(REASONS):
        warn(f"{count} cells are left out of what is encoded in advance: {reason}")
    if len(left_out) > REASONS:
        warn(f"{len(left_out)} reasons in all; {left_out.total()} cells are left out of what is encoded in advance")
    return sorted(found.values(), key=lambda need: not need.encodes)


def key_of(item: Any) -> str:
    """An item's id in its store."""
    return item.key if isinstance(item, Triple) else str(item)


@dataclass(frozen=True)
class Missing:
    """What a folder of shards lacks."""

    need: Need
    items: list[Any]

    def tasks(self) -> Iterator[dict[str, Any]]:
        """The work in pieces, as plain JSON types; each becomes one shard."""
        size = IMAGES_A_TASK if self.need.encodes else TRIPLES_A_TASK
        items = self.items if self.need.encodes else sorted(self.items)  # a query's triples side by side
        for start in range(0, len(items), size):
            piece = items[start : start + size]
            yield {
                "cell": cell_document(self.need.cell),
                "kind": self.need.spec.kind,
                "images": piece if self.need.encodes else [],
                "triples": [] if self.need.encodes else [_plain(triple) for triple in piece],
            }


def _plain(triple: Triple) -> list[Any]:
    return [triple.query, triple.support, triple.class_index, triple.kind]


def missing(found: Sequence[Need], root: Path, remote: str = "") -> list[Missing]:
    """What is in no shard yet. Whether shards are those of the weights that will be loaded is seen when they are.

    Args:
        found: what `needs` says.
        root: of this machine's shards.
        remote: URI of the object store that shares them; then those that are there count.

    Raises:
        OSError: the object store does not answer.
    """
    lacking = []
    for need in found:
        store = ShardStore(root / need.spec.name)
        store.refresh()
        if bad := store.damaged | store.marked():
            store.remove(bad)
            if remote:
                Depot(remote, root).drop(need.spec.name, bad)
            store = ShardStore(root / need.spec.name)
            store.refresh()
        keys = {key_of(item): item for item in need.items}
        absent = store.missing(keys)
        if remote:  # what is on this machine alone is not there for the others
            held = Depot(remote, root).ids(need.spec.name)
            absent = [key for key in keys if key not in held]
        if absent:
            lacking.append(Missing(need, [keys[key] for key in absent]))
    return lacking
