"""Trains a checkpoint in this process, without a grid: what ``DiffUp.train`` does.

The same data, backbone, recipe, steps and seed give the bytes that a training cell of a grid gives on the same machine.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from diffup.backbones.load import Backbone, load_backbone, usable_device
from diffup.data.dataset import Dataset, open_dataset
from diffup.data.spec import ALL_CLASSES
from diffup.episodes.cue_source import CueSource
from diffup.episodes.protocols import get_protocol
from diffup.episodes.sampling import training_pools
from diffup.errors import UserError
from diffup.evaluation.bank import NO_BANK, BankImages, GivenBank, bank_images, encoded_bank, without
from diffup.evaluation.encode import Encoder, FeatureCache
from diffup.files import as_path
from diffup.grid.axes import Backbone as Named
from diffup.grid.axes import training_cell
from diffup.grid.cell import TrainingCell, cell_to_dict
from diffup.grid.datasets import Data
from diffup.models.card import versions
from diffup.models.checkpoint import load_checkpoint
from diffup.models.diffup import DiffUpNet
from diffup.support import check_names, whole
from diffup.training.draw_cache import DrawCache
from diffup.training.live import Live, OnStep
from diffup.training.pace import steps_within
from diffup.training.recipes import Recipe, photographs, shapes4i
from diffup.training.sampler import EpisodeSampler
from diffup.training.trainer import train

PROTOCOL = "paired"
DRAWN_BYTES = 4 << 30  # of drawn steps in the temporary folder
KEPT = 15  # images of the bank that go along with the model
FIRST = "resnet50"
LOG = logging.getLogger(__name__)

T = TypeVar("T")


class Fitted(NamedTuple):
    """A training's result: the arguments of ``DiffUp()``."""

    encoder: Encoder
    net: DiffUpNet
    facts: dict[str, Any]
    bank: BankImages | None


def trained(
    cls: Callable[..., T],
    dataset: str | Path | Dataset,
    backbone: str | nn.Module = FIRST,
    *,
    steps: int | None = None,
    time_budget: float | None = None,
    fold: int | None = None,
    seed: int = 0,
    recipe: Recipe | None = None,
    weights_dir: str | Path | None = None,
    device: str = "cpu",
    companion: str = "",
    folder: str | Path | None = None,
    on_step: OnStep | None = None,
    progress: bool = True,
) -> T:
    """Train on a data set with a frozen backbone; the result works with any other backbone too (`swap_backbone`).

    Args:
        dataset: a ``dataset.json``, its folder, a known name, or an opened data set.
        backbone: trained on: any timm, ``open_clip:…`` or embedded name, ``"package.module:build"``, or a module.
        steps: of training; None: the recipe's, 800 for photographs.
        time_budget: seconds that all of it may take, about: after encoding a few images and drawing a few steps, as
            many steps are taken as will fit, `steps` at most. How many depends on the machine and on what else it does;
            ``model.facts["cell"]["train"]["steps"]`` says it, and the same `steps` give the same weights.
        fold: whose classes are left out, to be tested on; None: all classes are trained on.
        seed: of the training.
        recipe: configurations; None: `diffup.training.recipes.photographs`, or `shapes4i` for the embedded data.
        weights_dir: folder of backbone weights (``<name>.safetensors``).
        device: where the backbone and the training run.
        companion: open_clip model that reads text where the backbone can't, so that text cues are trained too.
        folder: keeps the state every 100 steps: the same call resumes there, and the checkpoint is written to it; None:
            nothing is kept. Not with `time_budget`.
        on_step: called with steps done and mean loss after each step.
        progress: print ``step 340/800 loss 0.39 ETA 1:10`` to stderr.

    Raises:
        UserError: the data set is damaged or has no class with two images, a backbone or device that is not available,
            a budget that is too short, or a folder with another training.
        FloatingPointError: the loss is no longer finite.
    """
    check_names(backbone=backbone, companion=companion)
    if time_budget is not None and folder is not None:
        raise UserError("folder= resumes a training of known steps; with time_budget= they differ from call to call")
    opened = dataset if isinstance(dataset, Dataset) else open_dataset(dataset)
    fitted = fit(
        opened,
        backbone,
        recipe=_recipe(recipe, opened.name, steps),
        time_budget=_seconds(time_budget),
        fold=ALL_CLASSES if fold is None else whole(fold, "fold", 0),
        seed=whole(seed, "seed", 0),
        weights_dir=None if weights_dir is None else as_path(weights_dir, "weights_dir"),
        device=usable_device(device),
        companion=companion,
        folder=None if folder is None else as_path(folder, "folder"),
        on_step=on_step,
        progress=progress,
    )
    return cls(*fitted)


def _recipe(recipe: Recipe | None, name: str, steps: int | None) -> Recipe:
    chosen = recipe or (shapes4i() if name == "shapes4i" else photographs())
    return chosen if steps is None else chosen.changed(train={"steps": whole(steps, "steps", 1)})


def _seconds(value: float | None) -> float | None:
    if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
        raise UserError(f"time_budget must be a number of seconds above 0, not {value!r:.60}")
    return value


