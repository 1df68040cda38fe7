"""Episodes that come from files: HSNet's lists and published manifests, from the plan to the figures."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from cluster.execution.inputs import manifest_for_cell
from cluster.execution.run_cell import WorkContext, execute
from cluster.planning.preflight import check_feasible
from diffup.backbones.weights import weights_identity
from diffup.config import InputConfig, ModelConfig, TrainConfig
from diffup.data.dataset import open_dataset
from diffup.data.lists import PASCAL, Pairs, fold_classes, hsnet_list
from diffup.episodes.__main__ import main
from diffup.episodes.episode import Manifest
from diffup.episodes.hsnet import hsnet_episodes
from diffup.episodes.manifest import rows
from diffup.episodes.protocols import get_protocol
from diffup.episodes.sampling import make_manifest, training_pools
from diffup.errors import UserError
from diffup.grid.axes import PRIOR_MEAN, Backbone, evaluation_cells, training_cell
from diffup.grid.cell import Cell, TrainingCell, cell_from_dict, cell_to_dict
from diffup.grid.datasets import Data, open_data
from diffup.training.recipes import Recipe
from tests.helpers.folders import write_image

NAMES = [f"class {c}" for c in range(20)]
IMAGES = 3
INPUT = InputConfig(input_size=64, feature_grid=8)
RESNET = Backbone(name="tiny_resnet", weights=weights_identity("tiny_resnet"))
HSNET = get_protocol("hsnet")


@pytest.fixture(scope="module")
def pascal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set of Pascal's folds, 3 images a class, and lists in HSNet's form, each class's images in reverse."""
    folder = tmp_path_factory.mktemp("voc")
    (folder / "SegmentationClass").mkdir()
    for c in range(20):
        for i in range(IMAGES):
            name = f"{2007 + i}_{c:06d}"
            write_image(folder / "JPEGImages" / f"{name}.jpg", (64, 80), seed=c * IMAGES + i)
            label = np.zeros((64, 80), np.uint8)
            label[8:56, 10 : 56 + i] = c + 1
            Image.fromarray(label).save(folder / "SegmentationClass" / f"{name}.png")
    folds = [[NAMES[c] for c in fold_classes(PASCAL, f)] for f in range(4)]
    document = {"name": PASCAL, "layout": "voc", "classes": NAMES, "folds": folds}
    (folder / "dataset.json").write_text(json.dumps(document))
    lists = tmp_path_factory.mktemp("splits")
    for split in ("trn", "val"):
        (lists / "pascal" / split).mkdir(parents=True)
        for f in range(4):
            entries = [(f"{2007 + i}_{c:06d}", c) for i in reversed(range(IMAGES)) for c in fold_classes(PASCAL, f)]
            text = "".join(f"{image}__{c + 1:02d}\n" for image, c in entries)
            (lists / "pascal" / split / f"fold{f}.txt").write_text(text)
    return folder / "dataset.json", lists


def run(cell: Cell | TrainingCell, data: Data, results: Path) -> list[str]:
    """Execute a cell; the queries of its episode table."""
    files = {name: str(path) for name, path in data.files().items()}
    outcome = execute(cell, WorkContext(results=results, datasets=files))
    return [] if outcome.episodes is None else outcome.episodes["query"].tolist()


def test_a_cell_under_hsnet_has_hsnets_episodes(pascal: tuple[Path, Path], tmp_path: Path) -> None:
    path, lists = pascal
    data = open_data(path, shots=2, protocol="hsnet", lists=lists)
    (cell,) = evaluation_cells(data, 1, [RESNET], [(2, "mask")], config=INPUT, episodes=7, sample=PRIOR_MEAN)
    expected = hsnet_episodes(hsnet_list(lists, PASCAL, 1), PASCAL, fold=1, shots=2, episodes=7)
    assert run(cell, data, tmp_path) == [e.query for e in expected]
    assert cell.manifest == Manifest(PASCAL, "hsnet", 1, 0, tuple(expected)).hash()
    assert cell_from_dict(cell_to_dict(cell)) == cell


