"""Building blocks of grids: data sets, backbones, training and evaluation cells over axes, and selection.

A grid is a plain list of cells. These functions only describe work: nothing here loads torch or a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffup.backbones.registry import check_backbone, has_text_encoder
from diffup.backbones.weights import weights_identity
from diffup.config import OBJECTNESS, InputConfig, SampleConfig
from diffup.data.spec import ALL_CLASSES
from diffup.errors import UserError
from diffup.evaluation.adapter import function_version
from diffup.grid.cell import AnyCell, Cell, TrainingCell
from diffup.grid.datasets import Data, manifest_for, training_lists
from diffup.plugins import METHODS, entry_points
from diffup.training.recipes import Recipe

PRIOR_MEAN = SampleConfig(method="prior_mean")
PROTOTYPE = SampleConfig(method="prototype")
INSID3 = SampleConfig(method="insid3")
EVIDENCE = SampleConfig(method="evidence")
EVIDENCE_OBJECTS = SampleConfig(method="evidence", objectness=OBJECTNESS)
# Training-free methods by their name in tables, with whether they read a bank.
RIVALS: dict[str, tuple[SampleConfig, bool]] = {
    "prototype": (PROTOTYPE, False),
    "insid3": (INSID3, False),
    "prior_mean": (PRIOR_MEAN, False),
    "evidence": (EVIDENCE, False),
    "evidence_bank": (EVIDENCE, True),
    "evidence_objects": (EVIDENCE_OBJECTS, True),
    "evidence_regions": (dataclasses.replace(EVIDENCE_OBJECTS, regions=True), True),
    "evidence_snap": (dataclasses.replace(EVIDENCE_OBJECTS, snap=True), True),
}


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A backbone with the identity of its weights."""

    name: str
    weights: str


# The row of a table for a foreign method that uses none of our backbones.
OWN = Backbone(name="own", weights="own")


def adapter(function: str, *, version: str = "") -> SampleConfig:
    """A foreign method, for `evaluation_cells(…, sample=…)` (`diffup.evaluation.adapter` has its arguments and result).

    Args:
        function: ``"package.module:name"`` of a function ``(query, supports, cues) → probability``, or the name of an
            entry point of group ``diffup.methods``, which stands for one.
        version: what makes its results its own; by default the hash of its source file. Name one where the method lies
            in several files: a change in another file doesn't change the hash, and old results would be kept.

    Raises:
        UserError: there is no such module.
    """
    function = entry_points(METHODS).get(function, function)
    found = function_version(function)
    return SampleConfig(method="adapter", function=function, function_version=version or found)


def named_backbone(name: str, *, weights_dir: Path | None = None, check: bool = True) -> Backbone:
    """A backbone with the weights that its name stands for: a shipped or local file, else the hub.

    Args:
        name: timm, ``open_clip:…`` or embedded name, or a backbone of one's own (`diffup.backbones.registry`).
        weights_dir: folder of local weights.
        check: ask the libraries whether they know the name (imports them), and build one's own twice.

    Raises:
        UserError: unknown name (with near ones), no such folder, or a function that builds other weights each time.
    """
    if check and (parsed := check_backbone(name)).kind == "own":
        from diffup.backbones.own import check_steady

        check_steady(name, parsed.model)
    return Backbone(name=name, weights=weights_identity(name, weights_dir=weights_dir))


def with_companion(config: InputConfig, backbone: str, companion: Backbone | None) -> InputConfig:
    """The configuration with a text companion, where the backbone can't read text itself."""
    if companion is None or has_text_encoder(backbone):
        return config
    return dataclasses.replace(config, companion=companion.name, companion_weights=companion.weights)


