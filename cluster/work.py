"""What a trial does: one cell, from data set to metrics, with what is costly kept in the process.

Ray-free on purpose: the same function runs a cell in a trial, in a test, or by hand.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image

from cluster.store import code_hash
from diffup.adapter import load_method
from diffup.backbones.load import Backbone, load_backbone
from diffup.card import versions
from diffup.config import InputConfig
from diffup.data.class_names import overlap
from diffup.data.dataset import Dataset, open_dataset
from diffup.encode import Encoder, FeatureCache
from diffup.episodes import Manifest, held_out_classes, make_manifest, training_pools
from diffup.evaluate import Evaluation, evaluate, predict
from diffup.manifests import listed_manifest, listed_pairs, read_manifest
from diffup.memo import Keep, PriorMemo, afresh
from diffup.metrics import fb_iou, miou
from diffup.model import DiffUpNet, load_checkpoint
from diffup.panels import panel
from diffup.parallel import Team
from diffup.protocols import get_protocol
from diffup.sampler import EpisodeSampler
from diffup.supply import CueSource
from diffup.train import train
from experiments.cell import AnyCell, Cell, TrainingCell, cell_to_dict
from experiments.data import lists_of, manifest_of

PANELS = 3
CHECKPOINT = "checkpoint"
MEMO = "priors"  # folder in the result store; not a cell


@dataclass(frozen=True, kw_only=True)
class WorkContext:
    """Runtime options of a trial: everything that is not identity.

    Attributes:
        results: the result store.
        datasets: path of ``dataset.json`` by data set name, and what else cells read: see `experiments.data.Data`.
        weights_dir: folder of local backbone weights.
        device, threads, batch_size: how to compute.
        progress: whether to draw progress bars.
    """

    results: Path
    datasets: dict[str, str]
    weights_dir: Path | None = None
    device: str = "cpu"
    threads: int = 1
    batch_size: int = 8
    progress: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a cell gave: figures, the episode table (None for a training cell), provenance and panels by name."""

    metrics: dict[str, float]
    episodes: pd.DataFrame | None
    provenance: dict[str, Any]
    panels: dict[str, Image.Image] = field(default_factory=dict)


