"""DiffUp.train: the bytes of a grid's training cell, live, resumable, within a time; and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.execution.run_cell import WorkContext, execute
from diffup import DiffUp, Support, fit
from diffup.config import InputConfig, ModelConfig, TrainConfig
from diffup.data.dataset import Dataset
from diffup.errors import UserError
from diffup.evaluation.bank import NO_BANK
from diffup.grid.cell import cell_from_dict
from diffup.models.checkpoint import load_checkpoint
from diffup.training.recipes import Recipe
from diffup.training.trainer import Paused, paused_at
from tests.helpers.own_backbone import OwnBackbone
from tests.helpers.trained import example, of_class

RECIPE = Recipe(
    input=InputConfig(input_size=64, feature_grid=8),
    model=ModelConfig(decoder_grid=16, width=16),
    train=TrainConfig(steps=3, batch_size=2, max_shots=2),
)
EVIDENCE = RECIPE.changed(input={"bank": 6}, model={"base": "evidence"})
pytestmark = pytest.mark.usefixtures("one_thread")


def train(data: Dataset | Path | str, backbone: Any = "tiny_resnet", **options: Any) -> DiffUp:
    return DiffUp.train(data, backbone, **{"recipe": RECIPE, "progress": False, **options})


def weights(model: DiffUp) -> dict[str, torch.Tensor]:
    return model.net.state_dict()


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(("recipe", "fold"), [(RECIPE, 1), (EVIDENCE, None)])
def test_it_is_the_training_cell_of_a_grid(data: Dataset, tmp_path: Path, recipe: Recipe, fold: int | None) -> None:
    model = train(data, recipe=recipe, fold=fold)
    cell = cell_from_dict(model.facts["cell"])
    execute(cell, WorkContext(results=tmp_path, datasets={"shapes4i": str(data.root / "dataset.json")}))
    of_grid = DiffUp.load(tmp_path / cell.key())
    assert equal(weights(model), weights(of_grid))
    assert model.facts == of_grid.facts and model.encoder.identity == of_grid.encoder.identity
    assert (model.bank is not None) == (recipe is EVIDENCE)


def test_without_images_for_a_bank_it_has_what_a_loaded_checkpoint_gets(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fit, "bank_images", lambda *_: ())
    model = train(data, recipe=EVIDENCE)
    assert any(NO_BANK in message for message in caplog.messages)
    assert model.bank is not None and model.bank.packaged and "bank" not in model.facts
    query, support, mask = example(data)
    model.save(tmp_path / "kept")
    one, two = (each.segment(query, [Support(support, mask)]).mask for each in (model, DiffUp.load(tmp_path / "kept")))
    assert np.array_equal(one, two)


def test_it_tells_its_loss_segments_and_is_saved(data: Dataset, tmp_path: Path) -> None:
    told: list[tuple[int, float]] = []
    model = train(data, recipe=EVIDENCE, on_step=lambda step, loss: told.append((step, loss)))
    assert [step for step, _ in told] == [1, 2, 3] and all(np.isfinite(loss) for _, loss in told)
    query, support, mask = example(data)
    before = model.segment(query, [Support(support, mask)])
    assert before.mask.shape == query.shape[:2]
    model.save(tmp_path / "kept")
    loaded = DiffUp.load(tmp_path / "kept")
    np.testing.assert_array_equal(loaded.segment(query, [Support(support, mask)]).probability, before.probability)
    assert loaded.swap_backbone("tiny_regnet").segment(query, [Support(support, mask)]).mask.shape == query.shape[:2]


def test_an_interrupted_training_resumes(data: Dataset, tmp_path: Path) -> None:
    whole = train(data)
    with paused_at(2), pytest.raises(Paused):
        train(data, folder=tmp_path / "run")
    told: list[int] = []
    resumed = train(data, folder=tmp_path / "run", on_step=lambda step, loss: told.append(step))
    assert told == [3] and equal(weights(resumed), weights(whole))
    assert equal(load_checkpoint(tmp_path / "run").state_dict(), weights(whole))


def test_a_time_budget_only_chooses_the_steps(data: Dataset) -> None:
    within = train(data, time_budget=3600.0)
    assert within.facts["cell"]["train"]["steps"] == 3 and equal(weights(within), weights(train(data)))
    with pytest.raises(UserError, match="time_budget is too short: 10 steps take"):
        train(data, time_budget=0.01, steps=500)


def test_a_module_of_ones_own_is_trained_on(data: Dataset) -> None:
    model = train(data, OwnBackbone())
    assert model.facts["cell"]["weights"].startswith("module:")
    assert model.swap_backbone("tiny_resnet").encoder.backbone.name == "tiny_resnet"


def test_text_is_trained_with_a_companion(data: Dataset) -> None:
    with_text = train(data, companion="tiny_clip")
    assert with_text.facts["cell"]["input"]["companion"] == "tiny_clip"
    assert with_text.facts["cell"]["train"]["cue_weights"][3] > 0 and with_text.encoder.text_model is not None
    assert train(data).facts["cell"]["train"]["cue_weights"][3] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"time_budget": -1}, "time_budget must be a number of seconds"),
        ({"time_budget": float("nan")}, "time_budget must be a number of seconds"),
        ({"time_budget": 10, "folder": "x"}, "with time_budget= they differ"),
        ({"fold": 99}, "has folds 0-"),
        ({"seed": -1}, "seed"),
        ({"backbone": 3}, "backbone must be a name"),
        ({"companion": "tiny_resnet"}, "has no text encoder"),
        ({"device": "gpu"}, "device 'gpu' can't be used"),
    ],
)
def test_what_it_can_not_use_is_named(data: Dataset, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        train(data, **options)


def test_a_class_needs_two_images(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffup.fit.training_pools", lambda *where: {0: (of_class(data, 0)[0],)})
    with pytest.raises(UserError, match="no base class has two images"):
        train(data)