def training_cell(
    data: Data,
    fold: int,
    backbone: Backbone,
    recipe: Recipe,
    *,
    variant: str = "diffup",
    companion: Backbone | None = None,
    seed: int = 0,
) -> TrainingCell:
    """One training cell. Without anything that reads text, no text cues are drawn in training."""
    train, config = recipe.train, with_companion(recipe.input, backbone.name, companion)
    if not config.companion and not has_text_encoder(backbone.name):
        train = dataclasses.replace(train, cue_weights=(*train.cue_weights[:3], 0.0))
    return TrainingCell(
        dataset=data.name,
        dataset_hash=data.fingerprint,
        protocol=data.protocol,
        protocol_hash=data.protocol_hash,
        fold=fold,
        backbone=backbone.name,
        weights=backbone.weights,
        variant=variant,
        input=config,
        model=recipe.model,
        train=train,
        train_seed=seed,
        lists=training_lists(data, fold),
    )


def evaluation_cells(
    data: Data,
    fold: int,
    backbones: Sequence[Backbone],
    tasks: Iterable[tuple[int, str]],
    *,
    config: InputConfig,
    episodes: int,
    trained: TrainingCell | None = None,
    variant: str = "",
    sample: SampleConfig | None = None,
    companion: Backbone | None = None,
    episode_seed: int = 0,
    held_out: int = 0,
    seed: int = 0,
    source: str = "",
    tested: Sequence[int] = (),
    seen: Sequence[str] = (),
) -> list[Cell]:
    """Evaluation cells over backbones × tasks.

    Args:
        data, fold: where.
        backbones: test backbones.
        tasks: pairs of shots and annotation.
        config: of the input; the companion is added where text is read, and a bank left out where none is.
        episodes: per cell.
        trained: whose checkpoint is used; None for a training-free `sample`.
        variant: name in tables; by default the training cell's, or the method's (an adapter's function).
        sample: how masks are made.
        companion: reads text for backbones that can't.
        episode_seed: of the manifest.
        held_out: evaluate on this many held-out base classes (`TrainConfig.hold_out`) in place of the novel ones.
        seed: the training seed whose held-out classes a training-free `sample` is evaluated on.
        source: another data set that `trained` comes from, or would; then `tested` are the classes of `data` to
            evaluate, and `seen` the names of those that may be among the training classes.

    Raises:
        UserError: `trained` does not hold out so many classes: it would be evaluated on what it was trained on; or no
            manifest is given for a fold and number of shots.
    """
    sample = sample or SampleConfig()
    if trained and held_out and trained.train.hold_out != held_out:
        kept = trained.train.hold_out
        raise UserError(f"held_out is {held_out}, but training cell {trained.key()} holds out {kept} classes")
    name = variant or (trained.variant if trained else sample.function.rpartition(":")[2] or sample.method)
    if sample.method not in ("diffup", "evidence"):
        config = dataclasses.replace(config, bank=0)
    cells = []
    for backbone in backbones:
        for shots, annotation in tasks:
            reads_text = "text" in annotation.split("+")
            manifest, number = manifest_for(data, fold, shots, episodes, episode_seed)
            cells.append(
                Cell(
                    dataset=data.name,
                    dataset_hash=data.fingerprint,
                    protocol=data.protocol,
                    protocol_hash=data.protocol_hash,
                    fold=fold,
                    shots=shots,
                    annotation=annotation,
                    backbone=backbone.name,
                    weights=backbone.weights,
                    trained_on=trained.backbone if trained else "",
                    checkpoint=trained.key() if trained else "",
                    variant=name,
                    input=with_companion(config, backbone.name, companion) if reads_text else config,
                    sample=sample,
                    train_seed=trained.train_seed if trained else seed,
                    episode_seed=episode_seed,
                    episodes=number,
                    classes="held_out" if held_out else "tested" if tested else "novel",
                    hold_out=held_out,
                    manifest=manifest,
                    lists=training_lists(data, fold) if config.bank else "",
                    tested=tuple(sorted(tested)),
                    trained_dataset=source,
                    seen=tuple(sorted(seen)),
                )
            )
    return cells


def tasks(shots: Iterable[int], annotations: Iterable[str]) -> list[tuple[int, str]]:
    """All pairs of shots and annotation."""
    annotations = list(annotations)
    return [(count, annotation) for count in shots for annotation in annotations]