def test_training_under_hsnet_reads_its_training_lists(pascal: tuple[Path, Path], tmp_path: Path) -> None:
    path, lists = pascal
    data, dataset = open_data(path, shots=1, protocol="hsnet", lists=lists), open_dataset(path)
    pools = training_pools(dataset, 2, HSNET, lists)
    assert sorted(pools) == list(dataset.base_classes(2))
    assert all(len(images) == IMAGES for images in pools.values())
    cell = training_cell(
        data,
        2,
        RESNET,
        Recipe(input=INPUT, model=ModelConfig(decoder_grid=16, width=8), train=TrainConfig(steps=1, batch_size=1)),
    )
    assert cell.lists and cell.lists != training_cell(data, 1, RESNET, Recipe(input=INPUT)).lists
    assert cell.lists != Pairs(()).hash()
    run(cell, data, tmp_path)
    changed = dataclasses.replace(cell, lists="0" * 12)
    with pytest.raises(ValueError, match="has changed: its training lists"):
        run(changed, data, tmp_path)


def test_lists_that_changed_since_the_plan_are_refused(pascal: tuple[Path, Path], tmp_path: Path) -> None:
    path, lists = pascal
    data = open_data(path, shots=1, protocol="hsnet", lists=lists)
    (cell,) = evaluation_cells(data, 0, [RESNET], [(1, "mask")], config=INPUT, episodes=3, sample=PRIOR_MEAN)
    with pytest.raises(ValueError, match=r"has changed: its manifest is \w{12}, the cell names 0{12}"):
        run(dataclasses.replace(cell, manifest="0" * 12), data, tmp_path)
    with pytest.raises(ValueError, match="pass --lists DIR"):
        run(cell, dataclasses.replace(data, lists=None), tmp_path)


def test_hsnet_without_lists_is_refused_before_anything_runs(pascal: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="pass --lists DIR"):
        open_data(pascal[0], shots=1, protocol="hsnet")
    with pytest.raises(ValueError, match="looked for"):
        open_data(pascal[0], shots=1, protocol="hsnet", lists=pascal[0].parent)


