"""COCO layout: union, crowd and overlap rules, and bad input."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as coco_masks
from scipy import ndimage

from diffup.data.dataset import Dataset, open_dataset
from diffup.episodes.protocols import get_protocol
from tests.helpers.coco_oracle import merged, oracle
from tests.helpers.folders import SIZE, square, write_coco, write_image, write_json

H, W = SIZE


def runs(*boxes: tuple[int, int, int, int]) -> list[int]:
    """Uncompressed run lengths (column by column) of boxes (top, left, bottom, right), as COCO's crowds have them."""
    mask = np.zeros(SIZE, np.uint8)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = 1
    flat = np.concatenate([[0], mask.T.reshape(-1)])
    changes = np.flatnonzero(np.diff(flat)) if flat.size else np.array([])
    return np.diff(np.concatenate([[0], changes, [H * W]])).tolist()


def opened(folder: Path, annotations: list[dict[str, Any]], **changes: Any) -> Dataset:
    """A data set with these annotations."""
    return open_dataset(write_coco(folder / "toy", annotations, **changes), cache_dir=folder / "cache")


def refusal(json_path: Path, cache: Path) -> str:
    """The message with which a data set is refused; nothing may be written then."""
    with pytest.raises(ValueError) as caught:
        open_dataset(json_path, cache_dir=cache)
    assert not cache.exists()
    return str(caught.value)


def test_the_mask_of_a_class_is_the_union_of_its_instances(tmp_path: Path) -> None:
    dataset = opened(
        tmp_path,
        [
            {"category": "cat", "segmentation": [square(5, 5, 10)]},
            {"category": "cat", "segmentation": [square(10, 10, 10), square(40, 20, 5)]},
            {"category": "dog", "segmentation": [square(0, 0, 3)]},
        ],
    )
    expected = np.zeros(SIZE, np.uint8)
    expected[5:15, 5:15] = expected[10:20, 10:20] = expected[20:25, 40:45] = 1
    assert (dataset.mask("0", 2) == expected).all()
    assert dataset.areas == {"0": {0: 9, 2: int(expected.sum())}, "1": {}}
    assert not dataset.mask("1", 2).any() and dataset.image_ids == ("0", "1") and dataset.sizes["0"] == SIZE


def test_a_crowd_is_void_for_its_class_and_an_instance_wins_over_it(tmp_path: Path) -> None:
    crowd = {"size": [H, W], "counts": runs((0, 10, 20, 30))}
    dataset = opened(
        tmp_path,
        [
            {"category": "cat", "segmentation": [square(5, 5, 10)]},
            {"category": "cat", "segmentation": crowd, "iscrowd": 1},
            {"category": "cow", "segmentation": crowd, "iscrowd": 1},
        ],
    )
    expected = np.zeros(SIZE, np.uint8)
    expected[0:20, 10:30] = 255
    expected[5:15, 5:15] = 1
    assert (dataset.mask("0", 2) == expected).all()
    assert not dataset.mask("0", 0).any(), "the crowd of one class is background for another"
    assert (dataset.mask("0", 3) == 255).sum() == 400
    assert dataset.areas["0"] == {2: 100}, "a crowd alone makes no image of a class"


def test_classes_may_overlap(tmp_path: Path) -> None:
    both = [{"category": name, "segmentation": [square(5, 5, 10)]} for name in ("dog", "cow")]
    dataset = opened(tmp_path, both)
    assert (dataset.mask("0", 0) == dataset.mask("0", 3)).all() and dataset.mask("0", 0).sum() == 100


def test_a_category_without_a_class_is_background(tmp_path: Path) -> None:
    dataset = opened(tmp_path, [{"category": "lamp", "segmentation": [square(5, 5, 10)]}])
    assert dataset.areas["0"] == {} and not any(dataset.mask("0", c).any() for c in range(4))


def test_all_three_encodings_mean_the_same(tmp_path: Path) -> None:
    uncompressed = {"size": [H, W], "counts": runs((5, 5, 15, 15), (20, 40, 25, 45))}
    compressed = coco_masks.frPyObjects(uncompressed, H, W)
    text = {"size": [H, W], "counts": compressed["counts"].decode()}
    encodings = [[square(5, 5, 10), square(40, 20, 5)], uncompressed, text]
    masks = [
        opened(tmp_path / str(i), [{"category": "cat", "segmentation": s}]).mask("0", 2)
        for i, s in enumerate(encodings)
    ]
    assert masks[0].sum() == 125
    assert (masks[0] == masks[1]).all() and (masks[0] == masks[2]).all()


