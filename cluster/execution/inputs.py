"""Opens what cells read, once per process: data sets, manifests, backbones, features and prior maps.

Consecutive cells of a worker share what they have in common. Features and prior maps come from the feature cache
(`cluster.precompute.pipeline` fills it); what is not there is computed.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from cluster.code_version import code_hash, encoding_hash, pixels_hash
from cluster.execution.context import WorkContext
from cluster.storage.feature_cache import PIXELS, PRIORS, TEXT, TEXT_PRIORS, VISUAL, Spec, pull
from cluster.storage.layout import FEATURES
from diffup.backbones.load import Backbone, load_backbone
from diffup.config import CueConfig, EncoderConfig
from diffup.data.dataset import Dataset, open_dataset
from diffup.episodes.cue_source import CueSource
from diffup.episodes.episode import Manifest
from diffup.episodes.manifest import fitted, listed_manifest, listed_pairs, read_manifest
from diffup.episodes.protocols import get_protocol
from diffup.episodes.sampling import held_out_classes, make_manifest, training_pools
from diffup.errors import UserError
from diffup.evaluation.encode import Encoder, FeatureCache
from diffup.grid.cell import AnyCell, Cell, TrainingCell
from diffup.grid.datasets import lists_of, manifest_of
from diffup.training.draw_cache import DrawCache, Keep

CHECKPOINT = "checkpoint"
DRAWN = "drawn"  # folder of drawn training steps in the result store; not a cell


def set_up(context: WorkContext) -> None:
    """Set what torch computes with in this process: threads, and products in float32 proper rather than in TF32."""
    torch.set_num_threads(context.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def open_cells_dataset(cell: AnyCell, context: WorkContext) -> Dataset:
    """The cell's data set, as it was when the cell was planned.

    Raises:
        UserError: it is not there, or it or the protocol has changed.
    """
    if cell.dataset not in context.datasets:
        raise UserError(f"no path is known for data set {cell.dataset!r}; pass --dataset")
    dataset = _open(context.datasets[cell.dataset])
    if cell.dataset_hash and dataset.fingerprint != cell.dataset_hash:
        raise UserError(
            f"data set {cell.dataset!r} at {context.datasets[cell.dataset]} has changed: fingerprint "
            f"{dataset.fingerprint}, the cell names {cell.dataset_hash}. Plan the grid again"
        )
    protocol = get_protocol(cell.protocol)
    if cell.protocol_hash and protocol.hash() != cell.protocol_hash:
        raise UserError(f"protocol {cell.protocol!r} is now {protocol.hash()}, the cell names {cell.protocol_hash}")
    return dataset


@lru_cache(maxsize=4)
def _open(path: str) -> Dataset:
    return open_dataset(path)


@lru_cache(maxsize=2)
def cues_of(path: str, fingerprint: str, config: CueConfig) -> CueSource:
    return CueSource(_open(path), config)


@lru_cache(maxsize=3)
def _backbone(name: str, weights: str, weights_dir: Path | None, device: str) -> Backbone:
    return load_backbone(name, weights, weights_dir=weights_dir, device=device)


# Features outlive cells: consecutive cells of a worker share backbone and data set, whatever they vary. One set of them
# at a time, for the limit of memory is that of each.
@lru_cache(maxsize=1)
def _features(
    dataset_path: str, backbone: str, weights: str, reader: tuple[str, str], config: EncoderConfig,
    weights_dir: Path | None, device: str, memory: tuple[int, int],
) -> FeatureCache:  # fmt: skip
    visual = _backbone(backbone, weights, weights_dir, device)
    text_model = _backbone(*reader, weights_dir, device) if reader[0] else None
    encoder = Encoder(visual, config, text_model, device)
    return FeatureCache(encoder, _open(dataset_path).image, limit_bytes=memory[0], device_bytes=memory[1])


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where in the feature cache a cell's features and prior maps are, by what they depend on; nothing is loaded.

    Attributes:
        pixels: squares that all backbones read; None where they are not rounded to 8 bits.
        visual: features of its backbone.
        text: dense text embeddings, None where no text is read.
        priors, text_priors: prior maps of visual cues and of text.
        reader: name and weights of what reads text, ``""`` twice where nothing does.
        config: of the encoder, without a companion where no text is read.
    """

    pixels: Spec | None
    visual: Spec
    text: Spec | None
    priors: Spec
    text_priors: Spec | None
    reader: tuple[str, str]
    config: EncoderConfig


