"""The reader of ``dataset.json`` in VOC layout: what it gives, and what it says of bad input."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import diffup.data.voc
from diffup.data.dataset import Dataset, open_dataset, resolve_dataset
from diffup.data.records import SHOWN
from diffup.data.spec import read_spec
from diffup.protocols import get_protocol
from tests.unit.folders import CLASSES, SIZE, labels, write_image, write_json, write_voc

PAIRED = get_protocol("paired")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Folder of indexes."""
    return tmp_path / "cache"


@pytest.fixture
def json_path(tmp_path: Path) -> Path:
    """``dataset.json`` of a sound data set."""
    return write_voc(tmp_path / "toy")


def refusal(json_path: Path, cache: Path) -> str:
    """The message with which a data set is refused; nothing may be written then."""
    with pytest.raises(ValueError) as caught:
        open_dataset(json_path, cache_dir=cache)
    assert not cache.exists() or not list(cache.iterdir())
    return str(caught.value)


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
    monkeypatch.setattr(diffup.data.voc, "scan", lambda *_: pytest.fail("indexed again"))
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


def test_a_damaged_index_is_made_anew(json_path: Path, cache: Path) -> None:
    first = open_dataset(json_path, cache_dir=cache)
    (index,) = cache.iterdir()
    content = index.read_bytes()
    for damage in (b"", content[:-40], b"PAR1" + content):
        index.write_bytes(damage)
        assert open_dataset(json_path, cache_dir=cache).areas == first.areas
        assert index.read_bytes() == content


def test_an_index_that_cannot_be_kept_is_only_a_warning(json_path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match="made anew each time"):
        dataset = open_dataset(json_path, cache_dir=tmp_path / "file")
    assert len(dataset.image_ids) == 12


def test_a_data_set_can_be_sent_to_a_worker(json_path: Path, cache: Path) -> None:
    dataset = open_dataset(json_path, cache_dir=cache)
    sent: Dataset = pickle.loads(pickle.dumps(dataset))
    assert sent.fingerprint == dataset.fingerprint
    assert (sent.mask("cow_1", 3) == dataset.mask("cow_1", 3)).all()


# Bad files


def test_a_missing_mask(json_path: Path, cache: Path) -> None:
    missing = json_path.parent / "SegmentationClass" / "cat_1.png"
    missing.unlink()
    message = refusal(json_path, cache)
    assert f"{missing}: mask is missing" in message and "1 problem" in message and "remove the files" in message


def test_a_missing_image(json_path: Path, cache: Path) -> None:
    lists = json_path.parent / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "all.txt").write_text("dog_0 ghost")
    assert f"{json_path.parent / 'JPEGImages' / 'ghost.jpg'}: image is missing" in refusal(json_path, cache)


def test_a_mask_of_another_size(json_path: Path, cache: Path) -> None:
    path = json_path.parent / "SegmentationClass" / "dog_0.png"
    Image.fromarray(labels(0, 0)[:-1]).save(path)
    assert f"{path}: mask is 60x39, but its image dog_0.jpg is 60x40 (width x height)" in refusal(json_path, cache)


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.02, 0])
def test_a_truncated_jpeg(json_path: Path, cache: Path, keep: float) -> None:
    path = json_path.parent / "JPEGImages" / "cow_2.jpg"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    assert f"{path}: image can't be decoded" in refusal(json_path, cache)


def test_a_truncated_mask(json_path: Path, cache: Path) -> None:
    path = json_path.parent / "SegmentationClass" / "cow_2.png"
    path.write_bytes(path.read_bytes()[:-60])
    assert f"{path}: mask can't be decoded" in refusal(json_path, cache)


def test_unknown_labels(json_path: Path, cache: Path) -> None:
    path = json_path.parent / "SegmentationClass" / "cow_2.png"
    label = labels(3, 2)
    label[0, 0], label[0, 1] = 5, 254
    Image.fromarray(label).save(path)
    assert f"{path}: unknown labels 5, 254; dataset.json knows 0 (background), 1-4" in refusal(json_path, cache)


def test_a_colour_mask(json_path: Path, cache: Path) -> None:
    path = json_path.parent / "SegmentationClass" / "cow_2.png"
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(path)
    message = refusal(json_path, cache)
    assert str(path) in message and "mode RGB; labels need a palette or an 8-bit grey PNG" in message


