"""CVAT, COCO and folders of masks: what they say is what the data set has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as masks

from diffup.data.dataset import open_dataset
from diffup.data.importers.write import import_dataset
from diffup.errors import UserError
from tests.helpers.annotated import HEIGHT, LABELS, WIDTH, write_cvat, write_masks, write_photo


def area(dataset: object, image: str, label: str = "a") -> np.ndarray:
    return dataset.mask(image, dataset.classes.index(label)) == 1  # type: ignore[attr-defined]


def box(label: str, x0: float, y0: float, x1: float, y1: float, **more: object) -> tuple[str, dict[str, object]]:
    return "box", {"label": label, "xtl": x0, "ytl": y0, "xbr": x1, "ybr": y1, **more}


def test_cvats_shapes_cover_what_was_drawn(tmp_path: Path) -> None:
    pattern = np.zeros((6, 8), np.uint8)
    pattern[1:3, 2:7] = 1
    runs = [10, 5, 3, 5, 25]  # by rows, background first
    write_cvat(
        tmp_path / "in",
        ("box.png", [box("a", 10, 5, 30, 25)]),
        ("turned.png", [box("a", 20, 10, 40, 14, rotation=90)]),
        ("polygon.png", [("polygon", {"label": "a", "points": "0,0;20,0;20,20;0,20"})]),
        ("ellipse.png", [("ellipse", {"label": "a", "cx": 30, "cy": 20, "rx": 20, "ry": 10})]),
        ("mask.png", [("mask", {"label": "a", "left": 50, "top": 30, "width": 8, "height": 6,
                                "rle": ", ".join(map(str, runs))})]),
        ("lines.png", [box("a", 0, 0, 30, 30), ("polyline", {"label": "a", "points": "0,0;9,9"})]),
    )  # fmt: skip
    imported = import_dataset("cvat", tmp_path / "in", tmp_path / "out")
    dataset = imported.dataset
    assert area(dataset, "box")[5:25, 10:30].all() and area(dataset, "box").sum() == 400
    assert area(dataset, "turned")[3:21, 28:32].all() and area(dataset, "turned").sum() == pytest.approx(80, abs=12)
    assert area(dataset, "polygon")[:20, :20].all() and area(dataset, "polygon").sum() == 400
    assert area(dataset, "ellipse").sum() == pytest.approx(np.pi * 200, rel=0.03)
    assert (area(dataset, "mask")[30:36, 50:58] == pattern).all() and area(dataset, "mask").sum() == pattern.sum()
    assert any("mark no area" in note for note in imported.notes)


def test_cvats_order_decides_what_lies_on_top(tmp_path: Path) -> None:
    shapes = [box("a", 0, 0, 40, 30, z_order=2), box("b", 10, 10, 20, 20, z_order=1), box("b", 41, 0, 59, 30)]
    write_cvat(tmp_path / "in", ("one.png", shapes))
    dataset = import_dataset("cvat", tmp_path / "in", tmp_path / "out").dataset
    assert area(dataset, "one").sum() == 40 * 30 and area(dataset, "one", "b").sum() == 18 * 30


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("<annotations><track id='0'/></annotations>", "tracks of a video"),
        ("<annotations/>", "lists no images"),
        ("<annotations><image", "can't be read as XML"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotations><image name='&b;'/></annotations>", "defines entities"),
        ("<annotations><image name='../x.png' width='1' height='1'/></annotations>", "is outside"),
        ("<annotations><image name='x.png' width='one' height='1'/></annotations>", "not numbers"),
    ],
)
def test_an_xml_that_can_not_be_used_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "in").mkdir()
    write_photo(tmp_path / "x.png")
    (tmp_path / "in" / "annotations.xml").write_text(content)
    with pytest.raises(UserError, match=said):
        import_dataset("cvat", tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_cocos_masks_are_those_of_its_own_library(tmp_path: Path, cache: Path) -> None:
    blob = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    blob[8:18, 30:50] = 1
    compressed = {"size": [HEIGHT, WIDTH], "counts": masks.encode(blob)["counts"].decode()}
    triangle = [[2.0, 2.0, 28.0, 2.0, 2.0, 28.0]]
    crowd = {"size": [HEIGHT, WIDTH], "counts": [0, 5 * HEIGHT, 55 * HEIGHT]}
    document = {
        "images": [{"id": 7, "file_name": "one.png", "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 3, "name": "owl"}, {"id": 1, "name": "wren"}, {"id": 9, "name": "never"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "iscrowd": 0, "segmentation": triangle},
            {"id": 2, "image_id": 7, "category_id": 1, "iscrowd": 0, "segmentation": compressed},
            {"id": 3, "image_id": 7, "category_id": 3, "iscrowd": 1, "segmentation": crowd},
        ],
    }
    write_photo(tmp_path / "in" / "images" / "one.png")
    (tmp_path / "in" / "annotations").mkdir()
    (tmp_path / "in" / "annotations" / "instances.json").write_text(json.dumps(document))
    imported = import_dataset("coco", tmp_path / "in", tmp_path / "out")
    dataset = open_dataset(tmp_path / "out", cache)
    assert dataset.classes == ("wren", "owl")  # by their ids
    expected = masks.decode(masks.merge(masks.frPyObjects(triangle, HEIGHT, WIDTH))) == 1
    assert (area(dataset, "one", "owl") == expected).all() and (area(dataset, "one", "wren") == (blob == 1)).all()
    void = dataset.mask("one", 1) == 255
    assert (void == (np.arange(WIDTH) < 5) & ~expected & (blob == 0)).all()
    assert any("categories without annotation: never" in note for note in imported.notes)


def write_instances(folder: Path, *names: str, **image: object) -> Path:
    """An instances JSON with a square in an image of each name, and no images."""
    corners = [[10, 5, 50, 5, 50, 35, 10, 35]]
    size = {"height": HEIGHT, "width": WIDTH}
    document = {
        "images": [{"id": i, "file_name": name, **size, **image} for i, name in enumerate(names)],
        "categories": [{"id": 3, "name": "owl"}],
        "annotations": [{"id": i, "image_id": i, "category_id": 3, "segmentation": corners} for i in range(len(names))],
    }
    folder.mkdir()
    (folder / "instances.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize("size", [80, "80", 80.0, -40, 39.5])
def test_another_size_of_coco_is_refused_however_it_is_stated(tmp_path: Path, size: object) -> None:
    folder = write_instances(tmp_path / "in", "one.png", height=size)
    write_photo(folder / "one.png")
    with pytest.raises(UserError, match=r"image is 60x40, but was annotated at 60x80|states the size 60 x "):
        import_dataset("coco", folder, tmp_path / "out")


@pytest.mark.parametrize("name", ["/Users/me/{}.png", "../images/{}.png", r"C:\Users\me\{}.png", "{}.png"])
def test_coco_names_of_another_machine_stand_for_their_last_part(tmp_path: Path, name: str) -> None:
    folder = write_instances(tmp_path / "in", name.format(1), name.format(2), height=None)
    for i in (1, 2):
        write_photo(folder / "images" / f"{i}.png", size=(30, 45))
    imported = import_dataset("coco", folder, tmp_path / "out")
    assert imported.dataset.image_ids == ("1", "2")
    assert any("reach beyond" in note and "annotation 1 of" in note for note in imported.notes)


def test_a_coco_image_outside_of_the_source_is_not_read(tmp_path: Path) -> None:
    write_photo(tmp_path / "secret.png")
    folder = write_instances(tmp_path / "in", "../secret.png")
    with pytest.raises(UserError, match=r"image '\.\./secret\.png' names .* which is outside"):
        import_dataset("coco", folder, tmp_path / "out")


@pytest.mark.parametrize("kind", ["coco", "cvat"])
def test_two_names_may_not_lead_to_one_image(tmp_path: Path, kind: str) -> None:
    if kind == "coco":
        write_instances(tmp_path / "in", "a/0.png", "b/0.png")
    else:
        write_cvat(tmp_path / "in", ("a/0.png", [box("a", 0, 0, 9, 9)]), ("b/0.png", [box("a", 0, 0, 9, 9)]))
        shutil.rmtree(tmp_path / "in" / "images")
    write_photo(tmp_path / "in" / "images" / "0.png")
    with pytest.raises(UserError, match=r"image 'b/0\.png' leads to .*images/0\.png, as 'a/0\.png' does"):
        import_dataset(kind, tmp_path / "in", tmp_path / "out")


def test_every_image_gets_a_name_of_its_own(tmp_path: Path) -> None:
    names = ["x_a_2.png", "x/a.png", "x_a.png", "y/a.png", "X_A_3.png"]
    write_cvat(tmp_path / "in", *((name, [box("a", i, 0, 30, 30)]) for i, name in enumerate(names)))
    imported = import_dataset("cvat", tmp_path / "in", tmp_path / "out")
    assert {int(areas[0]) for areas in imported.dataset.areas.values()} == {30 * (30 - i) for i in range(5)}


@pytest.mark.parametrize("content", [b'{"images": [\xff\xfe\n{}]}', b'{"images": [', b"\x89PNG\r\n\x1a\n"])
def test_a_damaged_instances_json_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    write_instances(tmp_path / "in").joinpath("instances.json").write_bytes(content)
    with pytest.raises(
        UserError, match=r"^[^\n\\]*instances\.json can't be read as JSON \([a-z :EOF]+\); correct it.*$"
    ):
        import_dataset("coco", tmp_path / "in", tmp_path / "out")


def test_what_is_no_mask_in_a_class_folder_is_named(tmp_path: Path) -> None:
    folder = write_masks(tmp_path / "in")
    (folder / "owl" / "deep").mkdir()
    (folder / "owl" / "notes.txt").touch()
    write_photo(folder / "wren" / "robin_0.jpg")
    notes = import_dataset("masks", folder, tmp_path / "out").notes
    assert "left out, files and folders that are no PNG masks (owl/deep, wren/robin_0.jpg): 2" in notes


def test_folders_of_masks_are_a_class_each(tmp_path: Path, cache: Path) -> None:
    folder = write_masks(tmp_path / "in")
    Image.fromarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8)).save(folder / "wren" / "owl_0_mask.png")  # 0 and 1 are fine
    write_photo(folder / "images" / "bare.png")
    imported = import_dataset("masks", folder, tmp_path / "out")
    dataset = open_dataset(tmp_path / "out", cache)
    assert dataset.classes == tuple(sorted(LABELS)) and "bare" not in dataset.image_ids
    assert area(dataset, "owl_0", "wren").sum() == HEIGHT  # 40 pixels, smaller than the owl and so on top of it
    assert area(dataset, "owl_0", "owl").sum() == 600 - 20
    assert any(note == "left out, images without any mask: 1" for note in imported.notes)


def test_masks_beside_their_images_are_found(tmp_path: Path) -> None:
    for label in ("a", "b"):
        for i in range(2):
            write_photo(tmp_path / "in" / label / f"{i}.jpg", seed=i)
            Image.new("L", (WIDTH, HEIGHT), 255).save(tmp_path / "in" / label / f"{i}.png")
    dataset = import_dataset("masks", tmp_path / "in", tmp_path / "out").dataset
    assert set(dataset.image_ids) == {"a_0", "a_1", "b_0", "b_1"} and area(dataset, "a_0").all()


def test_masks_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = write_masks(tmp_path / "in")
    Image.new("L", (5, 5), 255).save(folder / "wren" / "owl_0.png")
    Image.new("L", (5, 5), 255).save(folder / "wren" / "nobody.png")
    (folder / "owl" / "wren_1.png").write_bytes(b"no picture")
    with pytest.raises(UserError) as refused:
        import_dataset("masks", folder, tmp_path / "out")
    said = str(refused.value)
    assert "owl_0.png of owl_0.png in wren/ is 5x5, but its image is 60x40" in said or "annotated at 5x5" in said
    assert "nobody.png: mask without an image" in said and "wren_1.png" in said


@pytest.mark.parametrize("kind", ["labelme", "cvat", "coco", "masks"])
def test_an_empty_folder_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match=str(tmp_path / "in")):
        import_dataset(kind, tmp_path / "in", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_places_that_would_mix_files_are_refused(tmp_path: Path) -> None:
    folder = write_masks(tmp_path / "in")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    for out, said in (
        (folder / "out", "is inside of"), (tmp_path, "not an empty folder"), (tmp_path / "full", "not an empty folder"),
        (tmp_path / "link", "not an empty folder"), (folder / "images" / "1.png" / "x", "is inside of"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            import_dataset("masks", folder, out)
    with pytest.raises(UserError, match="there are 4 classes"):
        import_dataset("masks", folder, tmp_path / "out", folds=5)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))
    assert len(import_dataset("masks", folder, tmp_path / "empty", folds=4).dataset.folds) == 4
