"""labelme: shapes where they were drawn, upright images, odd names, and damage that is named before all is kept."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffup.data.dataset import open_dataset
from diffup.data.importers.write import SHEET, import_dataset, words
from diffup.errors import UserError
from tests.helpers.annotated import HEIGHT, LABELS, WIDTH, labelme, mask_shape, rectangle, write_labelme, write_photo


def write(path: Path, *shapes: Mapping[str, Any], **photo: object) -> None:
    """An image with its JSON."""
    write_photo(path.with_suffix(".png"), **photo)  # type: ignore[arg-type]
    path.with_suffix(".json").write_text(json.dumps(labelme(path.with_suffix(".png").name, *shapes)))


def test_a_data_set_is_written_whole_and_opens(tmp_path: Path, cache: Path) -> None:
    imported = import_dataset("labelme", write_labelme(tmp_path / "in"), tmp_path / "out")
    dataset = open_dataset(tmp_path / "out", cache)
    assert dataset.classes == tuple(sorted(LABELS)) and len(dataset.image_ids) == 8
    assert imported.images == dict.fromkeys(sorted(LABELS), (2, 2))
    assert dataset.fingerprint == imported.dataset.fingerprint
    mask = dataset.mask("owl_0", dataset.classes.index("owl"))
    assert mask[5:25, 5:35].all() and mask.sum() == 20 * 30
    assert len(dataset.folds) == 2 and sorted(c for fold in dataset.folds for c in fold) == [0, 1, 2, 3]
    with Image.open(tmp_path / "out" / SHEET) as sheet:
        assert sheet.width > sheet.height > 100
    said = words(imported)
    assert (
        "8 images" in said
        and re.search(r"^wren +2 +2 +[01]$", said, re.MULTILINE)
        and "Episodes of up to 1 shots" in said
    )


def test_shapes_cover_what_was_drawn(tmp_path: Path) -> None:
    part = np.eye(6, dtype=np.bool_)
    shapes = {
        "rectangle": rectangle("a", 40, 30, 10, 20),  # corners in any order
        "circle": {"label": "a", "shape_type": "circle", "points": [[30, 20], [30, 30]]},
        "polygon": {"label": "a", "points": [[0, 0], [20, 0], [0, 20]]},
        "mask": mask_shape("a", part, 57, 37),  # three of its columns and rows are in the image
    }
    for name, shape in shapes.items():
        write(tmp_path / "in" / name, shape)
    dataset = import_dataset("labelme", tmp_path / "in", tmp_path / "out").dataset
    area = {name: int((dataset.mask(name, 0) == 1).sum()) for name in shapes}
    assert area["rectangle"] == 10 * 30 and dataset.mask("rectangle", 0)[20:30, 10:40].all()
    assert area["circle"] == pytest.approx(np.pi * 100, rel=0.03)
    assert area["polygon"] == pytest.approx(200, rel=0.1)
    assert area["mask"] == 3 and dataset.mask("mask", 0)[37, 57] == 1


def test_the_smaller_of_two_objects_lies_on_top_and_it_is_said(tmp_path: Path) -> None:
    write(tmp_path / "in" / "one", rectangle("small", 10, 10, 20, 20), rectangle("large", 0, 0, 50, 30))
    imported = import_dataset("labelme", tmp_path / "in", tmp_path / "out")
    large, small = imported.dataset.classes.index("large"), imported.dataset.classes.index("small")
    assert (imported.dataset.mask("one", small) == 1).sum() == 100
    assert (imported.dataset.mask("one", large) == 1).sum() == 50 * 30 - 100
    assert any(note.startswith("images with overlapping") and note.endswith(": 1") for note in imported.notes)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_an_image_is_saved_as_it_was_annotated(tmp_path: Path, orientation: int) -> None:
    """labelme shows images upright; the size in the JSON tells of a tool that doesn't."""
    stored, turned = (30, 50), (50, 30) if orientation > 4 else (30, 50)
    folder = tmp_path / "in"
    for name, size in (("upright", turned), ("stored", stored)):
        write_photo(folder / f"{name}.jpg", size=stored, orientation=orientation)
        document = labelme(f"{name}.jpg", rectangle("a", 0, 0, 10, 20), size=size)
        (folder / f"{name}.json").write_text(json.dumps(document))
    dataset = import_dataset("labelme", folder, tmp_path / "out").dataset
    assert dataset.sizes["upright"] == turned
    assert dataset.mask("upright", 0)[:20, :10].all()
    if orientation > 4:
        assert dataset.sizes["stored"] == stored
    with Image.open(folder / "upright.jpg") as image:
        shown = np.asarray(image.transpose({3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270,
                                            8: Image.Transpose.ROTATE_90}[orientation]))  # fmt: skip
    assert np.abs(dataset.image("upright").astype(int) - shown).mean() < 12  # saved once more as JPEG