def test_the_index_keeps_masks_and_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    annotations: list[dict[str, Any]] = [
        {"category": "cat", "segmentation": [square(5, 5, 10)]},
        {"category": "cow", "segmentation": {"size": [H, W], "counts": runs((0, 10, 20, 30))}, "iscrowd": 1},
    ]
    first = opened(tmp_path, annotations)
    monkeypatch.setattr("diffup.data.layouts.coco.scan", lambda *_: pytest.fail("indexed again"))
    second = open_dataset(tmp_path / "toy", cache_dir=tmp_path / "cache")
    assert second.fingerprint == first.fingerprint and second.areas == first.areas
    for c in range(4):
        assert (second.mask("0", c) == first.mask("0", c)).all()


def test_another_mask_of_the_same_area_changes_the_fingerprint(tmp_path: Path) -> None:
    here = opened(tmp_path / "a", [{"category": "cat", "segmentation": [square(5, 5, 10)]}])
    there = opened(tmp_path / "b", [{"category": "cat", "segmentation": [square(6, 5, 10)]}])
    assert here.areas == there.areas and here.fingerprint != there.fingerprint


def test_images_may_lie_in_folders_and_elsewhere(tmp_path: Path) -> None:
    json_path = write_coco(tmp_path / "toy", [{"category": "cat", "segmentation": [square(5, 5, 10)]}])
    instances = json_path.parent / "instances.json"
    document = json.loads(instances.read_text())
    for number, entry in enumerate(document["images"]):
        entry["file_name"] = f"val/{number}.jpg"
        write_image(tmp_path / "photos" / "val" / f"{number}.jpg", seed=number)
    instances.write_text(json.dumps(document))
    for folder in ("../photos", str(tmp_path / "photos")):
        write_json(json_path.parent, layout="coco", images=folder)
        dataset = open_dataset(json_path, cache_dir=tmp_path / "cache")
        assert dataset.image_ids == ("val/0", "val/1") and dataset.image("val/1").shape == (H, W, 3)


# Bad input


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        ([], "three points"),
        ([[1, 1, 5, 5]], "three points"),
        ([[1, 1, 5, 5, 9, 9, 3]], "three points"),
        ([[1, 1, 5, 5, 9, "x"]], "list of numbers"),
        ([[1, 1, 5, 5, 9, 1e12]], "far outside"),
        ({"size": [W, H], "counts": [H * W]}, "its size is"),
        ({"size": [H, W], "counts": [H * W - 1]}, "do not add up"),
        ({"size": [H, W], "counts": [-5, H * W + 5]}, "do not add up"),
        ({"size": [H, W], "counts": "000"}, "do not add up"),
        ({"size": [H, W], "counts": []}, "do not add up"),
        ({"counts": [H * W]}, "size"),
        (7, "no valid segmentation"),
        (None, "no valid segmentation"),
    ],
)
def test_bad_segmentations(tmp_path: Path, segmentation: Any, expected: str) -> None:
    json_path = write_coco(tmp_path / "toy", [{"category": "cat", "segmentation": segmentation}])
    message = refusal(json_path, tmp_path / "cache")
    assert "0.jpg: annotation 0 has no valid segmentation" in message and expected in message


def test_what_is_not_json_is_refused_as_such(tmp_path: Path) -> None:
    json_path = write_coco(tmp_path / "toy", [{"category": "cat", "segmentation": [[1, 1, 5, 5, 9, float("nan")]]}])
    assert "instances.json can't be read as JSON" in refusal(json_path, tmp_path / "cache")


def test_an_annotation_without_segmentation(tmp_path: Path) -> None:
    json_path = write_coco(tmp_path / "toy", [{"category": "cat"}])
    assert "annotation 0 has no valid segmentation" in refusal(json_path, tmp_path / "cache")