def test_a_list_with_images_that_are_not_there_is_refused(pascal: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "pascal" / "val"
    folder.mkdir(parents=True)
    for f in range(4):
        (folder / f"fold{f}.txt").write_text(f"2030_000001__{5 * f + 1:02d}\n2007_{5 * f:06d}__{5 * f + 1:02d}\n")
    with pytest.raises(ValueError, match=r"1 of 2 images are not in the data set, the first 2030_000001"):
        open_data(pascal[0], shots=1, protocol="hsnet", lists=tmp_path)


def mislabelled(lists: Path, folder: Path, split: str) -> Path:
    """A copy of lists in which two images stand under a class of fold 0 that they don't show."""
    copy = Path(shutil.copytree(lists, folder / "lists"))
    with (copy / "pascal" / split / "fold0.txt").open("a") as file:
        file.write("2007_000005__01\n2007_000006__01\n")
    return copy


def test_a_validation_list_whose_images_do_not_show_their_class_is_refused(
    pascal: tuple[Path, Path], tmp_path: Path
) -> None:
    path, lists = pascal
    wrong = mislabelled(lists, tmp_path, "val")
    with pytest.raises(
        UserError, match=r"fold 0, 1 shots: .*; 116 of 1000 episodes have a query that does not show"
    ) as said:
        open_data(path, shots=1, protocol="hsnet", lists=wrong)
    assert "2007_000005, class 'class 0'" in str(said.value) and "more" in str(said.value)
    with pytest.raises(UserError, match=r"1 of 16 episodes have a query that does not show"):
        make_manifest(open_dataset(path), HSNET, 0, 1, 16, 0, lists=wrong)
    named = make_manifest(open_dataset(path), HSNET, 1, 1, 16, 0, lists=wrong)
    assert len(named.episodes) == 16, "other folds have no such image"


def test_a_training_list_whose_images_do_not_show_their_class_is_refused(
    pascal: tuple[Path, Path], tmp_path: Path
) -> None:
    path, lists = pascal
    wrong = mislabelled(lists, tmp_path, "trn")
    assert training_pools(open_dataset(path), 0, HSNET, wrong), "fold 0 trains on the lists of the others"
    with pytest.raises(UserError, match=r"2 of 47 training images of fold 1 do not show their class, the first 2007_0"):
        training_pools(open_dataset(path), 1, HSNET, wrong)


def test_a_worker_refuses_episodes_whose_image_no_longer_shows_the_class(
    pascal: tuple[Path, Path], tmp_path: Path
) -> None:
    """The plan is checked by `open_data`; a worker with other files of the same data set checks for itself."""
    path, _ = pascal
    (tmp_path / "fold0_shots1.json").write_text(json.dumps([["2007_000000", ["2008_000000"], 0]]))
    data = open_data(path, shots=1, manifests=tmp_path)
    (cell,) = evaluation_cells(data, 0, [RESNET], [(1, "mask")], config=INPUT, episodes=9, sample=PRIOR_MEAN)
    dataset = open_dataset(path)
    dataset.areas["2008_000000"] = {7: 100}
    with pytest.raises(UserError, match="1 of 1 episodes have a support that does not show the class"):
        context = WorkContext(results=tmp_path, datasets={name: str(file) for name, file in data.files().items()})
        manifest_for_cell(cell, dataset, (0,), context)


def test_coco_paths_find_their_images_under_either_name() -> None:
    pairs = Pairs((("val2014/COCO_val2014_000000507081.jpg", 3),))
    for name in ("COCO_val2014_000000507081", "000000507081", "val2014/COCO_val2014_000000507081"):
        assert pairs.named_as([name, "000000507082"], "list").entries == ((name, 3),)
    with pytest.raises(ValueError, match="1 of 1 images"):
        pairs.named_as(["000000507082"], "list")


def test_a_number_that_two_images_end_in_names_neither() -> None:
    pairs = Pairs((("c000000507081", 3),))
    with pytest.raises(ValueError, match="1 of 1 images"):
        pairs.named_as(["a000000507081", "b000000507081"], "list")
    assert pairs.named_as(["a000000507081", "c000000507081"], "list").entries == pairs.entries


def test_published_episodes_under_hsnet_still_need_its_training_lists(
    pascal: tuple[Path, Path], tmp_path: Path
) -> None:
    path, lists = pascal
    (tmp_path / "fold0_shots1.json").write_text(json.dumps([["2007_000000", ["2008_000000"], 0]]))
    with pytest.raises(ValueError, match="pass --lists DIR"):
        open_data(path, shots=1, protocol="hsnet", manifests=tmp_path)
    data = open_data(path, shots=1, protocol="hsnet", manifests=tmp_path, lists=lists)
    assert training_cell(data, 0, RESNET, Recipe(input=INPUT)).lists


def test_other_data_sets_follow_hsnets_rule_without_lists(tmp_path: Path) -> None:
    from tests.helpers.folders import write_voc

    dataset = open_dataset(write_voc(tmp_path, per_class=4))
    made = make_manifest(dataset, HSNET, 1, 3, 12, 0)
    pairs = sorted((i, c) for c in (2, 3) for i in dataset.eligible(c, HSNET))
    assert [(e.query, e.class_index) for e in made.episodes] == [pairs[i % len(pairs)] for i in range(12)]
    assert all(e.query not in e.supports for e in made.episodes)
    assert any(len(set(e.supports)) < 3 for e in made.episodes), "supports may repeat"


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_published_episodes_are_taken_in_again(
    form: str, pascal: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = pascal
    out = tmp_path / "episodes" / f"fold3_shots1.{form}"
    asked = ["--dataset", str(path), "--fold", "3", "--shots", "1", "--episodes", "6", "--seed", "5", "--out", str(out)]
    assert main(asked) == 0
    manifest = make_manifest(open_dataset(path), get_protocol("paired"), 3, 1, 6, 5)
    data = open_data(path, shots=1, manifests=out.parent)
    make = {"config": INPUT, "sample": PRIOR_MEAN}
    (cell,) = evaluation_cells(data, 3, [RESNET], [(1, "mask")], episodes=1000, **make)  # type: ignore[arg-type]
    assert (cell.episodes, cell.manifest) == (6, data.manifests[3, 1].hash)
    assert run(cell, data, tmp_path) == [e.query for e in manifest.episodes]
    (short,) = evaluation_cells(data, 3, [RESNET], [(1, "mask")], episodes=2, **make)  # type: ignore[arg-type]
    assert run(short, data, tmp_path) == [e.query for e in manifest.episodes[:2]]
    with pytest.raises(ValueError, match="none for fold 2 with 1 shots"):
        evaluation_cells(data, 2, [RESNET], [(1, "mask")], episodes=2, **make)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "held", "message"),
    [
        ("fold0_shots1.json", [["2007_000099", ["2008_000000"], 0]], "are not in the data set"),
        ("fold0_shots1.json", [["2007_000000", ["2008_000000"], 7]], r"classes \[7\] are not novel in fold 0"),
        ("fold0_shots2.json", [["2007_000000", ["2008_000000"], 0]], "fewer than 2 supports"),
        ("fold0_shots1.json", {"episodes": []}, "not a manifest as JSON"),
        ("fold9_shots1.json", [["2007_000000", ["2008_000000"], 0]], "F below 4"),
        ("other.json", [], "holds no fold"),
    ],
)
def test_given_episodes_that_do_not_fit_are_refused(
    name: str, held: object, message: str, pascal: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(json.dumps(held))
    with pytest.raises(ValueError, match=message):
        open_data(pascal[0], shots=1, manifests=tmp_path)


def test_rows_are_what_papers_exchange(pascal: tuple[Path, Path]) -> None:
    manifest = make_manifest(open_dataset(pascal[0]), get_protocol("paired"), 0, 2, 5, 0)
    assert [len(row) for row in rows(manifest)] == [3] * 5
    assert rows(manifest)[0] == [manifest.episodes[0].query, list(manifest.episodes[0].supports), 0]


def test_grids_take_protocol_lists_and_published_episodes(pascal: tuple[Path, Path], tmp_path: Path) -> None:
    """The number of episodes is the protocol's own unless another is asked for."""
    from experiments import full_grid, mini_grid

    path, lists = pascal
    tiny = ["--dataset", str(path), "--train-backbone", "tiny_resnet", "--backbones", "tiny_resnet"]

    def cells(script: ModuleType, *more: str) -> list[Cell]:
        made, files = script.build(script.STUDY.parse(more))
        assert set(files) >= {PASCAL}
        return [cell for cell in made if isinstance(cell, Cell)]

    planned, files = mini_grid.build(mini_grid.STUDY.parse(tiny))
    wrong = check_feasible(planned, files, None).wrong
    assert len(wrong) == 1 and "5 shots need 6 images" in next(iter(wrong)), "HSNet's supports may repeat, others not"
    hsnet = ["--protocol", "hsnet", "--lists", str(lists)]
    made = cells(mini_grid, *tiny, *hsnet)
    assert {cell.episodes for cell in made} == {1000} and {cell.protocol for cell in made} == {"hsnet"}
    assert len({cell.manifest for cell in made}) == 2, "one for each number of shots"
    assert {
        cell.episodes
        for cell in cells(mini_grid, *tiny, "--protocol", "hsnet", "--lists", str(lists), "--episodes", "9")
    } == {9}
    every = cells(full_grid, "--dataset", str(path), "--protocol", "hsnet", "--lists", str(lists))
    assert {(cell.shots, cell.episodes) for cell in every} == {(k, 1000) for k in (0, 1, 5, 10)}
    with pytest.raises(ValueError, match="of one data set"):
        cells(full_grid, "--manifests", str(tmp_path))
