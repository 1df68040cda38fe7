"""Lists and JSON documents of any Unicode encoding, and names with blanks and accents."""

from __future__ import annotations

import codecs
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffup.data.dataset import open_dataset
from diffup.data.lists import read_hsnet_text, read_pfenet_images
from diffup.data.spec import read_spec
from diffup.data.text import read_lines
from diffup.errors import UserError
from tests.helpers.folders import square, write_coco, write_image, write_json, write_voc

ENCODINGS = {
    "UTF-8": lambda text: text.encode(),
    "UTF-8 with mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16 big": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "UTF-32": lambda text: text.encode("utf-32"),
}
encodings = st.sampled_from(sorted(ENCODINGS))
ends = st.sampled_from(["\n", "\r\n", "\r"])
names = st.lists(
    st.text("abc XYZ019_-.'ü猫", min_size=1, max_size=12).map(str.strip).filter(bool), min_size=1, max_size=8
)
anywhere = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@anywhere
@given(names=names, encoding=encodings, end=ends, last=st.booleans())
def test_a_list_is_read_whatever_wrote_it(
    names: list[str], encoding: str, end: str, last: bool, tmp_path: Path
) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(ENCODINGS[encoding](end.join(names) + (end if last else "")))
    assert read_lines(path) == names


@anywhere
@given(encoding=encodings, end=ends)
def test_lists_of_images_in_any_encoding(encoding: str, end: str, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(ENCODINGS[encoding](end.join(["2007_000033__01", "Screenshot 12__20", ""])))
    assert read_hsnet_text(path).entries == (("2007_000033", 0), ("Screenshot 12", 19))
    rows = ["JPEGImages/a 1.jpg SegmentationClass/a 1.png", "b.JPG  c.PNG", "x y"]
    path.write_bytes(ENCODINGS[encoding](end.join(rows)))
    assert read_pfenet_images(path) == (
        ("JPEGImages/a 1.jpg", "SegmentationClass/a 1.png"), ("b.JPG", "c.PNG"), ("x", "y"),
    )  # fmt: skip


@pytest.mark.parametrize("line", ["a.jpg b.png c.jpg d.png", "a.jpg", "a b c"])
def test_a_line_of_more_or_less_than_two_paths_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(line)
    with pytest.raises(UserError, match="1 lines are not IMAGE LABEL"):
        read_pfenet_images(tmp_path / "list.txt")


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_a_dataset_json_in_any_encoding(encoding: str, json_path: Path) -> None:
    document = json.loads(json_path.read_text()) | {"name": "vögel"}
    json_path.write_bytes(ENCODINGS[encoding](json.dumps(document, ensure_ascii=False)))
    assert read_spec(json_path).name == "vögel"


def test_an_instances_json_with_a_byte_order_mark(tmp_path: Path, cache: Path) -> None:
    path = write_coco(tmp_path / "toy", [{"category": "cat", "segmentation": [square(5, 5, 20)]}])
    plain = open_dataset(path, cache_dir=cache)
    instances = path.parent / "instances.json"
    text = instances.read_text()
    instances.write_bytes(codecs.BOM_UTF8 + text.encode())
    assert open_dataset(path, cache_dir=cache).fingerprint == plain.fingerprint
    instances.write_bytes(text.encode("utf-16"))
    with pytest.raises(UserError, match=r"instances\.json is in UTF-16; save it as UTF-8"):
        open_dataset(path, cache_dir=cache)


def test_other_encodings_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("vögel\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"list\.txt can't be read as text .*save it as UTF-8"):
        read_lines(tmp_path / "list.txt")


# Names in lists


def with_list(tmp_path: Path, text: str, renamed: dict[str, str]) -> Path:
    """A data set in VOC layout with a list and renamed images."""
    path = write_voc(tmp_path / "toy")
    for old, new in renamed.items():
        for folder, suffix in (("JPEGImages", ".jpg"), ("SegmentationClass", ".png")):
            (path.parent / folder / f"{old}{suffix}").rename(path.parent / folder / f"{new}{suffix}")
    lists = path.parent / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "all.txt").write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Screenshot 12\ndog_1\n", ("Screenshot 12", "dog_1")),
        ("  Screenshot 12  \n\n\ndog_1", ("Screenshot 12", "dog_1")),
        ("Screenshot 12.jpg\ndog_1.jpg\n", ("Screenshot 12", "dog_1")),
        ("dog_1 dog_2\ncat_0", ("cat_0", "dog_1", "dog_2")),
    ],
)
def test_a_line_is_a_name(text: str, ids: tuple[str, ...], tmp_path: Path, cache: Path) -> None:
    path = with_list(tmp_path, text, {"dog_0": "Screenshot 12"})
    assert open_dataset(path, cache_dir=cache).image_ids == ids