def damaged(folder: Path, change: Any) -> str:
    """The message after `change` was applied to the instances JSON."""
    json_path = write_coco(folder / "toy", [{"category": "cat", "segmentation": [square(5, 5, 10)]}])
    instances = json_path.parent / "instances.json"
    document = json.loads(instances.read_text())
    change(document)
    instances.write_text(json.dumps(document))
    message = refusal(json_path, folder / "cache")
    assert "instances.json" in message
    return message


def test_bad_instances(tmp_path: Path) -> None:
    def check(number: int, change: Any, expected: str) -> None:
        assert expected in damaged(tmp_path / str(number), change)

    check(0, lambda d: d["images"][0].update(height=H + 1), "image is 60x40, but instances.json says 60x41")
    check(1, lambda d: d["images"][1].update(file_name="0.jpg"), "names '0.jpg' 2 times")
    check(2, lambda d: d["images"][1].update(id=10), "two images share an id")
    check(3, lambda d: d["annotations"][0].update(image_id=99), "annotation 0 is of image 99, which is not listed")
    check(4, lambda d: d["annotations"][0].pop("category_id"), "lacks or misstates 'category_id'")
    check(5, lambda d: d["images"][0].pop("file_name"), "lacks or misstates 'file_name'")
    check(6, lambda d: d["categories"].pop(2), "has no category 'cat'")
    check(7, lambda d: d.pop("categories"), "it needs the lists images, annotations, categories")
    check(8, lambda d: d["images"].clear() or d["annotations"].clear(), "lists no images")


def test_two_images_that_differ_in_their_suffix_only(tmp_path: Path) -> None:
    json_path = write_coco(tmp_path / "toy", [])
    write_image(json_path.parent / "images" / "0.png")
    instances = json_path.parent / "instances.json"
    instances.write_text(instances.read_text().replace('"1.jpg"', '"0.png"'))
    assert "images/0.jpg, images/0.png: 2 images have the id '0'; rename all but one" in refusal(
        json_path, tmp_path / "cache"
    )


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_malformed_instances_json(tmp_path: Path, content: bytes) -> None:
    json_path = write_coco(tmp_path / "toy", [])
    (json_path.parent / "instances.json").write_bytes(content)
    assert "instances.json" in refusal(json_path, tmp_path / "cache")
    (json_path.parent / "instances.json").unlink()
    assert "instances.json does not exist" in refusal(json_path, tmp_path / "cache")


def test_missing_and_truncated_images(tmp_path: Path) -> None:
    json_path = write_coco(tmp_path / "toy", [])
    images = json_path.parent / "images"
    (images / "0.jpg").unlink()
    (images / "1.jpg").write_bytes((images / "1.jpg").read_bytes()[:-200])
    message = refusal(json_path, tmp_path / "cache")
    assert "0.jpg: image is missing" in message and "1.jpg: image can't be decoded" in message


# Photographs


def test_photographs_agree_with_polygons_drawn_otherwise(shared_data: Path, tmp_path: Path) -> None:
    """Pillow rasterizes polygons independently of pycocotools: large objects must agree but for a rim of two pixels."""
    root = shared_data / "coco128"
    dataset = open_dataset(root, cache_dir=tmp_path)
    assert len(dataset.image_ids) == 128
    document = json.loads((root / "instances.json").read_text())
    category = {entry["id"]: entry["name"] for entry in document["categories"]}
    person = dataset.classes.index("person")
    compared = 0
    for entry in document["images"]:
        image_id = Path(entry["file_name"]).stem
        if dataset.areas[image_id].get(person, 0) < 10_000:
            continue
        canvas = Image.new("L", (entry["width"], entry["height"]))
        for instance in document["annotations"]:
            if instance["image_id"] == entry["id"] and category[instance["category_id"]] == "person":
                for polygon in instance["segmentation"]:
                    ImageDraw.Draw(canvas).polygon(polygon, fill=1)
        drawn, mask = np.asarray(canvas) == 1, dataset.mask(image_id, person) == 1
        core = ndimage.binary_erosion(mask, iterations=2, border_value=1)
        hull = ndimage.binary_dilation(mask, iterations=2)
        assert ((core & ~drawn) | (drawn & ~hull)).sum() < 0.002 * mask.sum(), image_id
        compared += 1
    assert compared > 10


