"""A cell is one point of a grid, and holds identity only; its key names its place in the result store.

Two kinds: a `TrainingCell` makes a checkpoint, a `Cell` evaluates one (or a training-free baseline) on a manifest.
A cell names the training cell it needs by key, so that both form one graph. Batch size at evaluation, device, workers
and paths are runtime options and never identity.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

from diffup.config import (
    InputConfig,
    ModelConfig,
    SampleConfig,
    TrainConfig,
    check_annotation,
)
from diffup.errors import UserError
from diffup.fields import added_later, in_key

CELL_VERSION = 3
KEY_LENGTH = 12
CLASSES = ("novel", "held_out", "tested")
CONFIGURATIONS = (InputConfig, ModelConfig, SampleConfig, TrainConfig)


def _identity(value: Any) -> Any:
    """A cell or configuration as plain types, without fields `added_later` that have their default."""
    pairs = [(item, getattr(value, item.name)) for item in dataclasses.fields(value)]
    return {
        item.name: _configuration(part) if isinstance(part, CONFIGURATIONS) else part
        for item, part in pairs
        if in_key(item, part)
    }


@lru_cache(maxsize=1024)
def _configuration(value: Any) -> dict[str, Any]:
    """The same of a configuration, which many cells share; not to be changed."""
    return dict(_identity(value))


@cache
def _fields(kind: type[Any]) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(kind)


def _key(cell: TrainingCell | Cell) -> str:
    known: str | None = cell.__dict__.get("_key")  # a plan of many thousand cells asks often
    if known is None:
        document = {"version": CELL_VERSION, "kind": _kind(cell), **_identity(cell)}
        canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        known = hashlib.sha256(canonical.encode()).hexdigest()[:KEY_LENGTH]
        cell.__dict__["_key"] = known
    return known


def _kind(cell: TrainingCell | Cell) -> str:
    return "train" if isinstance(cell, TrainingCell) else "evaluate"


def _check(cell: TrainingCell | Cell) -> None:
    if cell.fold < 0:
        raise UserError(f"fold must be 0 or more, not {cell.fold}")
    for name in ("dataset", "backbone", "weights"):
        if not getattr(cell, name):
            raise UserError(f"{type(cell).__name__}.{name} is empty")


@dataclass(frozen=True, kw_only=True)
class TrainingCell:
    """Train UAPF and UQDD on the base classes of one fold with one frozen backbone.

    Attributes:
        dataset: name, e.g. ``"shapes4i"``.
        dataset_hash: fingerprint of the data (``""`` for named benchmarks whose data need not be available to plan).
        protocol, protocol_hash: name and hash of the protocol (`diffup.episodes.protocols`).
        fold: the fold whose classes are *left out* of training; `diffup.data.spec.ALL_CLASSES`: none are.
        backbone: timm, ``open_clip:…`` or embedded name.
        weights: weights identity: ``"hub"``, ``"sha256:…"`` (local or embedded file) or ``"random:SEED"``.
        variant: name of the ablation, for display; what it means is in `model` and `train`.
        train_seed: seed of initialisation, episodes and noise.
        lists: hash of the list files that name the training images, for a protocol that has such.
    """

    dataset: str
    dataset_hash: str = ""
    protocol: str = "paired"
    protocol_hash: str = ""
    fold: int
    backbone: str
    weights: str
    variant: str = "diffup"
    input: InputConfig = field(default_factory=InputConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    train_seed: int = 0
    lists: str = added_later("")

    def __post_init__(self) -> None:
        _check(self)

    def key(self) -> str:
        """First 12 hex digits of the sha256 of the canonical JSON."""
        return _key(self)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Evaluate one method with one backbone, annotation and number of shots on one manifest.

    Attributes:
        shots: K supports per episode; 0 = text only.
        annotation: ``mask``, ``box``, ``scribble``, ``text`` or a mix such as ``mask+text``.
        backbone, weights: the *test* backbone, which need not be the one trained on.
        trained_on: name of the backbone the checkpoint was trained with, ``""`` for a training-free baseline.
        checkpoint: key of the `TrainingCell`, ``""`` for a training-free baseline.
        variant: display name of method or ablation.
        episode_seed: seed of the manifest; manifests depend on nothing else of the cell but the fold and `episodes`.
        episodes: number of episodes.
        classes: ``"novel"``: those of the fold; ``"held_out"``: the `hold_out` base classes that the training of
            `train_seed` leaves out (`diffup.config.TrainConfig.hold_out`), to choose between variants; ``"tested"``:
            those in `tested`, with a checkpoint of another data set.
        hold_out: how many, 0 for novel classes.
        manifest: hash of a manifest that was read from a file or drawn from list files, ``""`` for one that follows
            from the data.
        tested: 0-based classes of `dataset`, ascending.
        trained_dataset: the data set of the checkpoint where it is another one.
        seen: names of tested classes that the checkpoint was trained on and that may be so: not few-shot.
        lists: hash of the list files that name the images of its bank, for a protocol that has such.
    Other fields as in `TrainingCell`.
    """

    dataset: str
    dataset_hash: str = ""
    protocol: str = "paired"
    protocol_hash: str = ""
    fold: int
    shots: int
    annotation: str
    backbone: str
    weights: str
    trained_on: str = ""
    checkpoint: str = ""
    variant: str = "diffup"
    input: InputConfig = field(default_factory=InputConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    train_seed: int = 0
    episode_seed: int = 0
    episodes: int = 1000
    classes: str = added_later("novel")
    hold_out: int = added_later(0)
    manifest: str = added_later("")
    tested: tuple[int, ...] = added_later(())
    trained_dataset: str = added_later("")
    seen: tuple[str, ...] = added_later(())
    lists: str = added_later("")

    def __post_init__(self) -> None:
        _check(self)
        check_annotation(self.annotation, self.shots)
        if self.classes not in CLASSES:
            raise UserError(f"Cell.classes must be one of {', '.join(CLASSES)}; not {self.classes!r}")
        if (self.hold_out > 0) != (self.classes == "held_out") or self.hold_out < 0:
            raise UserError(
                f"Cell.hold_out is the number of held-out classes: 1 or more with classes 'held_out', else 0; classes "
                f"is {self.classes!r}, hold_out {self.hold_out}"
            )
        if (self.classes == "tested") != bool(self.tested) or list(self.tested) != sorted(set(self.tested)):
            raise UserError(
                f"Cell.tested are ascending classes, given with classes 'tested' only; classes is {self.classes!r}, "
                f"tested {self.tested}"
            )
        if self.episodes < 1:
            raise UserError(f"Cell.episodes must be 1 or more, not {self.episodes}")
        if (self.sample.method == "diffup") != bool(self.checkpoint):
            raise UserError(
                f"Cell.checkpoint: method 'diffup' needs the key of a training cell and baselines have none; "
                f"method is {self.sample.method!r}, checkpoint {self.checkpoint!r}"
            )

    def key(self) -> str:
        """First 12 hex digits of the sha256 of the canonical JSON."""
        return _key(self)


AnyCell = TrainingCell | Cell


def cell_to_dict(cell: AnyCell) -> dict[str, Any]:
    """The cell as plain JSON types, with ``kind`` = ``"train"`` or ``"evaluate"``."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(cell)))
    return {"kind": _kind(cell), **plain}


def cell_from_dict(document: dict[str, Any]) -> AnyCell:
    """Inverse of `cell_to_dict`.

    Raises:
        UserError: an unknown kind or field, or a value the cell refuses.
    """
    values = dict(document)
    kind = values.pop("kind", None)
    if kind not in ("train", "evaluate"):
        raise UserError(f"cell document has kind {kind!r}; expected 'train' or 'evaluate'")
    try:
        inputs = dict(values.pop("input"))
        inputs["prompts"] = tuple(inputs["prompts"])
        values["input"] = InputConfig(**inputs)
        if kind == "train":
            values["model"] = ModelConfig(**values.pop("model"))
            train = dict(values.pop("train"))
            train["cue_weights"] = tuple(train["cue_weights"])
            return TrainingCell(**values, train=TrainConfig(**train))
        sample = SampleConfig(**values.pop("sample"))
        values |= {name: tuple(values[name]) for name in ("tested", "seen") if name in values}
        return Cell(**values, sample=sample)
    except UserError:
        raise
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"cell document does not fit this version of DiffUp: {error}") from error
