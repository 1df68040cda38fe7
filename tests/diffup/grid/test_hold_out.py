"""Held-out base classes: drawn once, never trained on, never novel, and exactly those that a variant is chosen on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from analysis.results import load_results
from cluster.execution import run_cell as work
from cluster.storage.atomic import now
from cluster.storage.results import Store
from diffup.config import InputConfig, ModelConfig, SampleConfig, TrainConfig
from diffup.episodes.sampling import held_out_classes
from diffup.grid.cell import Cell, TrainingCell
from tests.helpers.toy import ToyDataset

PLACE: dict[str, Any] = {
    "dataset": "toy",
    "fold": 0,
    "backbone": "toy",
    "weights": "random:0",
    "input": InputConfig(input_size=64, feature_grid=8, feature_dtype="float32"),
}
TRAIN = TrainConfig(steps=6, batch_size=4, max_shots=2, hold_out=2)
TRAINED = TrainingCell(**PLACE, model=ModelConfig(decoder_grid=16, width=16), train=TRAIN, train_seed=1)
HELD_OUT = Cell(
    **PLACE,
    shots=1,
    annotation="mask",
    checkpoint=TRAINED.key(),
    train_seed=1,
    episodes=6,
    classes="held_out",
    hold_out=2,
)


def context(results: Path) -> work.WorkContext:
    return work.WorkContext(results=results, datasets={"toy": "nowhere"})


def drawn(count: int, seed: int = 0, fold: int = 0) -> tuple[int, ...]:
    return held_out_classes(ToyDataset(), fold, count, seed)  # type: ignore[arg-type]


def test_they_are_base_classes_and_a_function_of_seed_and_fold() -> None:
    for fold in range(3):
        for seed in range(8):
            assert set(drawn(2, seed, fold)) < set(ToyDataset().base_classes(fold))
            assert drawn(2, seed, fold) == drawn(2, seed, fold)
            assert set(drawn(1, seed, fold)) < set(drawn(2, seed, fold)) < set(drawn(3, seed, fold))
    assert len({drawn(2, seed) for seed in range(8)}) > 1
    assert drawn(0) == ()


def test_a_class_must_be_left_to_train_on() -> None:
    with pytest.raises(ValueError, match=r"4 of 4 base classes can't be held out; choose a .* from 1 to 3"):
        drawn(4)


def test_they_are_never_trained_on_and_are_what_is_evaluated(toy: ToyDataset, tmp_path: Path) -> None:
    held_out = set(drawn(2, seed=1))
    work.execute(TRAINED, context(tmp_path))
    assert toy.asked == {2, 3, 4, 5} - held_out
    table = work.execute(HELD_OUT, context(tmp_path)).episodes
    assert table is not None
    assert set(table["class_id"]) == held_out
    assert toy.asked == {2, 3, 4, 5}, "a novel class was looked at"


def test_a_baseline_is_evaluated_on_the_same_episodes(toy: ToyDataset, tmp_path: Path) -> None:
    work.execute(TRAINED, context(tmp_path))
    baseline = dataclasses.replace(HELD_OUT, checkpoint="", sample=SampleConfig(method="prior_mean"))
    hashes = {work.execute(cell, context(tmp_path)).provenance["manifest_hash"] for cell in (HELD_OUT, baseline)}
    assert len(hashes) == 1


def test_fewer_episodes_than_classes_leave_mean_iou_undefined_and_say_which(toy: ToyDataset, tmp_path: Path) -> None:
    """From the episodes to ``result.json``: the class that has none is named, FB-IoU is there."""
    asked = Cell(**PLACE, shots=1, annotation="mask", episodes=1, sample=SampleConfig(method="prior_mean"))
    outcome = work.execute(asked, context(tmp_path))
    assert outcome.episodes is not None
    left = set(toy.novel_classes(0)) - set(outcome.episodes["class_id"])
    names = ", ".join(toy.classes[c] for c in sorted(left))
    reason = f"no episode of {names} ({len(left)} of {len(left) + 1} classes): use more episodes"
    assert outcome.undefined == {"miou": reason}
    assert outcome.metrics["fb_iou"] >= 0
    store = Store(tmp_path)
    store.write_result(
        asked, metrics=outcome.metrics, provenance={}, started=now(), episodes=outcome.episodes,
        undefined=outcome.undefined,
    )  # fmt: skip
    row = load_results(tmp_path).cells.iloc[0]
    assert (row["status"], row["undefined"]) == ("finished", f"mIoU: {outcome.undefined['miou']}")
    assert row["fb_iou"] == outcome.metrics["fb_iou"]


@pytest.mark.parametrize("change", [{"hold_out": 1}, {"train_seed": 0}])
def test_a_checkpoint_that_knows_the_classes_is_refused(
    toy: ToyDataset, tmp_path: Path, change: dict[str, Any]
) -> None:
    work.execute(TRAINED, context(tmp_path))
    with pytest.raises(ValueError, match=r"was trained on classes that cell .* holds out"):
        work.execute(dataclasses.replace(HELD_OUT, **change), context(tmp_path))