def test_a_fold_with_too_few_images(shared_data: Path, tmp_path: Path) -> None:
    dataset = open_dataset(shared_data / "coco128", cache_dir=tmp_path)
    assert len(dataset.eligible(dataset.classes.index("person"), get_protocol("paired"))) == 49
    with pytest.raises(ValueError, match="fold 0, class 'sports ball': 0"):
        dataset.check(1)


# Against pycocotools' own COCO class


def assert_as_pycocotools(dataset: Dataset, document: dict[str, Any]) -> int:
    """Compare every mask of every image and class; returns how many are not empty."""
    coco = oracle(document)
    ids = {entry["name"]: entry["id"] for entry in document["categories"]}
    shown = 0
    for entry in document["images"]:
        image_id = entry["file_name"].rsplit(".", 1)[0]
        for c, name in enumerate(dataset.classes):
            expected = merged(coco, entry["id"], {ids[name]})
            mask = dataset.mask(image_id, c)
            assert mask.dtype == np.uint8 and mask.shape == (entry["height"], entry["width"])
            np.testing.assert_array_equal(mask, expected, err_msg=f"{image_id}, {name}")
            assert dataset.areas[image_id].get(c, 0) == (expected == 1).sum()
            shown += bool(expected.any())
    return shown


@pytest.mark.slow
def test_every_mask_of_photographs_is_that_of_pycocotools(shared_data: Path, tmp_path: Path) -> None:
    """Its 17 classes, then all categories of the JSON, pixel for pixel."""
    document = json.loads((shared_data / "coco128" / "instances.json").read_text())
    dataset = open_dataset(shared_data / "coco128", cache_dir=tmp_path / "cache")
    pairs = {(entry["image_id"], entry["category_id"]) for entry in document["annotations"]}
    named = {entry["id"] for entry in document["categories"] if entry["name"] in dataset.classes}
    assert assert_as_pycocotools(dataset, document) == sum(category in named for _, category in pairs) == 189
    names = [entry["name"] for entry in document["categories"]]
    path = tmp_path / "all" / "dataset.json"
    path.parent.mkdir()
    parts = {part: str(shared_data / "coco128" / name) for part, name in
             (("images", "images"), ("annotations", "instances.json"))}  # fmt: skip
    path.write_text(json.dumps({"name": "all", "layout": "coco", "classes": names, "folds": [names], **parts}))
    assert assert_as_pycocotools(open_dataset(path, cache_dir=tmp_path / "cache"), document) == len(pairs)


def test_overlapping_photographed_classes_keep_a_mask_of_their_own(shared_data: Path, tmp_path: Path) -> None:
    """A person at a dining table: the pixels belong to both, and each mask is complete."""
    dataset = open_dataset(shared_data / "coco128", cache_dir=tmp_path)
    person, table = (dataset.classes.index(name) for name in ("person", "dining table"))
    both = [i for i in dataset.image_ids if {person, table} <= dataset.areas[i].keys()]
    shared = [int(((dataset.mask(i, person) == 1) & (dataset.mask(i, table) == 1)).sum()) for i in both]
    assert len(both) > 2 and max(shared) > 100


def test_photographs_without_annotations_are_background(shared_data: Path, tmp_path: Path) -> None:
    """They are images of the data set, serve for no class, and so are in no episode."""
    document = json.loads((shared_data / "coco128" / "instances.json").read_text())
    bare = {entry["id"] for entry in document["images"]} - {entry["image_id"] for entry in document["annotations"]}
    dataset = open_dataset(shared_data / "coco128", cache_dir=tmp_path)
    names = [Path(entry["file_name"]).stem for entry in document["images"] if entry["id"] in bare]
    assert len(names) == 2 and set(names) <= set(dataset.image_ids)
    for name in names:
        assert dataset.areas[name] == {} and dataset.image(name).shape[:2] == dataset.sizes[name]
        assert not any(dataset.mask(name, c).any() for c in range(len(dataset.classes)))
    eligible = {i for c in range(len(dataset.classes)) for i in dataset.eligible(c, get_protocol("paired"))}
    assert not eligible & set(names)