def fit(
    dataset: Dataset,
    backbone: str | nn.Module,
    *,
    recipe: Recipe,
    time_budget: float | None = None,
    fold: int = ALL_CLASSES,
    seed: int = 0,
    weights_dir: Path | None = None,
    device: str = "cpu",
    companion: str = "",
    folder: Path | None = None,
    on_step: OnStep | None = None,
    progress: bool = False,
) -> Fitted:
    """See `trained`; `recipe` has the steps, `fold` may be `ALL_CLASSES`."""
    began = time.monotonic()
    visual = load_backbone(backbone, weights_dir=weights_dir, device=device)
    reader = load_backbone(companion, weights_dir=weights_dir, device=device) if companion else None
    cell = _cell(dataset, visual, reader, recipe, fold, seed)
    text_model = visual if visual.has_text else reader
    encoder = Encoder(visual, cell.input.encoder, text_model if cell.train.cue_weights[3] else None, device)
    features, cues = FeatureCache(encoder, dataset.image), CueSource(dataset, cell.input.cues)
    pools = training_pools(dataset, fold, get_protocol(PROTOCOL))
    bank = _bank(cell, dataset, pools, features, cues)
    with tempfile.TemporaryDirectory(prefix="diffup-train-") as scratch:
        keep = DrawCache(Path(scratch) / "drawn", DRAWN_BYTES).of(())
        parts = (cues, features, pools, fold, seed, cell.model)
        sampler = EpisodeSampler(*parts, cell.train, keep, bank)
        if time_budget is not None:
            steps = steps_within(sampler, time_budget - (time.monotonic() - began), device)
            if steps < recipe.train.steps / 2:
                LOG.warning("time for %d of the recipe's %d steps: expect poor masks", steps, recipe.train.steps)
            cell = _cell(dataset, visual, reader, recipe.changed(train={"steps": steps}), fold, seed)
            sampler = EpisodeSampler(*parts, cell.train, keep, bank)
        facts = _facts(cell, dataset, pools, bank)
        say = Live(cell.train.steps) if progress else None

        def report(step: int, loss: float) -> None:
            for each in (say, on_step):
                if each is not None:
                    each(step, loss)

        place = folder or Path(scratch) / "checkpoint"
        try:
            train(sampler, place, facts=facts, progress=False, report=report, device=device)
        except OSError as error:
            raise UserError(f"{place} can't be written ({error}); choose another folder or make room") from error
        net = load_checkpoint(place)
    if bank is not None:
        pictures: BankImages | None = _pictures(bank, dataset, cell)
    else:  # as where such a checkpoint is loaded
        pictures = BankImages.samples(cell.input.encoder) if cell.model.base == "evidence" else None
    return Fitted(encoder, net, facts, pictures)


def _cell(
    dataset: Dataset, visual: Backbone, reader: Backbone | None, recipe: Recipe, fold: int, seed: int
) -> TrainingCell:
    """The training as a cell of a grid: its identity."""
    protocol = get_protocol(PROTOCOL)
    data = Data(
        name=dataset.name, path=dataset.root / "dataset.json", fingerprint=dataset.fingerprint,
        folds=len(dataset.folds), protocol=PROTOCOL, protocol_hash=protocol.hash(),
    )  # fmt: skip
    companion = None if reader is None else Named(name=reader.name, weights=reader.weights)
    return training_cell(
        data, fold, Named(name=visual.name, weights=visual.weights), recipe, companion=companion, seed=seed
    )


def _bank(
    cell: TrainingCell, dataset: Dataset, pools: dict[int, tuple[str, ...]], features: FeatureCache, cues: CueSource
) -> GivenBank | None:
    if not cell.input.bank:
        return None
    novel, known = dataset.novel_classes(cell.fold), dataset.base_classes(cell.fold)
    images = bank_images(dataset, pools, novel, get_protocol(PROTOCOL), cell.fold, cell.input.bank)
    if not images:
        LOG.warning("%s: %s", dataset.name, NO_BANK)
        return None
    encoded = encoded_bank(images, features, cues, known, cell.input.bank_positions)
    return GivenBank(encoded, without(dataset, images, known), images, cell.input.bank_drop)


def _facts(
    cell: TrainingCell, dataset: Dataset, pools: dict[int, tuple[str, ...]], bank: GivenBank | None
) -> dict[str, Any]:
    return {
        "cell": cell_to_dict(cell),
        "key": cell.key(),
        "classes": [dataset.classes[c] for c in sorted(pools)],
        "left_out": [dataset.classes[c] for c in dataset.novel_classes(cell.fold)],
        "versions": versions(),
        **({"bank": list(bank.images)} if bank else {}),
    }


def _pictures(bank: GivenBank, dataset: Dataset, cell: TrainingCell) -> BankImages:
    """The first images of the bank, with where they show objects of trained classes."""
    known = dataset.base_classes(cell.fold)

    def shown(image_id: str) -> NDArray[np.bool_] | None:
        masks = [dataset.mask(image_id, c) == 1 for c in known if c in dataset.areas[image_id]]
        return np.logical_or.reduce(masks) if masks else None

    return BankImages.of([(dataset.image(i), shown(i)) for i in bank.images[:KEPT]], cell.input.encoder)