def unique(cells: Iterable[AnyCell]) -> list[AnyCell]:
    """The cells in order, each key once."""
    return list({cell.key(): cell for cell in cells}.values())


def describe(cell: AnyCell) -> str:
    """One line for people, e.g. ``tiny_resnet · shapes4i fold 0 · 1-shot mask · diffup``."""
    where = "all classes" if cell.fold == ALL_CLASSES else f"fold {cell.fold}"
    place = f"{cell.backbone} · {cell.dataset} {where}"
    seed = f" · seed {cell.train_seed}" if cell.train_seed else ""
    if isinstance(cell, TrainingCell):
        return f"{place} · training · {cell.variant}{seed}"
    source = f" from {cell.trained_dataset}" if cell.trained_dataset else ""
    held_out = f" · {cell.hold_out} held-out classes at {cell.input.input_size} px" if cell.hold_out else ""
    return f"{place} · {cell.shots}-shot {cell.annotation} · {cell.variant}{source}{held_out}{seed}"


def _fields(cell: AnyCell) -> dict[str, Any]:
    plain = {
        item.name: getattr(cell, item.name)
        for item in dataclasses.fields(cell)
        if isinstance(getattr(cell, item.name), str | int)
    }
    return {**plain, "kind": "train" if isinstance(cell, TrainingCell) else "evaluate", "key": cell.key()}


def select(cells: Sequence[AnyCell], selection: str) -> list[AnyCell]:
    """The cells that match ``k=v,k=v|w,…``, with the training cells that they need.

    Keys are the plain fields of a cell, ``kind`` (``train`` or ``evaluate``) and ``key``; ``|`` separates alternatives.
    Conditions choose evaluation cells; with ``kind=train`` they choose training cells.

    Raises:
        UserError: an unknown key, a value that no cell has, or nothing matches.
    """
    if not selection:
        return list(cells)
    wanted: dict[str, set[str]] = {}
    for condition in selection.split(","):
        name, equals, values = condition.partition("=")
        if not equals or not name or not values or name in wanted:
            raise UserError(f"--select {selection!r}: write k=v,k=v|w, each k once; {condition!r} is not of that form")
        wanted[name] = set(values.split("|"))
    training = [cell for cell in cells if isinstance(cell, TrainingCell)]
    pool: list[AnyCell] = [cell for cell in cells if isinstance(cell, Cell)]
    if "train" in wanted.get("kind", set()):
        pool = [*training, *pool]
    seen = {cell.key(): {name: str(value) for name, value in _fields(cell).items()} for cell in pool}
    for name, asked in wanted.items():
        present = {fields[name] for fields in seen.values() if name in fields}
        if not present:
            known = sorted({name for fields in seen.values() for name in fields})
            raise UserError(f"--select: cells have no field {name!r}; fields are {', '.join(known)}")
        if absent := asked - present:
            raise UserError(
                f"--select: no cell has {name}={sorted(absent)[0]}; there are {', '.join(sorted(present)[:12])}"
            )
    chosen = [cell for cell in pool if all(seen[cell.key()].get(name) in asked for name, asked in wanted.items())]
    if not chosen:
        raise UserError(f"--select {selection!r}: no cell fulfils all conditions at once")
    keep = {cell.key() for cell in chosen} | {cell.checkpoint for cell in chosen if isinstance(cell, Cell)}
    return [cell for cell in cells if cell.key() in keep]


def with_steps(cells: Sequence[AnyCell], steps: Callable[[TrainingCell], int]) -> list[AnyCell]:
    """The same cells, each training of as many steps as `steps` says, and evaluations of these checkpoints."""
    changed = {
        cell.key(): dataclasses.replace(cell, train=dataclasses.replace(cell.train, steps=steps(cell)))
        for cell in cells
        if isinstance(cell, TrainingCell)
    }
    keys = {old: cell.key() for old, cell in changed.items()}
    return [
        changed[cell.key()]
        if isinstance(cell, TrainingCell)
        else dataclasses.replace(cell, checkpoint=keys.get(cell.checkpoint, cell.checkpoint))
        for cell in cells
    ]