def reads_text(cell: AnyCell) -> bool:
    """Whether the cell has a text cue, in training with some chance."""
    if isinstance(cell, TrainingCell):
        return cell.train.cue_weights[3] > 0
    return "text" in cell.annotation.split("+")


def sources(cell: AnyCell, fingerprint: str, device: str) -> Sources:
    """See `Sources`; `fingerprint` is that of the data set."""
    given = cell.input
    config = given.encoder
    reader = ("", "")
    if reads_text(cell):
        reader = (given.companion or cell.backbone, given.companion_weights if given.companion else cell.weights)
    else:
        config = dataclasses.replace(config, companion="", companion_weights="")
    pixels = {
        "dataset": cell.dataset, "fingerprint": fingerprint, "size": given.input_size, "code": pixels_hash(),
    }  # fmt: skip
    where = {
        "dataset": cell.dataset, "fingerprint": fingerprint, "size": given.input_size, "grid": given.feature_grid,
        "dtype": given.feature_dtype, "device": device.partition(":")[0], "code": encoding_hash(),
        "pixels": given.pixel_dtype, "precision": given.precision,
    }  # fmt: skip
    visual = where | {"backbone": cell.backbone, "weights": cell.weights}
    drawn = visual | {"boxes": given.boxes, "scribble_width": given.scribble_width, "method": code_hash()}
    if given.bank:
        held_out = (cell.train_seed, hold_out(cell)) if hold_out(cell) else ()
        tested = cell.tested if isinstance(cell, Cell) else ()
        drawn["bank"] = (astuple(given.negatives), cell.fold, cell.protocol_hash, cell.lists, held_out, tested)
    spoken = visual | {"reader": reader, "prompts": given.prompts, "method": code_hash()}
    title = (cell.dataset, cell.backbone, given.input_size)
    read = (cell.dataset, reader[0], given.input_size)
    return Sources(
        pixels=Spec.of(PIXELS, title[::2], pixels) if given.pixel_dtype == "uint8" else None,
        visual=Spec.of(VISUAL, title, visual),
        text=Spec.of(TEXT, read, where | {"reader": reader}) if reader[0] else None,
        priors=Spec.of(PRIORS, title, drawn),
        text_priors=Spec.of(TEXT_PRIORS, title, spoken) if reader[0] else None,
        reader=reader,
        config=config,
    )


def features_of(cell: AnyCell, dataset: Dataset, context: WorkContext, beside: AnyCell | None = None) -> FeatureCache:
    """Features of the cell's data set by its backbone: read from the feature cache, and encoded where missing, from its
    pixels where it has these; those of `beside`, a cell of the same pass that reads text, serve as well."""
    of = sources(cell if beside is None or reads_text(cell) else beside, dataset.fingerprint, context.device)
    path, memory = context.datasets[cell.dataset], (context.memory, context.gpu_memory)
    where = (context.weights_dir, context.device, memory)
    found = _features(path, cell.backbone, cell.weights, of.reader, of.config, *where)
    root, encoder = context.features, found.encoder
    # Asked each time: another cell's stage may have added some.
    if root is not None and context.cache != "pixels":
        download(context, of.visual, of.text)
        text = of.text.open(root, encoder.reader) if of.text else None
        found.stores = (of.visual.open(root, encoder.visual), text)
    if root is not None and context.cache == "pixels" and of.pixels is not None:
        download(context, of.pixels)
        found.pixels = of.pixels.open(root, "")
    return found


_downloaded: set[Path] = set()  # folders of shards; a launch's workers start after its stage


