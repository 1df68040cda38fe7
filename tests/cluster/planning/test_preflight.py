"""What can never run is found by the plan: folds without base classes, too few images for K, weights out of reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.cli import run
from cluster.planning.preflight import SHOWN, Feasible, check_feasible
from diffup.backbones import hub
from diffup.config import InputConfig, TrainConfig
from diffup.data.dataset import open_dataset
from diffup.errors import UserError
from diffup.grid.axes import PROTOTYPE, Backbone, evaluation_cells, tasks, training_cell
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data
from diffup.training.recipes import Recipe
from experiments import mini_grid
from tests.helpers.folders import CLASSES, write_voc

INPUT = InputConfig(input_size=32)
RANDOM = Backbone(name="resnet18", weights="random:0")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUP_HOME", str(tmp_path / "home"))


def planned(path: Path, *, shots: tuple[int, ...] = (1,), backbone: Backbone = RANDOM, **train: Any) -> list[AnyCell]:
    """A training cell for each fold and what is evaluated with it, whatever the data set can give."""
    data = Data(name="toy", path=path, folds=len(open_dataset(path).folds))
    cells: list[AnyCell] = []
    for fold in range(data.folds):
        trained = training_cell(data, fold, backbone, Recipe(input=INPUT, train=TrainConfig(**train)))
        what = {"config": INPUT, "episodes": 4, "trained": trained}
        cells += [trained, *evaluation_cells(data, fold, [backbone], tasks(shots, ("mask",)), **what)]  # type: ignore[arg-type]
    return cells


def test_what_can_run_is_left_alone(tmp_path: Path) -> None:
    path = write_voc(tmp_path / "toy")
    found = check_feasible(planned(path, shots=(1, 2)), {"toy": path}, None)
    assert (found.wrong, found.unchecked) == ({}, {})


def test_a_fold_of_all_classes_can_not_be_trained_and_what_needs_it_can_not_run_either(tmp_path: Path) -> None:
    path = write_voc(tmp_path / "toy", folds=[list(CLASSES)])
    found = check_feasible(planned(path, shots=(1, 2)), {"toy": path}, None)
    assert found.count == 3
    (reason,) = found.wrong
    assert "fold 0 has all classes, which leaves no base class to train on" in reason
    with pytest.raises(UserError, match=r"3 cells can't run:\n  3 cells: .*no base class"):
        raise found.error()


@settings(max_examples=15, deadline=None)
@given(images=st.integers(2, 4), shots=st.integers(0, 5))
def test_shots_run_exactly_where_each_class_has_one_image_more(
    images: int, shots: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write_voc(tmp_path_factory.mktemp("toy") / "toy", per_class=images)
    data = Data(name="toy", path=path, folds=2)
    kind = "mask" if shots else "text"
    cells = evaluation_cells(data, 1, [RANDOM], [(shots, kind)], config=INPUT, episodes=4, sample=PROTOTYPE)
    found = check_feasible(cells, {"toy": path}, None)
    assert bool(found.wrong) == (shots + 1 > images)
    for reason in found.wrong:
        assert f"{shots} shots need {shots + 1} images" in reason and f"cat {images}" in reason


def test_more_classes_held_out_than_there_are_is_found(tmp_path: Path) -> None:
    path = write_voc(tmp_path / "toy")
    found = check_feasible(planned(path, hold_out=2), {"toy": path}, None)
    assert all("can't be held out" in reason for reason in found.wrong) and found.count == 4


def test_at_most_ten_reasons_are_shown_with_the_count_of_all() -> None:
    found = Feasible(wrong={f"reason {n}": [] for n in range(25)})
    assert len(found.lines()) == SHOWN + 1
    assert found.lines()[-1] == "… and 15 more reasons"


def test_a_data_set_that_is_not_here_leaves_its_cells_unchecked(tmp_path: Path) -> None:
    data = Data(name="pascal5i")
    cells = evaluation_cells(
        data, 0, [Backbone(name="resnet50", weights="hub")], [(1, "mask")], config=INPUT, episodes=4, sample=PROTOTYPE
    )
    found = check_feasible(cells, {}, None)
    assert found.wrong == {} and list(found.unchecked) == ["data set pascal5i is not available"]


def cached(folder: Path, repository: str, file: str) -> None:
    """A file in a hub cache, as huggingface_hub lays it out."""
    base = folder / f"models--{repository.replace('/', '--')}"
    (base / "refs").mkdir(parents=True)
    (base / "refs" / "main").write_text("0" * 40)
    (base / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (base / "snapshots" / ("0" * 40) / file).write_bytes(b"weights")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache of a machine that is offline."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize(
    ("name", "repository", "file"),
    [
        ("resnet18.a1_in1k", "timm/resnet18.a1_in1k", "model.safetensors"),
        ("resnet18.a1_in1k", "timm/resnet18.a1_in1k", "pytorch_model.bin"),
        (
            "open_clip:ViT-B-16/openai",
            "timm/vit_base_patch16_clip_224.openai",
            "open_clip_model.safetensors",
        ),
    ],
)
def test_offline_weights_must_be_in_the_cache(
    name: str, repository: str, file: str, cache: Path, tmp_path: Path
) -> None:
    path = write_voc(tmp_path / "toy")
    cells = planned(path, backbone=Backbone(name=name, weights="hub"))
    found = check_feasible(cells, {"toy": path}, None)
    assert found.count == len(cells)
    assert all(f"weights of {name} are not in the hub's cache" in reason for reason in found.wrong)
    assert check_feasible(cells, {"toy": path}, None, elsewhere=True).wrong == {}
    cached(cache, repository, file)
    assert hub.weights_cached(name) is True
    assert check_feasible(cells, {"toy": path}, None).wrong == {}


def test_a_machine_that_is_online_is_never_refused_for_weights(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    path = write_voc(tmp_path / "toy")
    cells = planned(path, backbone=Backbone(name="resnet18.a1_in1k", weights="hub"))
    assert check_feasible(cells, {"toy": path}, None).wrong == {}


def test_weights_by_their_hash_need_their_file(tmp_path: Path) -> None:
    path = write_voc(tmp_path / "toy")
    cells = planned(path, backbone=Backbone(name="resnet18", weights="sha256:0123456789ab"))
    (reason,) = check_feasible(cells, {"toy": path}, None).wrong
    assert "pass --weights-dir" in reason
    (tmp_path / "weights").mkdir()
    (reason,) = check_feasible(cells, {"toy": path}, tmp_path / "weights").wrong
    assert f"{tmp_path / 'weights'} has no file of them" in reason
    (tmp_path / "weights" / "resnet18.safetensors").touch()
    assert check_feasible(cells, {"toy": path}, tmp_path / "weights").wrong == {}


@pytest.mark.parametrize("more", [["--dry-run"], []])
def test_a_grid_that_can_not_run_ends_with_2_before_anything_is_written(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_voc(tmp_path / "toy", per_class=8, folds=[list(CLASSES)])
    results = tmp_path / "results"
    arguments = ["--dataset", str(path), "--train-backbone", "tiny_resnet", "--backbones", "tiny_resnet"]
    assert run(mini_grid.STUDY, [*arguments, "--results", str(results), "--episodes", "2", *more]) == 2
    said = capsys.readouterr()
    assert "17 to do" in said.out
    assert said.err.startswith("error: 7 cells can't run:")  # the training and 6 that need it
    assert "--select" in said.err and not results.exists()
    possible = ["--select", "variant=prototype", "--dry-run"]
    assert run(mini_grid.STUDY, [*arguments, "--results", str(results), *possible]) == 0