def test_all_problems_are_told_at_once(json_path: Path, cache: Path) -> None:
    (json_path.parent / "SegmentationClass" / "cat_1.png").unlink()
    (json_path.parent / "JPEGImages" / "dog_1.jpg").write_bytes(b"no image")
    message = refusal(json_path, cache)
    assert "2 problems" in message and "cat_1.png" in message and "dog_1.jpg" in message


def test_many_problems_are_cut_short(tmp_path: Path, cache: Path) -> None:
    json_path = write_voc(tmp_path / "toy", per_class=6)
    shutil.rmtree(json_path.parent / "SegmentationClass")
    message = refusal(json_path, cache)
    assert "24 problems" in message and message.count("mask is missing") == SHOWN and "and 4 more" in message


def test_two_images_of_one_name(json_path: Path, cache: Path) -> None:
    write_image(json_path.parent / "JPEGImages" / "dog_0.png")
    assert "dog_0.png: same name as dog_0.jpg" in refusal(json_path, cache)


def test_a_list_that_names_an_image_twice(json_path: Path, cache: Path) -> None:
    lists = json_path.parent / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "all.txt").write_text("dog_0\ncat_0\ndog_0\n")
    assert "all.txt: names 'dog_0' 2 times" in refusal(json_path, cache)


def test_no_images(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "empty").mkdir()
    json_path = write_json(tmp_path / "empty")
    assert "no images" in refusal(json_path, cache)


def test_a_file_that_goes_after_indexing(json_path: Path, cache: Path) -> None:
    dataset = open_dataset(json_path, cache_dir=cache)
    image, mask = (json_path.parent / name for name in ("JPEGImages/dog_0.jpg", "SegmentationClass/dog_0.png"))
    image.unlink()
    mask.unlink()
    with pytest.raises(ValueError, match=r"dog_0\.jpg: image is missing; restore"):
        dataset.image("dog_0")
    with pytest.raises(ValueError, match=r"dog_0\.png: mask is missing; restore"):
        dataset.mask("dog_0", 0)


def test_unknown_images_and_classes(json_path: Path, cache: Path) -> None:
    dataset = open_dataset(json_path, cache_dir=cache)
    with pytest.raises(ValueError, match="no image 'ghost'"):
        dataset.image("ghost")
    for c in (-1, 4):
        with pytest.raises(ValueError, match="classes 0-3"):
            dataset.mask("dog_0", c)


# Bad dataset.json


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"folds": [["dog", "lion"], ["cat"]]}, "fold 0 names class 'lion', which is not in 'classes'"),
        ({"folds": [["dog"], ["bjrd"]]}, "did you mean 'bird'?"),
        ({"folds": [["dog"], ["cat", "dog"]]}, "classes in more than one fold: 'dog'"),
        ({"folds": [["dog", "dog"]]}, "'folds[0]' names 'dog' twice"),
        ({"folds": [["dog"], []]}, "'folds[1]' must be a non-empty list"),
        ({"folds": [[0, 1]]}, "'folds[0]' must be a non-empty list of class names"),
        ({"folds": None}, "'folds' must be a non-empty list"),
        ({"classes": None}, "'classes' must be a non-empty list"),
        ({"classes": ["dog", "dog", "bird", "cat", "cow"]}, "'classes' names 'dog' twice"),
        ({"layout": "yolo"}, "'layout' is 'yolo'; it must be 'voc', 'coco' or 'fss'"),
        ({"layout": None}, "'layout' must be a non-empty text"),
        ({"name": None}, "'name' must be a non-empty text"),
        ({"name": "a/b"}, "may not hold a slash"),
        ({"ignore_index": 4}, "'ignore_index' is 4; it must be a whole number above the labels 0-4, ≤ 255"),
        ({"ignore_index": True}, "'ignore_index' is True"),
        ({"ignore_index": "255"}, "'ignore_index' is '255'"),
        ({"min_area_fraction": 1}, "'min_area_fraction' is 1; it must lie in [0, 1)"),
        ({"min_area_fraction": "1%"}, "'min_area_fraction' is '1%'"),
        ({"min_area_fracton": 0.1}, "did you mean 'min_area_fraction'?"),
        ({"images": 7}, "'images' must be a non-empty text"),
    ],
)
def test_bad_fields(json_path: Path, cache: Path, changes: dict[str, Any], expected: str) -> None:
    write_json(json_path.parent, **changes)
    message = refusal(json_path, cache)
    assert expected in message and str(json_path) in message and "Correct the file" in message