def download(context: WorkContext, *specs: Spec | None) -> None:
    """Bring shards of an object store here, once per process; those that can't be brought are computed."""
    assert context.features is not None
    cache = context.store.sync.below(FEATURES, context.features)
    for spec in specs:
        if spec is not None and (folder := cache.root / spec.name) not in _downloaded:
            _downloaded.add(folder)
            try:
                pull(cache, spec.name)
            except OSError as error:
                print(f"warning: {spec.name} is not downloaded from {cache.backend}: {error}", file=sys.stderr)


# A training's drawn steps, which neither a variant nor its initial weights change.
@lru_cache(maxsize=1)
def _draw_cache(results: Path) -> DrawCache:
    return DrawCache(results / DRAWN)


def keep_for(context: WorkContext, *source: object) -> Keep:
    """The cache of drawn steps for `source` and this version of the method; another version's maps are never read."""
    return _draw_cache(context.results).of((code_hash(), context.device, *source))


def hold_out(cell: AnyCell) -> int:
    """Number of base classes that the cell, or the training that it tests, leaves out."""
    return cell.train.hold_out if isinstance(cell, TrainingCell) else cell.hold_out


def training_pools_of(cell: AnyCell, dataset: Dataset, context: WorkContext) -> dict[int, tuple[str, ...]]:
    """Image ids by class that the cell trains on, or that its bank is drawn from.

    Raises:
        UserError: its training lists have changed.
    """
    protocol = get_protocol(cell.protocol)
    held_out = held_out_classes(dataset, cell.fold, hold_out(cell), cell.train_seed)
    lists = _lists(cell, context)
    if cell.lists and (found := listed_pairs(cell.dataset, protocol, cell.fold, "trn", lists).hash()) != cell.lists:
        raise UserError(f"{lists} has changed: its training lists are {found}, the cell names {cell.lists}")
    pools = training_pools(dataset, cell.fold, protocol, lists)
    return {c: ids for c, ids in pools.items() if c not in held_out}


def provenance(
    context: WorkContext, features: FeatureCache | None, dataset: Dataset, text: bool = True
) -> dict[str, Any]:
    """What a result records of how it was made."""
    visual = features.encoder.backbone if features is not None else None
    reader = features.encoder.text_model if features is not None and text else None
    return {
        "weights_hash": visual.loaded_hash if visual is not None else "",
        "text_weights_hash": reader.loaded_hash if reader is not None else "",
        "dataset_fingerprint": dataset.fingerprint,
        "device": context.device,
        "threads": torch.get_num_threads(),
        "host_cpus": os.cpu_count(),
    }


def _lists(cell: AnyCell, context: WorkContext) -> Path | None:
    found = context.datasets.get(lists_of(cell.dataset))
    return None if found is None else Path(found)


def classes_of(cell: Cell, dataset: Dataset) -> tuple[int, ...]:
    """The classes that a cell tests."""
    if cell.classes == "held_out":
        return held_out_classes(dataset, cell.fold, cell.hold_out, cell.train_seed)
    return cell.tested or dataset.novel_classes(cell.fold)


def manifest_for_cell(cell: Cell, dataset: Dataset, classes: Sequence[int], context: WorkContext) -> Manifest:
    """The cell's manifest with the data set's ids; one that the cell names by its hash must be that one."""
    protocol, lists = get_protocol(cell.protocol), _lists(cell, context)
    draw = (cell.fold, cell.shots, cell.episodes, cell.episode_seed)
    if not cell.manifest:
        return make_manifest(dataset, protocol, *draw, classes, lists)
    if path := context.datasets.get(manifest_of(cell.manifest)):
        manifest = read_manifest(Path(path), dataset=cell.dataset, protocol=cell.protocol, fold=cell.fold)
        where = path
    else:
        manifest, where = listed_manifest(cell.dataset, protocol, *draw, lists), str(lists)
    if manifest.hash() != cell.manifest:
        raise UserError(f"{where} has changed: its manifest is {manifest.hash()}, the cell names {cell.manifest}")
    if strange := sorted({e.class_index for e in manifest.episodes} - set(classes)):
        raise UserError(f"{where}: classes {strange[:5]} are not among those of {cell.dataset}, fold {cell.fold}")
    # One from a file may be longer than what is asked for.
    return fitted(replace(manifest, episodes=manifest.episodes[: cell.episodes]), dataset, protocol, where)