def test_names_are_kept_apart_and_readable(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for place in ("a/1", "b/1", "vögel/寒い 冬", ".hidden", "x" * 120):
        write(folder / place, rectangle('a "b"/c\t,é', 0, 0, 20, 20))
    dataset = import_dataset("labelme", folder, tmp_path / "out").dataset
    assert dataset.classes == ('a "b"/c ,é',)
    assert {"a_1", "b_1", "寒い 冬", "hidden", "x" * 120} == set(dataset.image_ids)
    assert json.loads((tmp_path / "out" / "dataset.json").read_text(encoding="utf-8"))["classes"] == ['a "b"/c ,é']


def test_labels_of_tools_are_background_and_void(tmp_path: Path) -> None:
    write(
        tmp_path / "in" / "one",
        rectangle("owl", 0, 0, 50, 30), rectangle("__ignore__", 0, 0, 10, 10), rectangle("_background_", 20, 0, 30, 10),
    )  # fmt: skip
    imported = import_dataset("labelme", tmp_path / "in", tmp_path / "out")
    mask = imported.dataset.mask("one", 0)
    assert (mask[:10, :10] == 255).all() and not mask[:10, 20:30].any() and mask[20, 20] == 1
    assert imported.dataset.classes == ("owl",) and sum("taken for" in note for note in imported.notes) == 2


def test_more_than_254_classes_are_written_as_coco(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "in"
    for i in range(26):
        shapes = [rectangle(f"class {10 * i + k}", 6 * k, 0, 6 * k + 5, 30) for k in range(10)]
        write(folder / f"{i}", *shapes)
    imported = import_dataset("labelme", folder, tmp_path / "out")
    dataset = open_dataset(tmp_path / "out", cache)
    assert dataset.spec.layout == "coco" and len(dataset.classes) == 260
    last = dataset.classes.index("class 259")
    assert (dataset.mask("25", last) == 1).sum() == 5 * 30 and dataset.mask("25", last)[:30, 54:59].all()
    assert any("more than a label image holds" in note for note in imported.notes)


def test_an_image_that_its_json_does_not_lead_to_is_taken_and_counted(tmp_path: Path) -> None:
    write(tmp_path / "in" / "one", rectangle("a", 0, 0, 20, 20))
    document = json.loads((tmp_path / "in" / "one.json").read_text())
    (tmp_path / "in" / "one.json").write_text(json.dumps({**document, "imagePath": "gone.png"}))
    notes = import_dataset("labelme", tmp_path / "in", tmp_path / "out").notes
    assert "images that 'imagePath' does not lead to, taken by the name of their JSON: 1" in notes


def test_an_image_in_the_json_serves_where_its_file_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write(folder / "one", rectangle("a", 0, 0, 20, 20))
    pixels = np.asarray(Image.open(folder / "one.png"))
    document = json.loads((folder / "one.json").read_text())
    document |= {
        "imageData": base64.b64encode((folder / "one.png").read_bytes()).decode(),
        "imagePath": r"C:\x\one.png",
    }
    (folder / "one.json").write_text(json.dumps(document))
    (folder / "one.png").unlink()
    dataset = import_dataset("labelme", folder, tmp_path / "out").dataset
    assert (dataset.image("one") == pixels).all()


def test_what_has_no_area_is_left_out_and_counted(tmp_path: Path) -> None:
    line = {"label": "a", "shape_type": "line", "points": [[0, 0], [9, 9]]}
    write(tmp_path / "in" / "one", rectangle("a", 0, 0, 20, 20), line, {"label": "a", "points": [[0, 0], [9, 9]]})
    (tmp_path / "in" / "settings.json").write_text("{}")
    notes = "\n".join(import_dataset("labelme", tmp_path / "in", tmp_path / "out").notes)
    for what in ("lines and points, which have no area: 1", "polygons with fewer than three points: 1", "labelme's: 1"):
        assert what in notes


def damaged(folder: Path) -> Path:
    """Sound images, and five that are not."""
    write_labelme(folder)
    (folder / "cut.json").write_text('{"shapes": [')
    (folder / "lost.json").write_text(json.dumps(labelme("lost.png", rectangle("owl", 0, 0, 9, 9))))
    write(folder / "far", rectangle("owl", 0, 0, 9000, 9))
    write(folder / "nan", rectangle("owl", 0, 0, float("nan"), 9))
    write(folder / "small", rectangle("owl", 0, 0, 9, 9), size=(HEIGHT // 2, WIDTH))
    return folder


def test_all_damage_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    folder = damaged(tmp_path / "in")
    with pytest.raises(UserError) as refused:
        import_dataset("labelme", folder, tmp_path / "out")
    said = str(refused.value)
    for name, what in (
        ("cut.json", "can't be read as JSON"), ("lost.png", "is missing"), ("far.json", "far outside"),
        ("nan.json", "not finite"), ("small.png", "annotated at 60x40"),
    ):  # fmt: skip
        assert any(name in line and what in line for line in said.splitlines()), (name, said)
    assert "--skip-damaged" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_damage_can_be_left_out(tmp_path: Path) -> None:
    imported = import_dataset("labelme", damaged(tmp_path / "in"), tmp_path / "out", skip_damaged=True)
    assert len(imported.dataset.image_ids) == 8 and len(imported.skipped) == 5
    files = {path.stem for path in (tmp_path / "out" / "JPEGImages").iterdir()}
    assert files == set(imported.dataset.image_ids)  # no image of what was left out
    assert "left out, damaged" in words(imported)


def test_two_files_may_not_annotate_one_image(tmp_path: Path) -> None:
    write_labelme(tmp_path / "in")
    (tmp_path / "in" / "again.json").write_text(json.dumps(labelme("owl_0.png", rectangle("owl", 0, 0, 9, 9))))
    with pytest.raises(UserError, match=r"owl_0\.json: leads to .*owl_0\.png, as .*again\.json does"):
        import_dataset("labelme", tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("size", [80, "80", 80.0, "80.0", 79.5, "many", True, -40])
def test_another_size_is_refused_however_it_is_stated(tmp_path: Path, size: object) -> None:
    write(tmp_path / "in" / "one", rectangle("a", 0, 0, 20, 20))
    path = tmp_path / "in" / "one.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "imageHeight": size}))
    with pytest.raises(
        UserError, match=r"one\.(png: image is 60x40, but was annotated at 60x80|json: states the size)"
    ):
        import_dataset("labelme", tmp_path / "in", tmp_path / "out")
    path.write_text(json.dumps({**json.loads(path.read_text()), "imageHeight": "40", "imageWidth": 60.0}))
    assert import_dataset("labelme", tmp_path / "in", tmp_path / "out").dataset.image_ids == ("one",)


def test_a_shape_that_reaches_beyond_is_named(tmp_path: Path) -> None:
    part = mask_shape("a", np.ones((60, 9), np.bool_), 0, 0)
    write(tmp_path / "in" / "one", rectangle("a", 0, 0, 66, 44), rectangle("a", 5, 5, 67, 20), part)
    path = tmp_path / "in" / "one.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "imageHeight": None, "imageWidth": 0}))
    notes = import_dataset("labelme", tmp_path / "in", tmp_path / "out").notes
    assert any(note.startswith("2 of the annotations") and "shape 1 of one.png, shape 2 of" in note for note in notes)


def test_fractions_are_told_by_all_shapes_of_an_image(tmp_path: Path) -> None:
    dot, corner = rectangle("dot", 0, 0, 1.2, 1), {"label": "dot", "points": [[0, 0.5], [1, 0.5], [1, 1]]}
    write(tmp_path / "in" / "one", rectangle("a", 5, 5, 20, 20), dot)
    dataset = import_dataset("labelme", tmp_path / "in", tmp_path / "out").dataset
    assert dataset.mask("one", dataset.classes.index("dot")).sum() == 1
    write(tmp_path / "in" / "two", dot, corner)
    with pytest.raises(UserError, match=r"two\.json: two\.png: its coordinates are fractions"):
        import_dataset("labelme", tmp_path / "in", tmp_path / "again")


@pytest.mark.parametrize("kind", ["rectangle", "rotation", "oriented_rectangle"])
def test_four_corners_are_a_turned_rectangle(tmp_path: Path, kind: str) -> None:
    shape = {"label": "a", "shape_type": kind, "points": [[30, 5], [45, 20], [30, 35], [15, 20]]}
    write(tmp_path / "in" / "one", shape)
    mask = import_dataset("labelme", tmp_path / "in", tmp_path / "out").dataset.mask("one", 0)
    assert mask.sum() == pytest.approx(450, rel=0.07) and mask[20, 20] and not mask[8, 20]


def test_an_image_outside_of_the_source_is_not_read(tmp_path: Path) -> None:
    write_photo(tmp_path / "secret.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "one.json").write_text(json.dumps(labelme("../secret.png", rectangle("a", 0, 0, 9, 9))))
    with pytest.raises(UserError, match="is outside"):
        import_dataset("labelme", tmp_path / "in", tmp_path / "out")