def instance(draw: st.DrawFn) -> dict[str, Any]:
    """One instance or crowd: polygons, or runs compressed or not; it may be empty, full or reach out of the image."""
    size = [H, W]
    seed = draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    how = draw(st.sampled_from(["polygons", "runs", "compressed", "empty", "full"]))
    mask = np.zeros(SIZE, np.uint8)
    top, left = int(rng.integers(H)), int(rng.integers(W))
    mask[top : top + int(rng.integers(1, 20)), left : left + int(rng.integers(1, 20))] = 1
    mask &= (rng.random(SIZE) < 0.9).astype(np.uint8)
    if how in ("empty", "full"):
        mask[:] = how == "full"
    flat = np.concatenate([[0], mask.T.reshape(-1)])
    counts = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(flat)), [H * W]])).tolist()
    segmentation: Any = {"size": size, "counts": counts}
    if how == "polygons":
        corners = rng.uniform(-0.3, 1.3, (int(rng.integers(1, 4)), int(rng.integers(3, 9)), 2)) * (W, H)
        segmentation = [[round(float(value), 2) for value in polygon.reshape(-1)] for polygon in corners]
    elif how == "compressed":
        segmentation = {"size": size, "counts": coco_masks.encode(np.asfortranarray(mask))["counts"].decode()}
    category = draw(st.sampled_from(["dog", "cat", "lamp"]))
    # pycocotools takes crowds of polygons too: iscrowd says what it means, not how it is written
    return {"category": category, "image_id": draw(st.sampled_from([10, 11])), "segmentation": segmentation,
            "iscrowd": int(draw(st.booleans()))}  # fmt: skip


@given(st.lists(st.composite(instance)(), max_size=8))
@settings(max_examples=60, deadline=None)
def test_any_instances_and_crowds_merge_as_in_pycocotools(annotations: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dataset = opened(Path(folder), annotations)
        assert_as_pycocotools(dataset, json.loads((Path(folder) / "toy" / "instances.json").read_text()))


def test_two_categories_of_one_name_are_one_class_and_one_id_of_two_names_is_refused(tmp_path: Path) -> None:
    json_path = write_coco(tmp_path / "toy", [{"category": "cat", "segmentation": [square(5, 5, 10)]}])
    instances = json_path.parent / "instances.json"
    document = json.loads(instances.read_text())
    document["categories"].append({"id": 99, "name": "cat"})
    document["annotations"].append(
        {**document["annotations"][0], "category_id": 99, "segmentation": [square(30, 5, 4)]}
    )
    instances.write_text(json.dumps(document))
    assert open_dataset(json_path, cache_dir=tmp_path / "cache").areas["0"] == {2: 116}
    document["categories"][-1]["id"] = 3
    instances.write_text(json.dumps(document))
    assert "different names share the id 3" in refusal(json_path, tmp_path / "other")


def test_ids_may_be_texts_but_not_truths_or_fractions(tmp_path: Path) -> None:
    """A category id in quotes used to make its instances background without a word."""

    def change(value: Any, field: str = "category_id") -> Any:
        return lambda d: d["annotations"][0].update({field: value})

    json_path = write_coco(tmp_path / "toy", [{"category": "cat", "segmentation": [square(5, 5, 10)]}])
    instances = json_path.parent / "instances.json"
    instances.write_text(instances.read_text().replace('"category_id": 17', '"category_id": "17"'))
    assert '"17"' in instances.read_text()
    assert open_dataset(json_path, cache_dir=tmp_path / "cache").areas["0"] == {2: 100}
    for number, value in enumerate([True, 17.5, "seventeen", None, 1e300, [17]]):
        assert "lacks or misstates" in damaged(tmp_path / f"bad{number}", change(value))
    assert "of category 98: not listed" in damaged(tmp_path / "unknown", change(98))
    assert "iscrowd is 0 or 1, not '0'" in damaged(tmp_path / "crowd", change("0", "iscrowd"))


def test_an_image_must_lie_in_the_image_folder(tmp_path: Path) -> None:
    for number, name in enumerate(["/dev/zero", "../../secret.jpg", "a/../../b.jpg", "", "a\x00.jpg"]):
        message = damaged(tmp_path / str(number), lambda d, name=name: d["images"][0].update(file_name=name))
        assert "misstates a file name" in message
