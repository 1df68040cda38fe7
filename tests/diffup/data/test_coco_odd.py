"""COCO files that are odd, as annotation programs write them: read right, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from diffup.data.dataset import open_dataset, scan_dataset
from diffup.errors import UserError
from tests.helpers.folders import SIZE, square, write_coco, write_image

H, W = SIZE
BOX = {"category": "cat", "segmentation": [square(5, 5, 20)]}


def edited(path: Path, **image: Any) -> Path:
    """The data set with fields of its image entries changed; a field of ... is left out."""
    document = json.loads((path.parent / "instances.json").read_text())
    for entry in document["images"]:
        entry |= image
        for name in [name for name, value in entry.items() if value is ...]:
            del entry[name]
    (path.parent / "instances.json").write_text(json.dumps(document))
    return path


# Sizes


@pytest.mark.parametrize("size", [None, 0, 0.0, ...])
@pytest.mark.parametrize("fields", [("height", "width"), ("height",), ("width",)])
def test_null_and_zero_sizes_are_no_statement(size: Any, fields: tuple[str, ...], tmp_path: Path, cache: Path) -> None:
    path = edited(write_coco(tmp_path / "toy", [BOX]), **dict.fromkeys(fields, size))
    assert open_dataset(path, cache_dir=cache).areas == {"0": {2: 400}, "1": {}}


@pytest.mark.parametrize("size", [-40, 41, "", "40 px", True])
def test_other_wrong_sizes_are_refused(size: Any, tmp_path: Path, cache: Path) -> None:
    path = edited(write_coco(tmp_path / "toy", [BOX]), height=size)
    with pytest.raises(UserError, match=r"0\.jpg: image is 60x40, but instances\.json says 60x"):
        open_dataset(path, cache_dir=cache)


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_a_quarter_turn_explains_exchanged_sizes(orientation: int, tmp_path: Path, cache: Path) -> None:
    path = edited(write_coco(tmp_path / "toy", [BOX]), height=W, width=H)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path.parent / "images" / "0.jpg").save(path.parent / "images" / "0.jpg", exif=exif)
    why = f"EXIF orientation {orientation} turns it" if orientation != 1 else "height and width are exchanged"
    with pytest.raises(UserError, match=rf"0\.jpg: image is 60x40, but .* says 40x60 \(width x height\): .*{why}"):
        open_dataset(path, cache_dir=cache)


def test_turned_images_are_listed(tmp_path: Path, cache: Path) -> None:
    path = write_coco(tmp_path / "toy", [BOX])
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(path.parent / "images" / "1.jpg").save(path.parent / "images" / "1.jpg", exif=exif)
    with pytest.warns(UserWarning, match=r"1 of the images have an EXIF orientation .* 1\.jpg \(3\)"):
        open_dataset(path, cache_dir=cache)


# Coordinates


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    points=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=6).filter(
        lambda points: any(0 < value < 1 for point in points for value in point)
    ),
    stated=st.booleans(),
)
def test_fractions_of_the_image_are_refused_by_name(
    points: list[tuple[float, float]], stated: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fractions")
    polygon = {"category": "dog", "segmentation": [[value for point in points for value in point]]}
    path = write_coco(folder / "toy", [BOX, polygon])
    if not stated:
        edited(path, height=None, width=None)
    with pytest.raises(UserError, match=r"0\.jpg: annotation 1 .*fractions of the image; multiply x by the width"):
        open_dataset(path, cache_dir=folder / "cache")


def test_a_pixel_at_the_corner_is_none(tmp_path: Path, cache: Path) -> None:
    path = write_coco(tmp_path / "toy", [{"category": "cat", "segmentation": [square(0, 0, 1)]}])
    assert open_dataset(path, cache_dir=cache).areas["0"] == {2: 1}


def test_annotations_that_cover_no_pixel_are_told(tmp_path: Path, cache: Path) -> None:
    thin = {"category": "cat", "segmentation": [[5, 5, 30, 5, 30, 5]]}
    path = write_coco(tmp_path / "toy", [BOX, thin, {**thin, "image_id": 11}])
    with pytest.warns(UserWarning, match=r"by 2 of the annotations: annotation 1 of 0\.jpg, annotation 2 of 1\.jpg"):
        assert open_dataset(path, cache_dir=cache).areas == {"0": {2: 400}, "1": {}}
    assert len(scan_dataset(path).notes) == 1


# Symbolic links


@pytest.mark.parametrize("deep", [False, True])
def test_images_behind_a_link_are_watched(deep: bool, tmp_path: Path, cache: Path) -> None:
    path = write_coco(tmp_path / "toy", [BOX], images=1)
    images, disk = path.parent / "images", tmp_path / "disk"
    home = disk / "deep" if deep else disk
    home.mkdir(parents=True)
    (images / "cam").symlink_to(disk, target_is_directory=True)
    (images / "0.jpg").rename(home / "0.jpg")
    name = "cam/deep/0" if deep else "cam/0"
    edited(path, file_name=f"{name}.jpg", height=None, width=None)
    assert open_dataset(path, cache_dir=cache).image_ids == (name,)
    write_image(home / "0.jpg", (50, 70))
    assert open_dataset(path, cache_dir=cache).sizes == {name: (50, 70)}
    (home / "0.jpg").unlink()
    with pytest.raises(UserError, match=r"0\.jpg: image is missing"):
        open_dataset(path, cache_dir=cache)


def test_a_link_to_a_folder_above_ends(tmp_path: Path, cache: Path) -> None:
    path = write_coco(tmp_path / "toy", [BOX])
    (path.parent / "images" / "up").symlink_to(path.parent, target_is_directory=True)
    (path.parent / "images" / "self").symlink_to(path.parent / "images", target_is_directory=True)
    assert len(open_dataset(path, cache_dir=cache).image_ids) == 2


# Identities


def test_one_name_in_two_folders_is_two_images(tmp_path: Path, cache: Path) -> None:
    path = write_coco(tmp_path / "toy", [BOX, {**BOX, "image_id": 11}])
    images = path.parent / "images"
    for i, folder in enumerate("ab"):
        (images / folder).mkdir()
        (images / f"{i}.jpg").rename(images / folder / "1.jpg")
    document = json.loads((path.parent / "instances.json").read_text())
    for entry, folder in zip(document["images"], "ab", strict=True):
        entry["file_name"] = f"{folder}/1.jpg"
    (path.parent / "instances.json").write_text(json.dumps(document))
    found = open_dataset(path, cache_dir=cache)
    assert found.image_ids == ("a/1", "b/1") and not np.array_equal(found.image("a/1"), found.image("b/1"))


@pytest.mark.parametrize("twin", ["./0.jpg", "0.jpeg", "0.webp"])
def test_two_files_of_one_id_are_refused(twin: str, tmp_path: Path, cache: Path) -> None:
    path = write_coco(tmp_path / "toy", [BOX])
    document = json.loads((path.parent / "instances.json").read_text())
    document["images"][1]["file_name"] = twin
    (path.parent / "instances.json").write_text(json.dumps(document))
    if not (path.parent / "images" / twin).exists():
        write_image(path.parent / "images" / twin)
    with pytest.raises(UserError, match="2 images have the id '0'"):
        open_dataset(path, cache_dir=cache)