def test_a_name_with_a_blank_that_is_missing_is_named_whole(tmp_path: Path, cache: Path) -> None:
    path = with_list(tmp_path, "Screenshot 13\ndog_1\n", {})
    with pytest.raises(UserError, match=r"1 problem .*\n.*Screenshot 13\.jpg: image is missing"):
        open_dataset(path, cache_dir=cache)


@pytest.mark.parametrize(("stored", "written"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFC", "NFC")])
def test_accents_are_the_same_however_they_are_composed(stored: str, written: str, tmp_path: Path, cache: Path) -> None:
    forms = {form: unicodedata.normalize(form, "vögel 1") for form in ("NFC", "NFD")}
    path = with_list(tmp_path, f"{forms[written]}\ndog_1\n", {"dog_0": forms[stored]})
    assert open_dataset(path, cache_dir=cache).image_ids == ("dog_1", forms[stored])


@pytest.mark.parametrize("suffix", [".PNG", ".Png"])
def test_masks_are_found_whatever_the_case_of_their_suffix(suffix: str, tmp_path: Path, cache: Path) -> None:
    path = write_voc(tmp_path / "toy")
    plain = open_dataset(path, cache_dir=cache)
    drawn = plain.mask("dog_0", 0)
    for mask in list((path.parent / "SegmentationClass").iterdir()):
        mask.rename(mask.with_suffix(suffix))
    found = open_dataset(path, cache_dir=cache)
    assert found.areas == plain.areas and (found.mask("dog_0", 0) == drawn).all()


def test_two_masks_of_one_name_are_refused(tmp_path: Path, cache: Path) -> None:
    path = write_voc(tmp_path / "toy")
    masks = path.parent / "SegmentationClass"
    (masks / "dog_0.PNG").write_bytes((masks / "dog_1.png").read_bytes())
    with pytest.raises(UserError, match=r"dog_0\.png: same name as dog_0\.PNG"):
        open_dataset(path, cache_dir=cache)


# Names in instances JSONs


def renamed_coco(tmp_path: Path, on_disk: str, in_json: str) -> Path:
    """A data set in COCO layout whose first image is called so."""
    path = write_coco(tmp_path / "toy", [{"category": "cat", "segmentation": [square(5, 5, 20)]}], images=1)
    images = path.parent / "images"
    (images / on_disk).parent.mkdir(parents=True, exist_ok=True)
    (images / "0.jpg").rename(images / on_disk)
    document = json.loads((path.parent / "instances.json").read_text())
    document["images"][0]["file_name"] = in_json
    (path.parent / "instances.json").write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("on_disk", "in_json", "image_id"),
    [
        ("sub/a.jpg", "sub\\a.jpg", "sub/a"),
        ("sub/deep/a b.jpg", "sub\\deep/a b.jpg", "sub/deep/a b"),
        ("odd\\a.jpg", "odd\\a.jpg", "odd\\a"),
        ("a.JPG", "a.jpg", "a"),
        ("a.jpg", "a.JPG", "a"),
        (unicodedata.normalize("NFD", "ü.jpg"), unicodedata.normalize("NFC", "ü.jpg"), "ü"),
    ],
)
def test_file_names_as_other_systems_write_them(
    on_disk: str, in_json: str, image_id: str, tmp_path: Path, cache: Path
) -> None:
    dataset = open_dataset(renamed_coco(tmp_path, on_disk, in_json), cache_dir=cache)
    assert dataset.areas == {image_id: {2: 400}} and dataset.image(image_id).shape == (40, 60, 3)


@pytest.mark.parametrize("name", ["..\\a.jpg", "sub\\..\\..\\a.jpg", "C:\\a.jpg", "C:/a.jpg", "\\a.jpg"])
def test_backslashes_lead_out_of_no_folder(name: str, tmp_path: Path, cache: Path) -> None:
    path = renamed_coco(tmp_path, "x/a.jpg", name)
    write_image(path.parent / "a.jpg")
    with pytest.raises(UserError, match="leads out of the image folder"):
        open_dataset(path, cache_dir=cache)


def test_notes_are_kept_apart_from_the_fingerprint(tmp_path: Path, cache: Path) -> None:
    path = write_voc(tmp_path / "toy")
    plain = open_dataset(path, cache_dir=cache).fingerprint
    (path.parent / "JPEGImages" / "a.heic").write_bytes(b"x")
    assert open_dataset(write_json(path.parent), cache_dir=cache).fingerprint == plain
