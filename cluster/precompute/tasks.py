"""What cells read: images, images by backbone, triples by backbone and annotation, each once, as pipeline tasks.

Where the cache keeps pixels, an image is read and resized once, and that is all. Where it keeps features, an image is
encoded once per backbone, whatever the number of shots, annotations, folds, variants and seeds; a triple's prior maps
are computed once, whatever the number of variants, training seeds and nested shots.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.execution.context import WorkContext
from cluster.execution.inputs import (
    classes_of,
    manifest_for_cell,
    open_cells_dataset,
    sources,
    training_pools_of,
)
from cluster.execution.setting import bank_of
from cluster.planning.counts import keeps_pixels
from cluster.storage.feature_cache import PIXELS, TEXT, VISUAL, Spec, absent
from cluster.storage.results import cell_document
from cluster.storage.sync import Sync
from diffup.config import FEATURE_METHODS
from diffup.errors import UserError
from diffup.evaluation.evaluate import Evaluation, triples
from diffup.evaluation.priors import Triple
from diffup.grid.cell import AnyCell, Cell, TrainingCell

IMAGES_PER_TASK, TRIPLES_PER_TASK = 32, 512
REASONS = 10  # that are shown


@dataclass(frozen=True)
class Inputs:
    """What cells read from one folder of shards.

    Attributes:
        spec: of the folder.
        cell: one of the cells; it tells a worker which backbone and data set to load.
        items: image ids or triples, by their id in the folder.
    """

    spec: Spec
    cell: AnyCell
    items: dict[str, Any] = field(default_factory=dict)

    @property
    def encodes(self) -> bool:
        """Whether the items are images rather than triples."""
        return self.spec.kind in (PIXELS, VISUAL, TEXT)

    def tasks(self) -> Iterator[dict[str, Any]]:
        """The items in chunks, as plain JSON types; each becomes one shard."""
        size = IMAGES_PER_TASK if self.encodes else TRIPLES_PER_TASK
        items: list[Any] = list(self.items.values())
        if not self.encodes:
            items.sort()  # a query's triples side by side
        for start in range(0, len(items), size):
            chunk = items[start : start + size]
            yield {
                "cell": cell_document(self.cell),
                "kind": self.spec.kind,
                "images": chunk if self.encodes else [],
                "triples": [] if self.encodes else [[t.query, t.support, t.class_index, t.kind] for t in chunk],
            }


def to_stderr(warning: str) -> None:
    """Print a warning."""
    print(f"warning: {warning}", file=sys.stderr, flush=True)


def inputs_of(cells: Iterable[AnyCell], context: WorkContext, warn: Callable[[str], None] = to_stderr) -> list[Inputs]:
    """What `cells` read, in their order: features first, then prior maps.

    A cell whose inputs can't be read (its data set has changed, say) is left out: it fails by itself, with its reason.

    Args:
        cells: of a plan.
        context: where their data are.
        warn: is told, once per reason, how many cells were left out and why; of at most `REASONS` reasons.
    """
    found: dict[str, Inputs] = {}
    left_out: Counter[str] = Counter()

    def add(spec: Spec | None, cell: AnyCell, items: Iterable[str | Triple]) -> None:
        if spec is not None:
            ids = {item.key if isinstance(item, Triple) else item: item for item in items}
            known = found.setdefault(spec.name, Inputs(spec, cell)).items
            known |= {key: item for key, item in ids.items() if key not in known}

    for cell in cells:
        if isinstance(cell, Cell) and cell.sample.method == "adapter":
            continue
        try:
            dataset = open_cells_dataset(cell, context)
            of = sources(cell, dataset.fingerprint, context.device)
            if isinstance(cell, TrainingCell):
                images = [image for pool in training_pools_of(cell, dataset, context).values() for image in pool]
                if context.cache == "pixels":
                    if keeps_pixels(cell, len(set(images))):
                        add(of.pixels, cell, images)
                    continue
                add(of.visual, cell, images)
                add(of.text, cell, images)
                continue
            classes, bank = classes_of(cell, dataset), bank_of(cell, dataset, context)
            episodes = manifest_for_cell(cell, dataset, classes, context).episodes
        except UserError as error:
            left_out[str(error)] += 1
            continue
        what = Evaluation(
            model=None, sample=cell.sample, annotation=cell.annotation, shots=cell.shots,
            class_indices=tuple(classes), deranged=cell.input.class_names == "deranged",
        )  # fmt: skip
        cues = [triple for episode in episodes for triple in triples(what, episode)]
        images = [image for cue in cues for image in (cue.query, cue.support) if image]
        images += bank
        if context.cache == "pixels":
            add(of.pixels, cell, images)
            continue
        add(of.visual, cell, images)
        add(of.text, cell, (cue.query for cue in cues if cue.kind == "text"))
        if cell.sample.method not in FEATURE_METHODS:
            add(of.priors, cell, (cue for cue in cues if cue.kind != "text"))
            add(of.text_priors, cell, (cue for cue in cues if cue.kind == "text"))
    for reason, count in left_out.most_common(REASONS):
        warn(f"{count} cells are left out of what is encoded in advance: {reason}")
    if len(left_out) > REASONS:
        warn(f"{len(left_out)} reasons in all; {left_out.total()} cells are left out of what is encoded in advance")
    return sorted(found.values(), key=lambda inputs: not inputs.encodes)


def missing(found: Sequence[Inputs], cache: Sync) -> list[Inputs]:
    """Those of the inputs that are in no shard yet, see `cluster.storage.feature_cache.absent`.

    Whether shards were made with the weights that will be loaded is checked when these are.

    Raises:
        OSError: the object store can't be used.
    """
    lacking = ((part, absent(cache, part.spec.name, part.items)) for part in found)
    return [replace(part, items={key: part.items[key] for key in keys}) for part, keys in lacking if keys]