def test_all_bad_fields_are_told_at_once(json_path: Path, cache: Path) -> None:
    write_json(json_path.parent, layout="yolo", folds=[["lion"]], ignore_index=0)
    message = refusal(json_path, cache)
    assert all(part in message for part in ("yolo", "lion", "ignore_index"))


def test_free_fields_are_for_notes(json_path: Path, cache: Path) -> None:
    plain = open_dataset(json_path, cache_dir=cache).fingerprint
    write_json(json_path.parent, licence="CC0")
    assert open_dataset(json_path, cache_dir=cache).fingerprint == plain


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_malformed_json(json_path: Path, cache: Path, content: bytes) -> None:
    json_path.write_bytes(content)
    assert str(json_path) in refusal(json_path, cache)


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


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"'pascal': neither a dataset\.json nor one of shapes4i, pascal5i, coco20i"):
        open_dataset("pascal")


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


# Names and lists that are no names and lists


@pytest.mark.parametrize("content", [b"dog_0\n\xff\xfe\n", None])
def test_a_list_that_is_no_text(json_path: Path, cache: Path, content: bytes | None) -> None:
    lists = json_path.parent / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    if content is None:
        (lists / "all.txt").mkdir()
    else:
        (lists / "all.txt").write_bytes(content)
    message = refusal(json_path, cache)
    assert str(lists / "all.txt") in message and "can't be read as text" in message


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a\x00b", "x" * 300, "a/../../b"])
def test_a_list_names_images_of_the_folder_only(json_path: Path, cache: Path, name: str) -> None:
    lists = json_path.parent / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "all.txt").write_text(f"dog_0\n{name}\n")
    message = refusal(json_path, cache)
    assert "is not the name of an image" in message and "all.txt" in message


def test_a_file_name_that_is_no_text(json_path: Path, cache: Path) -> None:
    """Left by an archive from a machine with another encoding."""
    write_image(json_path.parent / "JPEGImages" / "ok.png")
    os.rename(json_path.parent / "JPEGImages" / "ok.png", os.fsencode(json_path.parent) + b"/JPEGImages/gr\xfc\xdf.png")
    message = refusal(json_path, cache)
    assert "a name that is no text" in message and message.encode()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "a\x00b"}, "control characters"),
        ({"images": "\ud800"}, "control characters"),
        ({"masks": "m" * 300}, "too long"),
        ({"classes": ["dog", "bird", "cat", "a\nb"], "folds": [["dog"]]}, "control characters"),
        ({"ignore_index": [[[[[[[[]]]]]]]] * 1000}, "'ignore_index' is [[["),
        ({"folds": [[f"x{i}" for i in range(1000)]]}, "and 980 more"),
    ],
)
def test_messages_stay_short_and_printable(
    json_path: Path, cache: Path, changes: dict[str, Any], expected: str
) -> None:
    write_json(json_path.parent, **changes)
    message = refusal(json_path, cache)
    assert expected in message and str(json_path) in message and len(message.encode()) < 5000


def test_deep_nesting_is_refused(json_path: Path, cache: Path) -> None:
    json_path.write_text('{"name": ' + "[" * 100_000)
    assert "can't be read as JSON" in refusal(json_path, cache)


def test_coco_may_have_more_classes_than_a_label_image(tmp_path: Path) -> None:
    """`ignore_index` and its 255 labels are of VOC's label images only."""
    names = [f"class {i}" for i in range(1203)]
    (tmp_path / "many").mkdir()
    path = write_json(tmp_path / "many", layout="coco", classes=names, folds=[names])
    assert len(read_spec(path).classes) == 1203
    path = write_json(tmp_path / "many", layout="voc", classes=names, folds=[names])
    with pytest.raises(ValueError, match="above the labels 0-1203"):
        read_spec(path)
