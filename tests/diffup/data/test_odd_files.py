"""Files as programs and people leave them: read right, noted, or refused with the file and a remedy."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from diffup.data.dataset import open_dataset, scan_dataset
from diffup.data.images import read_photo
from diffup.data.labels import read_binary, read_drawn
from diffup.data.prepare import prepare
from diffup.errors import UserError
from diffup.support import to_rgb
from tests.helpers.folders import CLASSES, FOLDS, square, write_coco, write_image, write_json, write_voc
from tests.helpers.pngs import png


def listed(path: Path, text: str, name: str = "train.txt") -> Path:
    """The data set with a list."""
    folder = path.parent / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return path


@pytest.mark.parametrize("white", [1, 255])
def test_sixteen_bit_masks_that_use_eight_are_no_black_masks(white: int, tmp_path: Path) -> None:
    values = np.zeros((8, 9), np.int64)
    values[2:5] = white
    (tmp_path / "m.png").write_bytes(png(values, 16))
    with pytest.raises(UserError, match=f"white is 65535, but its largest value is {white}; save"):
        read_binary(tmp_path / "m.png")


def test_a_label_2_beside_background_is_the_class(tmp_path: Path) -> None:
    values = np.zeros((8, 9), np.uint8)
    values[2:5] = 2
    Image.fromarray(values).save(tmp_path / "m.png")
    assert read_drawn(tmp_path / "m.png").tolist() == (values == 2).astype(int).tolist()


def test_a_resized_black_and_white_mask_is_cut_in_the_middle(tmp_path: Path) -> None:
    values = np.zeros((30, 40), np.uint8)
    values[10:20, 10:30] = 255
    Image.fromarray(values).resize((80, 60), Image.Resampling.BILINEAR).save(tmp_path / "m.png")
    assert read_drawn(tmp_path / "m.png").sum() == 20 * 40


def test_interpolated_labels_are_noted(tmp_path: Path) -> None:
    path = write_voc(tmp_path / "toy")
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 10:40] = 4
    blurred = Image.fromarray(mask).resize((30, 20)).resize((60, 40), Image.Resampling.BILINEAR)
    blurred.save(path.parent / "SegmentationClass" / "dog_0.png")
    assert not any("nearest neighbour" in note for note in scan_dataset(write_voc(tmp_path / "sound")).notes)
    assert any("dog_0.png" in note and "nearest neighbour" in note for note in scan_dataset(path).notes)


def tiff(path: Path, *reduced: int) -> Path:
    """A TIFF with a page for each, those of 1 marked as a preview."""
    with TiffImagePlugin.AppendingTiffWriter(path, True) as file:
        for kind in reduced:
            tags = TiffImagePlugin.ImageFileDirectory_v2()
            tags[254] = kind
            Image.new("RGB", (3, 2) if kind else (9, 8), "red").save(file, format="TIFF", tiffinfo=tags)
            file.newFrame()
    return path


def test_a_preview_in_a_tiff_is_no_second_picture(tmp_path: Path) -> None:
    assert read_photo(tiff(tmp_path / "a.tif", 0, 1)).pixels.shape == (8, 9, 3)
    for pages in ((0, 0), (1,), (1, 0)):
        with pytest.raises(UserError, match="save the one that is meant by itself"):
            read_photo(tiff(tmp_path / f"{len(pages)}{pages[0]}.tif", *pages))


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "is empty"), (b"version https://git-lfs", "git lfs pull"), (b"<html>", "known format")],
)
def test_files_that_are_no_pictures_are_told(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UserError, match=says):
        read_photo(tmp_path / "a.jpg")


def test_pictures_that_pillow_can_not_finish_are_user_errors(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-400])
    for image in (Image.open(tmp_path / "b.jpg"), Image.new("La", (3, 3)), "~nobody-of-that-name/a.jpg"):
        with pytest.raises(UserError, match="image"):
            to_rgb(image, "image")


@pytest.mark.parametrize("line", ["JPEGImages/{}.jpg", "/JPEGImages/{}", "\ufeff{}", "JPEGImages\\{}.jpg"])
def test_other_ways_to_name_an_image_in_a_list(line: str, tmp_path: Path, cache: Path) -> None:
    path = listed(write_voc(tmp_path / "toy"), "".join(f"{line.format(name)}_0\n" for name in CLASSES))
    path = listed(path, "".join(line.format(f"{name}_0") + "\n" for name in CLASSES))
    (path.parent / "ImageSets" / "Segmentation" / "._train.txt").write_bytes(b"\0\xff")
    assert len(open_dataset(path, cache_dir=cache).image_ids) == len(CLASSES)


@pytest.mark.parametrize("line", ["dog_0 -1", "/JPEGImages/dog_0.jpg /SegmentationClass/dog_0.png", "dog_0,dog_1"])
def test_lists_of_another_form_are_named(line: str, tmp_path: Path) -> None:
    path = listed(write_voc(tmp_path / "toy"), line)
    with pytest.raises(UserError, match=r"train\.txt: .* is not the name of an image in .*write a name per line"):
        scan_dataset(path)


def test_masks_in_the_folder_of_the_images(tmp_path: Path, cache: Path) -> None:
    path = write_voc(tmp_path / "toy", masks="JPEGImages")
    for mask in (path.parent / "SegmentationClass").iterdir():
        mask.rename(path.parent / "JPEGImages" / mask.name)
    assert len(open_dataset(path, cache_dir=cache).image_ids) == 12


def test_masks_of_another_name_are_shown_and_a_folder_is_listed_once_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_voc(tmp_path / "toy")
    for mask in (path.parent / "SegmentationClass").iterdir():
        mask.rename(mask.with_name(f"{mask.stem}_mask.png"))
    calls: list[Path] = []
    iterdir = Path.iterdir

    def counted(self: Path) -> Iterator[Path]:
        calls.append(self)
        return iterdir(self)

    monkeypatch.setattr(Path, "iterdir", counted)
    problems = scan_dataset(path).problems
    assert len(problems) == 12 and "dog_0.png: mask is missing; there is dog_0_mask.png" in "\n".join(problems)
    assert len(calls) < 10  # threads that ask at the same time may each list it once


def test_class_folders_with_two_masks_or_names_that_are_no_text(tmp_path: Path) -> None:
    for name in CLASSES:
        write_image(tmp_path / name / "1.jpg")
        Image.new("L", (60, 40), 255).save(tmp_path / name / "1.png")
    path = write_json(tmp_path, layout="fss")
    Image.new("L", (60, 40)).save(tmp_path / "dog" / "1.PNG")
    os.rename(tmp_path / "cat" / "1.jpg", os.fsencode(tmp_path / "cat") + b"/\xff.jpg")
    problems = "\n".join(scan_dataset(path).problems)
    assert "same name as 1." in problems and "a name that is not valid text" in problems


@pytest.mark.parametrize("name", ["bg", "Unlabelled", " background"])
def test_other_names_of_background_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="label 0 is background"):
        scan_dataset(write_json(tmp_path, classes=[name, *CLASSES]))


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"iscrowd": 1, "segmentation": [square(5, 5, 20)]}, "set 'iscrowd' to 0"),
        ({"segmentation": [square(30, 10, 40)]}, "coordinates are those of these images"),
    ],
)
def test_coco_annotations_that_may_not_be_meant_are_noted(entry: dict[str, object], says: str, tmp_path: Path) -> None:
    (note,) = scan_dataset(write_coco(tmp_path, [{"category": "cat", **entry}])).notes
    assert says in note


@pytest.mark.parametrize(
    ("segmentation", "says"),
    [
        ([[-0.01, 0.1, 1.02, 0.1, 1.02, 0.9]], "fractions of the image"),
        (None, "a box alone is not a mask"),
        ({"size": [40, 60]}, "have no 'counts'"),
        ([1, 1, 5, 5, 9, 9], "list of polygons"),
    ],
)
def test_coco_segmentations_of_another_form(segmentation: object, says: str, tmp_path: Path) -> None:
    seen = scan_dataset(write_coco(tmp_path, [{"category": "cat", "segmentation": segmentation}]))
    assert len(seen.problems) == 1 and says in seen.problems[0]


@pytest.mark.parametrize(
    ("name", "says"),
    [("images/0.jpg", "set 'images' of dataset.json to '.'"), ("%30.jpg", "correct the name"), ("x" * 300, "can't be")],
)
def test_coco_images_that_are_elsewhere(name: str, says: str, tmp_path: Path) -> None:
    path = write_coco(tmp_path, [], images=1)
    document = json.loads((tmp_path / "instances.json").read_text())
    document["images"][0] |= {"file_name": name, "height": "40", "width": "60"}
    (tmp_path / "instances.json").write_text(json.dumps(document))
    assert says in scan_dataset(path).problems[0]


def test_prepared_masks_in_capitals_and_hidden_files(tmp_path: Path) -> None:
    root = tmp_path / "VOC2012"
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for kind in ("SegmentationClass", "SegmentationClassAug"):
        (root / kind).mkdir()
    for i in range(4):
        write_image(root / "JPEGImages" / f"im{i}.jpg")
        mask = np.zeros((40, 60), np.uint8)
        mask[5:30, 5:40] = 1 + i
        Image.fromarray(mask).save(root / "SegmentationClassAug" / f"im{i}.PNG", format="PNG")
        mask[0] = 255
        if i < 2:
            Image.fromarray(mask).save(root / "SegmentationClass" / f"im{i}.PNG", format="PNG")
    (root / "SegmentationClassAug" / "._im3.PNG").write_bytes(b"\0")
    (lists / "train.txt").write_text("im0\n")
    (lists / "val.txt").write_text("im1\n")
    dataset, report = prepare("pascal5i", root, tmp_path / "out", cache_dir=tmp_path / "cache", progress=False)
    assert dataset.image_ids == ("im0", "im1", "im2", "im3")
    assert (dataset.mask("im1", 1) == 255).any() and not any("void border" in line for line in report["warnings"])


@pytest.mark.parametrize(("text", "says"), [("dog\ndog\n", "dog: it is named 2 times"), ("", "no class is named")])
def test_bad_lists_of_test_classes_are_named(text: str, says: str, tmp_path: Path) -> None:
    for name, suffix in zip(CLASSES, ("jpg", "JPG", "jpeg", "jpg"), strict=True):
        write_image(tmp_path / "fss" / name / f"1.{suffix}")
        Image.new("L", (60, 40), 255).save(tmp_path / "fss" / name / "1.png")
    (tmp_path / "test.txt").write_text(text)
    with pytest.raises(UserError, match=rf"test\.txt: 1 problem.*\n.*{says}"):
        prepare("fss1000", tmp_path / "fss", tmp_path / "out", lists=tmp_path, progress=False)
    (tmp_path / "test.txt").write_text("".join(f"{name}\n" for fold in FOLDS for name in fold))
    dataset, _ = prepare(
        "fss1000", tmp_path / "fss", tmp_path / "o", lists=tmp_path, cache_dir=tmp_path, progress=False
    )
    assert len(dataset.image_ids) == len(CLASSES)
