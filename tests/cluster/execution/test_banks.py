"""Cells with a bank: what it is drawn from, what it may read, and that it changes no count by the way of running."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cluster.execution import inputs as opened
from cluster.execution import setting
from cluster.execution.context import WorkContext
from cluster.execution.run_cell import Outcome, execute, execute_together
from cluster.execution.setting import bank_of
from cluster.precompute.tasks import inputs_of
from cluster.storage.feature_cache import VISUAL
from diffup.config import InputConfig, ModelConfig, TrainConfig
from diffup.episodes.protocols import get_protocol
from diffup.evaluation import bank
from diffup.evaluation.bank import bank_images
from diffup.grid.axes import RIVALS, Backbone, evaluation_cells, tasks, training_cell
from diffup.grid.cell import Cell
from diffup.grid.datasets import Data
from diffup.training.recipes import Recipe
from tests.helpers.toy import ToyDataset

pytestmark = pytest.mark.usefixtures("one_thread", "toy")
DATA = Data(name="toy", fingerprint=ToyDataset.fingerprint, folds=3)
TOY = Backbone(name="resnet18", weights="random:0")
INPUT = InputConfig(input_size=48, feature_grid=8, bank=4, bank_positions=6)
COUNTS = ["episode", "query", "inter_fg", "union_fg", "inter_bg", "union_bg", "prob_sum"]
PAIRED = get_protocol("paired")


def context(root: Path, **more: Any) -> WorkContext:
    asked = {"cache": "none", **more}
    return WorkContext(results=root, datasets={"toy": "nowhere"}, batch_size=4, launch="test", **asked)


def cells(fold: int = 0) -> list[Cell]:
    made: list[Cell] = []
    for variant, (sample, reads_bank) in RIVALS.items():
        config = INPUT if reads_bank else dataclasses.replace(INPUT, bank=0)
        made += evaluation_cells(
            DATA, fold, [TOY], tasks((1, 2), ("mask", "box")), config=config, episodes=8, sample=sample, variant=variant
        )
    return made


def table(made: object) -> pd.DataFrame:
    assert isinstance(made, Outcome) and made.episodes is not None, made
    return made.episodes[COUNTS]


def test_cells_with_different_banks_in_one_pass_count_as_alone(tmp_path: Path) -> None:
    grid = cells()
    alone = {}
    for cell in grid:
        opened._features.cache_clear()
        alone[cell.key()] = table(execute(cell, context(tmp_path)))
    for cell, made in execute_together(grid, context(tmp_path)):
        pd.testing.assert_frame_equal(table(made), alone[cell.key()])
    by_name = {
        cell.variant: alone[cell.key()]["prob_sum"] for cell in grid if (cell.shots, cell.annotation) == (1, "mask")
    }
    bank = by_name["evidence_bank"]
    assert not any(bank.equals(other) for name, other in by_name.items() if name != "evidence_bank")


@pytest.mark.parametrize("fold", [0, 1, 2])
def test_no_image_of_a_bank_is_tested_on_or_dropped_from_training(fold: int, tmp_path: Path) -> None:
    dataset = ToyDataset()
    cell = next(cell for cell in cells(fold) if cell.input.bank)
    images = bank_of(cell, dataset, context(tmp_path))  # type: ignore[arg-type]
    assert len(images) == INPUT.bank
    tested = {image for c in dataset.novel_classes(fold) for image in dataset.eligible(c, PAIRED, "test")}
    shown = {image for c in dataset.base_classes(fold) for image in dataset.eligible(c, PAIRED, "train")}
    assert not set(images) & tested and set(images) <= shown
    wanted = inputs_of([cell], context(tmp_path, cache="features"))
    (features,) = (part for part in wanted if part.spec.kind == VISUAL)
    assert set(images) <= set(features.items), "it is encoded ahead with the others"


def test_classes_that_are_tested_are_hidden_from_a_bank_whatever_the_fold(tmp_path: Path) -> None:
    """As in a test on another data set than the checkpoint's: a fold's base classes may be among those tested."""
    cell = next(cell for cell in cells() if cell.variant == "evidence_objects")
    other = dataclasses.replace(cell, classes="tested", tested=(2, 3))
    dataset: Any = ToyDataset()
    assert setting.known_classes(cell, dataset) == (2, 3, 4, 5)
    assert setting.known_classes(other, dataset) == (0, 1, 4, 5), "all that aren't tested: these folds are another's"
    images = bank_of(other, dataset, context(tmp_path))
    assert images and {image[0] for image in images} <= {"0", "1", "4", "5"}
    far = bank_of(dataclasses.replace(other, fold=7), dataset, context(tmp_path))
    assert far and {image[0] for image in far} <= {"0", "1", "4", "5"}, "a fold that this data set does not have"
    everything = tuple(range(len(dataset.classes)))
    assert bank_of(dataclasses.replace(other, tested=everything), dataset, context(tmp_path)) == ()
    names = [{part.spec.name for part in inputs_of([c], context(tmp_path, cache="features"))} for c in (cell, other)]
    assert names[0] ^ names[1], "they don't share prior maps on disk"


def test_fewer_images_are_the_first_of_more_and_too_few_are_none() -> None:
    dataset = ToyDataset()
    pools = {c: dataset.eligible(c, PAIRED, "train") for c in dataset.base_classes(0)}
    more = bank_images(dataset, pools, dataset.novel_classes(0), PAIRED, 0, 6)  # type: ignore[arg-type]
    assert bank_images(dataset, pools, dataset.novel_classes(0), PAIRED, 0, 3) == more[:3]  # type: ignore[arg-type]
    both = {2: (*pools[2], dataset.pool(0)[0])}  # one of them shows a novel class, too
    assert set(bank_images(dataset, both, dataset.novel_classes(0), PAIRED, 0, 99)) == set(pools[2])  # type: ignore[arg-type]
    everything = range(len(dataset.classes))
    assert bank_images(dataset, pools, everything, PAIRED, 0, 3) == ()  # type: ignore[arg-type]


def test_labels_of_novel_classes_and_truths_of_queries_do_not_reach_a_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Poisoned wherever a prediction must not look: masks of novel classes in images that are no support."""
    cell = next(c for c in cells() if c.variant == "evidence_objects" and (c.shots, c.annotation) == (1, "mask"))
    clean = execute(cell, context(tmp_path))
    assert clean.episodes is not None
    novel, honest = set(ToyDataset().novel_classes(0)), ToyDataset.mask
    shown = zip(clean.episodes["supports"], clean.episodes["class_id"], strict=True)
    allowed = {(support, class_index) for supports, class_index in shown for support in supports}

    def mask(self: ToyDataset, image_id: str, class_index: int) -> Any:
        found = honest(self, image_id, class_index)
        return found if class_index not in novel or (image_id, class_index) in allowed else 1 - found

    monkeypatch.setattr(ToyDataset, "mask", mask)
    opened._features.cache_clear()
    opened.cues_of.cache_clear()
    poisoned = execute(cell, context(tmp_path))
    opened.cues_of.cache_clear()
    assert poisoned.episodes is not None
    before, after = (np.stack(list(rows["prob_sum"])).sum(1) for rows in (clean.episodes, poisoned.episodes))
    np.testing.assert_allclose(after, before, rtol=1e-6)
    assert not poisoned.episodes["inter_fg"].equals(clean.episodes["inter_fg"]), "the poison was not met"


def test_a_training_reads_a_bank_without_its_own_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(
        input=INPUT,
        model=ModelConfig(decoder_grid=16, width=16, base="evidence"),
        train=TrainConfig(steps=2, batch_size=2, cue_weights=(1.0, 0.0, 0.0, 0.0)),
    )
    seen = list[torch.Tensor]()
    honest = bank.without

    def without(dataset: Any, images: Any, classes: Any) -> Any:
        found = honest(dataset, images, classes)
        seen.extend(found.values())
        for class_index, kept in found.items():
            assert [class_index not in dataset.areas[image] for image in images] == kept.tolist()
        return found

    monkeypatch.setattr(setting, "without", without)
    cell = training_cell(DATA, 0, TOY, recipe)
    made = execute(cell, context(tmp_path))
    facts = json.loads((tmp_path / cell.key() / "checkpoint" / "config.json").read_text())["facts"]
    assert tuple(facts["bank"]) == bank_of(cell, ToyDataset(), context(tmp_path))  # type: ignore[arg-type]
    assert np.isfinite(made.metrics["loss"]) and seen and not all(bool(kept.all()) for kept in seen)