def execute(cell: AnyCell, context: WorkContext) -> Outcome:
    """Run one cell.

    Raises:
        ValueError: data, weights or checkpoint are missing or not those the cell names.
    """
    torch.set_num_threads(context.threads)
    started = time.perf_counter()
    outcome = _train(cell, context) if isinstance(cell, TrainingCell) else _evaluate(cell, context)
    outcome.metrics.setdefault("seconds", time.perf_counter() - started)
    outcome.metrics["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return outcome


def _dataset(cell: AnyCell, context: WorkContext) -> Dataset:
    if cell.dataset not in context.datasets:
        raise ValueError(f"no path is known for data set {cell.dataset!r}; pass --dataset")
    dataset = _open(context.datasets[cell.dataset])
    if cell.dataset_hash and dataset.fingerprint != cell.dataset_hash:
        raise ValueError(
            f"data set {cell.dataset!r} at {context.datasets[cell.dataset]} has changed: fingerprint "
            f"{dataset.fingerprint}, the cell names {cell.dataset_hash}. Plan the grid again"
        )
    protocol = get_protocol(cell.protocol)
    if cell.protocol_hash and protocol.hash() != cell.protocol_hash:
        raise ValueError(f"protocol {cell.protocol!r} is now {protocol.hash()}, the cell names {cell.protocol_hash}")
    return dataset


@lru_cache(maxsize=4)
def _open(path: str) -> Dataset:
    return open_dataset(path)


@lru_cache(maxsize=3)
def _backbone(name: str, weights: str, weights_dir: Path | None, device: str) -> Backbone:
    return load_backbone(name, weights, weights_dir=weights_dir, device=device)


# Features outlive cells: consecutive cells of a worker share backbone and data set, whatever they vary.
@lru_cache(maxsize=2)
def _features(
    dataset_path: str, backbone: str, weights: str, with_text: bool, config: InputConfig, weights_dir: Path | None,
    device: str,
) -> FeatureCache:  # fmt: skip
    visual = _backbone(backbone, weights, weights_dir, device)
    text_model = None
    if with_text:
        text_model = visual
        if config.companion:
            text_model = _backbone(config.companion, config.companion_weights, weights_dir, device)
    return FeatureCache(Encoder(visual, config, text_model, device), _open(dataset_path).image)


# So do prior maps, which neither a variant nor a training seed changes.
@lru_cache(maxsize=1)
def _memo(results: Path) -> PriorMemo:
    return PriorMemo(results / MEMO)


def _keep(context: WorkContext, *source: object) -> Keep:
    """Keeps what is made from `source` by this version of the method: another one's prior maps are never read."""
    return _memo(context.results).of((code_hash(), context.device, *source))


def _prepare(cell: AnyCell, context: WorkContext, with_text: bool) -> FeatureCache:
    path = context.datasets[cell.dataset]
    # Whatever does not change features is left out of the cache's key.
    config = dataclasses.replace(cell.input, class_names="given", scribble_width=0.08, boxes="component")
    if not with_text:
        config = dataclasses.replace(config, companion="", companion_weights="")
    weights_dir = context.weights_dir
    return _features(path, cell.backbone, cell.weights, with_text, config, weights_dir, context.device)


def _provenance(context: WorkContext, features: FeatureCache | None, dataset: Dataset) -> dict[str, Any]:
    visual = features.encoder.backbone if features is not None else None
    text = features.encoder.text_model if features is not None else None
    return {
        "weights_hash": visual.loaded_hash if visual is not None else "",
        "text_weights_hash": text.loaded_hash if text is not None else "",
        "dataset_fingerprint": dataset.fingerprint,
        "device": context.device,
        "threads": torch.get_num_threads(),
        "host_cpus": os.cpu_count(),
    }


def _train(cell: TrainingCell, context: WorkContext) -> Outcome:
    team = Team.here()
    with_text = cell.train.cue_weights[3] > 0
    dataset, features = _dataset(cell, context), _prepare(cell, context, with_text)
    cues = CueSource(dataset, cell.input)
    protocol = get_protocol(cell.protocol)
    held_out = held_out_classes(dataset, cell.fold, cell.train.hold_out, cell.train_seed)
    lists = _lists(cell, context)
    if cell.lists and (found := listed_pairs(cell.dataset, protocol, cell.fold, "trn", lists).hash()) != cell.lists:
        raise ValueError(f"{lists} has changed: its training lists are {found}, the cell names {cell.lists}")
    pools = training_pools(dataset, cell.fold, protocol, lists)
    pools = {c: ids for c, ids in pools.items() if c not in held_out}
    source = (dataset.fingerprint, cell.protocol_hash, cell.lists)
    keep = _keep(context, *source, features.encoder.identity, cell.input, held_out)
    sampler = EpisodeSampler(cues, features, pools, cell.fold, cell.train_seed, cell.model, cell.train, keep)
    metrics = train(
        sampler,
        cell.model,
        cell.train,
        context.results / cell.key() / CHECKPOINT,
        seed=cell.train_seed,
        facts={
            "cell": cell_to_dict(cell),
            "key": cell.key(),
            "classes": [dataset.classes[c] for c in sorted(pools)],
            "left_out": [dataset.classes[c] for c in (*dataset.novel_classes(cell.fold), *held_out)],
            "versions": versions(),
        },
        progress=context.progress,
        device=context.device,
        team=team,
    )
    return Outcome(metrics, None, {**_provenance(context, features, dataset), "train_workers": team.size})


def _model(cell: Cell, tested: Sequence[str], context: WorkContext) -> DiffUpNet | None:
    """The cell's checkpoint; one that was trained on a tested class is refused, unless the cell allows it by name."""
    if not cell.checkpoint:
        return None
    folder = context.results / cell.checkpoint / CHECKPOINT
    facts = json.loads((folder / "config.json").read_text())["facts"]
    if cell.classes == "held_out":
        trained = facts["cell"]
        if (trained["train"].get("hold_out", 0), trained["train_seed"]) != (cell.hold_out, cell.train_seed):
            raise ValueError(f"checkpoint {cell.checkpoint} was trained on classes that cell {cell.key()} holds out")
    if both := set(overlap(facts["classes"], tested)) - set(cell.seen):
        raise ValueError(
            f"cell {cell.key()}: checkpoint {cell.checkpoint} was trained on {', '.join(sorted(both))}, which the cell "
            "tests: that is not few-shot segmentation. Test other classes, or allow these by name (Cell.seen)"
        )
    return load_checkpoint(folder).to(context.device)


def _lists(cell: AnyCell, context: WorkContext) -> Path | None:
    found = context.datasets.get(lists_of(cell.dataset))
    return None if found is None else Path(found)


def _classes(cell: Cell, dataset: Dataset) -> tuple[int, ...]:
    if cell.classes == "held_out":
        return held_out_classes(dataset, cell.fold, cell.hold_out, cell.train_seed)
    return cell.tested or dataset.novel_classes(cell.fold)


def _manifest(cell: Cell, dataset: Dataset, classes: Sequence[int], context: WorkContext) -> Manifest:
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
        raise ValueError(f"{where} has changed: its manifest is {manifest.hash()}, the cell names {cell.manifest}")
    if strange := sorted({e.class_index for e in manifest.episodes} - set(classes)):
        raise ValueError(f"{where}: classes {strange[:5]} are not among those of {cell.dataset}, fold {cell.fold}")
    # One from a file may be longer than what is asked for.
    return replace(manifest, episodes=manifest.episodes[: cell.episodes]).named_as(dataset.image_ids, where)


def _evaluate(cell: Cell, context: WorkContext) -> Outcome:
    with_text = "text" in cell.annotation.split("+")
    dataset, features, method = _dataset(cell, context), None, None
    if cell.sample.method == "adapter":  # a foreign method encodes for itself
        method = load_method(cell.sample.function, cell.sample.function_version)
    else:
        features = _prepare(cell, context, with_text)
    cues = CueSource(dataset, cell.input)
    classes = _classes(cell, dataset)
    model = _model(cell, [dataset.classes[c] for c in classes], context)
    manifest = _manifest(cell, dataset, classes, context)
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
    episodes = manifest.episodes
    began = time.perf_counter()
    keep: Keep = afresh
    if features is not None:
        keep = _keep(context, dataset.fingerprint, manifest.hash(), features.encoder.identity, cell.input)
    table = evaluate(
        what, episodes, cues, features, batch_size=context.batch_size, progress=context.progress, keep=keep
    )
    seconds = time.perf_counter() - began
    first = list(episodes[:PANELS])
    panels = {
        f"episode_{episode.index:04d}": panel(what, episode, prediction, cues)
        for episode, prediction in zip(first, predict(what, first, cues, features), strict=True)
    }
    metrics = {
        "miou": miou(table["class_id"], table["inter_fg"], table["union_fg"], classes),
        "fb_iou": fb_iou(table["inter_fg"], table["union_fg"], table["inter_bg"], table["union_bg"]),
        "episodes_per_s": len(table) / seconds,
        "seconds": seconds,
    }
    provenance = {**_provenance(context, features, dataset), "manifest_hash": manifest.hash()}
    return Outcome(metrics, table, provenance, panels)
