"""What evaluating a cell takes, opened: data set, episodes, cues, features, bank, prior maps and model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from cluster.execution.context import WorkContext
from cluster.execution.inputs import (
    CHECKPOINT,
    classes_of,
    cues_of,
    download,
    features_of,
    hold_out,
    manifest_for_cell,
    open_cells_dataset,
    provenance,
    reads_text,
    sources,
    training_pools_of,
)
from diffup.data.class_names import overlap
from diffup.data.dataset import Dataset
from diffup.episodes.cue_source import CueSource
from diffup.episodes.episode import Episode
from diffup.episodes.protocols import get_protocol
from diffup.episodes.sampling import held_out_classes, unseen_pools
from diffup.errors import UserError
from diffup.evaluation.adapter import load_method
from diffup.evaluation.bank import NO_BANK, GivenBank, bank_images, encoded_bank, without
from diffup.evaluation.encode import FeatureCache
from diffup.evaluation.evaluate import Evaluation
from diffup.evaluation.priors import PriorSource
from diffup.grid.cell import AnyCell, Cell, TrainingCell
from diffup.models.checkpoint import load_checkpoint
from diffup.models.diffup import DiffUpNet
from diffup.models.evidence import Bank


def _tested(cell: AnyCell) -> tuple[int, ...]:
    """Classes of a data set that the checkpoint is not of, where its own folds don't matter; else none."""
    return cell.tested if isinstance(cell, Cell) else ()


def barred(cell: AnyCell, dataset: Dataset) -> set[int]:
    """Classes that are tested: no image of a bank shows them to be tested on, and none of their labels is read."""
    if tested := _tested(cell):
        return set(tested)
    held_out = held_out_classes(dataset, cell.fold, hold_out(cell), cell.train_seed)
    return {*dataset.novel_classes(cell.fold), *held_out}


def known_classes(cell: AnyCell, dataset: Dataset) -> tuple[int, ...]:
    """Classes whose labels may be read."""
    hidden = barred(cell, dataset)
    known = range(len(dataset.classes)) if _tested(cell) else dataset.base_classes(cell.fold)
    return tuple(c for c in known if c not in hidden)


def bank_of(cell: AnyCell, dataset: Dataset, context: WorkContext) -> tuple[str, ...]:
    """Images of the cell's bank, none without one.

    Raises:
        UserError: its training lists have changed.
    """
    if not cell.input.bank:
        return ()
    hidden, protocol = barred(cell, dataset), get_protocol(cell.protocol)
    if tested := _tested(cell):
        pools = unseen_pools(dataset, tested, protocol)
    else:
        pools = {c: ids for c, ids in training_pools_of(cell, dataset, context).items() if c not in hidden}
    return bank_images(dataset, pools, hidden, protocol, cell.fold, cell.input.bank)


_banks: WeakKeyDictionary[FeatureCache, dict[object, Bank]] = WeakKeyDictionary()


def encoded(
    cell: AnyCell, images: tuple[str, ...], dataset: Dataset, features: FeatureCache, cues: CueSource
) -> Bank | None:
    """The cell's bank in its backbone's features, kept as long as these; None where it has no images."""
    if not images:
        return None
    kept, known = _banks.setdefault(features, {}), known_classes(cell, dataset)
    key = (images, known, cell.input.bank_positions)
    if key not in kept:
        kept[key] = encoded_bank(images, features, cues, known, cell.input.bank_positions)
    return kept[key]


def training_bank(
    cell: TrainingCell, dataset: Dataset, features: FeatureCache, cues: CueSource, context: WorkContext
) -> GivenBank | None:
    """The bank of a training, None without one."""
    images = bank_of(cell, dataset, context)
    if (bank := encoded(cell, images, dataset, features, cues)) is None:
        return None
    return GivenBank(bank, without(dataset, images, known_classes(cell, dataset)), images, cell.input.bank_drop)


def priors_of(
    cell: Cell, dataset: Dataset, cues: CueSource, features: FeatureCache, context: WorkContext
) -> PriorSource:
    """Prior maps for a cell: read from the feature cache, and computed where missing."""
    bank, drop = encoded(cell, bank_of(cell, dataset, context), dataset, features, cues), cell.input.bank_drop
    if context.features is None or context.cache == "pixels":
        return PriorSource(cues, features, bank=bank, drop=drop)
    of, root, encoder = sources(cell, dataset.fingerprint, context.device), context.features, features.encoder
    download(context, of.priors, of.text_priors)
    text = of.text_priors.open(root, encoder.identity) if of.text_priors else None
    return PriorSource(cues, features, of.priors.open(root, encoder.visual), text, bank=bank, drop=drop)


def checkpoint_of(cell: Cell, tested: Sequence[str], context: WorkContext) -> DiffUpNet | None:
    """The cell's checkpoint; one that was trained on a tested class is refused, unless the cell allows it by name."""
    if not cell.checkpoint:
        return None
    folder = context.results / cell.checkpoint / CHECKPOINT
    facts = json.loads((folder / "config.json").read_text())["facts"]
    if cell.classes == "held_out":
        trained = facts["cell"]
        if (trained["train"].get("hold_out", 0), trained["train_seed"]) != (cell.hold_out, cell.train_seed):
            raise UserError(f"checkpoint {cell.checkpoint} was trained on classes that cell {cell.key()} holds out")
    if both := set(overlap(facts["classes"], tested)) - set(cell.seen):
        raise UserError(
            f"cell {cell.key()}: checkpoint {cell.checkpoint} was trained on {', '.join(sorted(both))}, which the cell "
            "tests: that is not few-shot segmentation. Test other classes, or allow these by name (Cell.seen)"
        )
    return load_checkpoint(folder).to(context.device)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything that evaluating a cell's episodes takes."""

    what: Evaluation
    episodes: list[Episode]
    cues: CueSource
    features: FeatureCache | None
    priors: PriorSource | None
    provenance: dict[str, Any]

    @staticmethod
    def of(cell: Cell, context: WorkContext, beside: Cell | None = None) -> Setting:
        dataset, features, method = open_cells_dataset(cell, context), None, None
        if cell.sample.method == "adapter":  # a foreign method encodes for itself
            method = load_method(cell.sample.function, cell.sample.function_version)
        else:
            features = features_of(cell, dataset, context, beside)
        cues = cues_of(context.datasets[cell.dataset], dataset.fingerprint, cell.input.cues)
        classes = classes_of(cell, dataset)
        model = checkpoint_of(cell, [dataset.classes[c] for c in classes], context)
        manifest = manifest_for_cell(cell, dataset, classes, context)
        what = Evaluation(
            model=model,
            sample=cell.sample,
            annotation=cell.annotation,
            shots=cell.shots,
            class_indices=tuple(classes),
            method=method,
            deranged=cell.input.class_names == "deranged",
            seed=cell.episode_seed,
            fold=cell.fold,
            protocol=get_protocol(cell.protocol),
        )
        priors = None if features is None else priors_of(cell, dataset, cues, features, context)
        lacking = cell.input.bank and priors is not None and priors.bank is None
        made = {**provenance(context, features, dataset, reads_text(cell)), "manifest_hash": manifest.hash()}
        return Setting(
            what=what,
            episodes=list(manifest.episodes),
            cues=cues,
            features=features,
            priors=priors,
            provenance=made | ({"warnings": [NO_BANK]} if lacking else {}),
        )

    def made(self) -> dict[str, int]:
        """How much had to be computed that was not in the feature cache."""
        encoded = 0 if self.features is None else self.features.encoded + self.features.texts_encoded
        return {"images_encoded": encoded, "priors_computed": 0 if self.priors is None else self.priors.computed}
