"""Damaged data sets in VOC layout and damaged ``dataset.json``: what is said of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffup.data.dataset import open_dataset
from diffup.data.layouts.scan import SHOWN
from diffup.data.spec import read_spec
from tests.helpers.folders import SIZE, labels, write_image, write_json, write_voc


def refusal(json_path: Path, cache: Path) -> str:
    """The message with which a data set is refused; nothing may be written then."""
    with pytest.raises(ValueError) as caught:
        open_dataset(json_path, cache_dir=cache)
    assert not cache.exists() or not list(cache.iterdir())
    return str(caught.value)


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
    write_json(json_path.parent, classes=["dog", "cat", "bird"], folds=[["dog"], ["cat"]])
    assert "missing in 'classes', add them in their places" in refusal(json_path, cache)


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
    assert "24 problems" in message and message.count("mask is missing") == SHOWN and "and 14 more" in message


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
        ({"folds": [["dog"], ["bjrd"]]}, "(did you mean 'bird'?). Correct"),
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
        ({"min_area_fraction": 1}, "'min_area_fraction' is 1; it must be a number in [0, 1)"),
        ({"min_area_fraction": "1%"}, "'min_area_fraction' is '1%'"),
        ({"min_area_fracton": 0.1}, "(did you mean 'min_area_fraction'?). Correct"),
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
    assert "a name that is not valid text" in message and message.encode()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "a\x00b"}, "control characters"),
        ({"images": "\ud800"}, "control characters"),
        ({"masks": "m" * 300}, "too long"),
        ({"classes": ["dog", "bird", "cat", "a\nb"], "folds": [["dog"]]}, "control characters"),
        ({"ignore_index": [[[[[[[[]]]]]]]] * 1000}, "'ignore_index' is [[["),
        ({"folds": [[f"x{i}" for i in range(1000)]]}, "and 990 more"),
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
