"""The reader of ``dataset.json`` in VOC layout: what it gives, and what it says of bad input."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import diffup.data.layouts.voc
from diffup.data.dataset import Dataset, open_dataset, resolve_dataset
from diffup.data.spec import ALL_CLASSES
from diffup.episodes.protocols import get_protocol
from diffup.episodes.sampling import make_manifest, training_pools
from tests.helpers.folders import CLASSES, SIZE, labels, write_image, write_json, write_voc

PAIRED = get_protocol("paired")


def test_a_sound_data_set(json_path: Path, cache: Path) -> None:
    dataset = open_dataset(json_path, cache_dir=cache)
    assert (dataset.name, dataset.classes, dataset.ignore_index) == ("toy", CLASSES, 255)
    assert dataset.folds == ((0, 1), (2, 3))
    assert dataset.novel_classes(1) == (2, 3) and dataset.base_classes(1) == (0, 1)
    assert dataset.image_ids == tuple(sorted(f"{name}_{i}" for name in CLASSES for i in range(3)))
    assert set(dataset.sizes.values()) == {SIZE}
    image = dataset.image("cat_1")
    assert image.shape == (*SIZE, 3) and image.dtype == np.uint8


@pytest.mark.parametrize("number", [0, 1])  # grey and palette
def test_masks_of_each_class(json_path: Path, cache: Path, number: int) -> None:
    dataset = open_dataset(json_path, cache_dir=cache)
    raw = labels(2, number)
    for c in range(4):
        mask = dataset.mask(f"cat_{number}", c)
        assert mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1, 255}
        assert ((mask == 255) == (raw == 255)).all() and ((mask == 1) == (raw == c + 1)).all()
    assert dataset.areas[f"cat_{number}"] == {2: int((raw == 3).sum()), 3: 20}


def test_only_images_with_enough_of_a_class_are_eligible(json_path: Path, cache: Path) -> None:
    dataset = open_dataset(json_path, cache_dir=cache)
    assert dataset.eligible(2, PAIRED) == ("cat_0", "cat_1", "cat_2"), "20 pixels of 2400 in bird_* are below 1 %"
    write_json(json_path.parent, min_area_fraction=0.005)
    lower = open_dataset(json_path, cache_dir=cache)
    assert lower.eligible(2, PAIRED) == ("bird_0", "bird_1", "bird_2", "cat_0", "cat_1", "cat_2")
    assert lower.fingerprint != dataset.fingerprint


def test_check_names_fold_class_and_counts(json_path: Path, cache: Path) -> None:
    dataset = open_dataset(json_path, cache_dir=cache)
    dataset.check(2)
    with pytest.raises(ValueError) as caught:
        dataset.check(3)
    message = str(caught.value)
    assert "3 shots need 4 images" in message and "fewer shots" in message and str(json_path) in message
    for fold, name in ((0, "dog"), (0, "bird"), (1, "cat"), (1, "cow")):
        assert f"fold {fold}, class '{name}': 3 (6 with any pixel of it)" in message


def test_a_class_in_no_fold_is_a_base_class_everywhere(json_path: Path, cache: Path) -> None:
    write_json(json_path.parent, folds=[["bird"], ["cow"]])
    dataset = open_dataset(json_path, cache_dir=cache)
    assert dataset.base_classes(0) == (0, 2, 3) and dataset.base_classes(1) == (0, 1, 2)
    for fold in (-1, 2):
        with pytest.raises(ValueError, match="folds 0-1"):
            dataset.novel_classes(fold)


def test_no_class_is_novel_where_no_fold_is_left_out(json_path: Path, cache: Path) -> None:
    dataset = open_dataset(json_path, cache_dir=cache)
    assert dataset.novel_classes(ALL_CLASSES) == () and dataset.base_classes(ALL_CLASSES) == (0, 1, 2, 3)
    assert set(training_pools(dataset, ALL_CLASSES, PAIRED)) == {0, 1, 2, 3}
    with pytest.raises(ValueError, match="no class to draw episodes from"):
        make_manifest(dataset, PAIRED, ALL_CLASSES, 1, 10, 0)


def test_lists_choose_the_images(json_path: Path, cache: Path) -> None:
    lists = json_path.parent / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("dog_0\ndog_1\n")
    (lists / "val.txt").write_text("cat_2\r\ndog_1\n")
    (json_path.parent / "JPEGImages" / "bird_0.jpg").write_bytes(b"damaged, but not listed")
    assert open_dataset(json_path, cache_dir=cache).image_ids == ("cat_2", "dog_0", "dog_1")


def test_another_void_label_and_other_folders(tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "own"
    write_image(root / "a" / "x.png")
    (root / "b").mkdir()
    Image.fromarray(np.full(SIZE, 9, np.uint8)).save(root / "b" / "x.png")
    path = write_json(root, ignore_index=9, images="a", masks="b")
    assert (open_dataset(path, cache_dir=cache).mask("x", 0) == 255).all()


def test_grey_images_become_rgb(json_path: Path, cache: Path) -> None:
    Image.fromarray(np.full(SIZE, 90, np.uint8)).save(json_path.parent / "JPEGImages" / "dog_0.jpg")
    assert open_dataset(json_path, cache_dir=cache).image("dog_0").shape == (*SIZE, 3)


# The index


def test_opening_again_reads_no_image(json_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_dataset(json_path, cache_dir=cache)
    monkeypatch.setattr(diffup.data.layouts.voc, "scan", lambda *_: pytest.fail("indexed again"))
    second = open_dataset(json_path, cache_dir=cache)
    assert (second.areas, second.sizes, second.fingerprint) == (first.areas, first.sizes, first.fingerprint)
    assert len(list(cache.iterdir())) == 1


def test_a_changed_file_is_noticed(json_path: Path, cache: Path) -> None:
    before = open_dataset(json_path, cache_dir=cache)
    path = json_path.parent / "SegmentationClass" / "dog_0.png"
    label = labels(0, 0)
    label[12, 12] = 0
    Image.fromarray(label).save(path)
    os.utime(path, (1, 1))
    after = open_dataset(json_path, cache_dir=cache)
    assert after.areas["dog_0"][0] == before.areas["dog_0"][0] - 1
    assert after.fingerprint != before.fingerprint


def test_a_changed_photograph_changes_the_fingerprint(json_path: Path, cache: Path) -> None:
    before = open_dataset(json_path, cache_dir=cache).fingerprint
    write_image(json_path.parent / "JPEGImages" / "dog_0.jpg", seed=99)
    os.utime(json_path.parent / "JPEGImages" / "dog_0.jpg", (1, 1))
    assert open_dataset(json_path, cache_dir=cache).fingerprint != before


def test_the_fingerprint_is_of_the_content_not_of_place_and_time(json_path: Path, tmp_path: Path, cache: Path) -> None:
    copy = shutil.copytree(json_path.parent, tmp_path / "elsewhere")
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    document = json.loads(json_path.read_text())
    (copy / "dataset.json").write_text(json.dumps(dict(reversed(document.items())), indent=4))
    assert open_dataset(copy, cache_dir=cache).fingerprint == open_dataset(json_path, cache_dir=cache).fingerprint


def test_a_damaged_index_is_made_again(json_path: Path, cache: Path) -> None:
    first = open_dataset(json_path, cache_dir=cache)
    (index,) = cache.iterdir()
    content = index.read_bytes()
    for damage in (b"", content[:-40], b"PAR1" + content):
        index.write_bytes(damage)
        assert open_dataset(json_path, cache_dir=cache).areas == first.areas
        assert index.read_bytes() == content


def test_an_index_that_cannot_be_kept_is_only_a_warning(json_path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match="made again each time"):
        dataset = open_dataset(json_path, cache_dir=tmp_path / "file")
    assert len(dataset.image_ids) == 12


def test_a_data_set_can_be_sent_to_a_worker(json_path: Path, cache: Path) -> None:
    dataset = open_dataset(json_path, cache_dir=cache)
    sent: Dataset = pickle.loads(pickle.dumps(dataset))
    assert sent.fingerprint == dataset.fingerprint
    assert (sent.mask("cow_1", 3) == dataset.mask("cow_1", 3)).all()


# Names


def test_resolving_paths(json_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_dataset(str(json_path)) == resolve_dataset(str(json_path.parent)) == json_path
    monkeypatch.chdir(json_path.parent.parent)
    assert resolve_dataset("toy/dataset.json") == json_path


@pytest.mark.parametrize("name", ["pascal5i", "coco20i", "fss1000"])
def test_a_benchmark_that_is_not_there_says_how_to_make_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError) as caught:
        resolve_dataset(name, tmp_path)
    assert str(tmp_path / name) in str(caught.value)
    assert f"python -m diffup.data prepare {name} --root DIR" in str(caught.value)
    folder = tmp_path / name
    folder.mkdir()
    (folder / "dataset.json").write_text("{}")
    assert resolve_dataset(name, tmp_path) == folder / "dataset.json"


def test_an_unknown_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_voc(tmp_path / "birds")
    (tmp_path / "bare").mkdir()
    for name, message in (
        ("pascal", r"no such file or folder here, and it is none of shapes4i, .*did you mean pascal5i\?$"),
        ("bird", r"did you mean birds\?$"),
        (str(tmp_path / "bird"), r"did you mean .*/birds\?$"),
        ("bare", r"the folder holds no dataset\.json.*pass the path of a dataset\.json"),
    ):
        with pytest.raises(ValueError, match=message):
            open_dataset(name)


# Photographs


def test_photographs(shared_data: Path, cache: Path) -> None:
    dataset = open_dataset(shared_data / "msrc15" / "dataset.json", cache_dir=cache)
    assert len(dataset.image_ids) == 494 and len(dataset.classes) == 15
    counts = [len(dataset.eligible(c, PAIRED)) for c in range(15)]
    assert (min(counts), max(counts), sum(counts)) == (24, 66, 562)
    dataset.check(10)
    with pytest.raises(ValueError, match="class 'cat': 24"):
        dataset.check(24)
    for image_id in dataset.image_ids[::50]:
        for c, area in dataset.areas[image_id].items():
            mask = dataset.mask(image_id, c)
            assert mask.shape == dataset.image(image_id).shape[:2] == dataset.sizes[image_id]
            assert (mask == 1).sum() == area
