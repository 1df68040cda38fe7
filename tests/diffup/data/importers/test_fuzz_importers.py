"""Damaged annotations: each import ends in a data set that opens, or in one UserError and nothing written."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffup.data.dataset import scan_dataset
from diffup.data.importers.write import import_dataset
from diffup.errors import UserError
from tests.helpers.annotated import labelme, mask_shape, rectangle, write_cvat, write_masks, write_photo
from tests.helpers.fuzzing import INSTANCES, damage, documents, fuzz

SHAPES: list[dict[str, Any]] = [
    rectangle("dog", 1, 1, 12, 9),
    {"label": "cat", "shape_type": "circle", "points": [[8, 6], [8, 9]]},
    {"label": "cow", "points": [[1, 1], [9, 1], [9, 8.5]]},
]
SIZE = (12, 16)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes of a file, damaged."""
    return damage(draw, content)


def tried(kind: str, folder: Path, skip: bool) -> None:
    """An import with both ways of treating damage; what is written must be whole, and nothing is left otherwise."""
    out = folder.parent / "out"
    try:
        import_dataset(kind, folder, out, skip_damaged=skip)
    except UserError as error:
        assert str(error) and sorted(path.name for path in folder.parent.iterdir()) == ["in"], str(error)
    else:
        assert not scan_dataset(out / "dataset.json").problems


@fuzz(60)
@given(documents(labelme("1.png", *SHAPES, size=SIZE)), st.booleans())
def test_labelme_json_edited_at_any_depth(content: bytes, skip: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "in"
        for number in (1, 2):
            write_photo(folder / f"{number}.png", size=SIZE)
        (folder / "1.json").write_bytes(content)
        (folder / "2.json").write_text(json.dumps(labelme("2.png", *SHAPES, size=SIZE)))
        tried("labelme", folder, skip)


@fuzz(40)
@given(documents(INSTANCES), st.booleans())
def test_instances_json_edited_at_any_depth(content: bytes, skip: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "in"
        for number in (1, 2):
            write_photo(folder / f"{number}.png", size=SIZE)
        (folder / "instances.json").write_bytes(content)
        tried("coco", folder, skip)


@fuzz(60)
@given(st.data(), st.booleans())
def test_bytes_of_any_file_damaged(data: st.DataObject, skip: bool) -> None:
    kind = data.draw(st.sampled_from(["labelme", "cvat", "masks"]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "in"
        if kind == "masks":
            write_masks(folder, per_class=1)
        elif kind == "cvat":
            write_cvat(
                folder,
                ("1.png", [("box", {"label": "dog", "xtl": 1, "ytl": 1, "xbr": 9, "ybr": 8, "z_order": 1})]),
                ("2.png", [("mask", {"label": "cat", "rle": "2, 5, 1", "left": 3, "top": 3, "width": 4, "height": 2})]),
            )
        else:
            write_photo(folder / "1.png", size=SIZE)
            shape = mask_shape("cow", np.ones((3, 3), np.bool_), 2, 2)
            (folder / "1.json").write_text(json.dumps(labelme("1.png", *SHAPES, shape, size=SIZE)))
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        victim = data.draw(st.sampled_from(files))
        victim.write_bytes(data.draw(damaged(victim.read_bytes())))
        tried(kind, folder, skip)


NUMBERS = ["", "nan", "inf", "-1", "1e400", "0.5", "9" * 30, "1,2", "x", "99999999", "3"]


@fuzz(60)
@given(st.data(), st.booleans())
def test_cvat_attributes_of_any_value(data: st.DataObject, skip: bool) -> None:
    tag = data.draw(st.sampled_from(["box", "polygon", "ellipse", "mask", "cuboid", "strange"]))
    names = ["label", "xtl", "ytl", "xbr", "ybr", "cx", "cy", "rx", "ry", "rotation", "z_order", "left", "top"]
    values = {name: data.draw(st.sampled_from(NUMBERS)) for name in [*names, "width", "height"]}
    values |= {"points": ";".join(data.draw(st.lists(st.sampled_from(NUMBERS), max_size=4)))}
    values |= {"rle": ",".join(data.draw(st.lists(st.sampled_from(NUMBERS), max_size=4)))}
    kept = {name: value for name, value in values.items() if data.draw(st.booleans()) or name == "label"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "in"
        write_cvat(folder, ("1.png", [(tag, dict(kept))]))
        tried("cvat", folder, skip)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = write_masks(tmp_path / "in")
    (folder / "images" / "owl_1.png").write_bytes(b"\x89PNG cut")
    with pytest.raises(UserError, match=r"images/owl_1\.png: image can't be decoded"):
        import_dataset("masks", folder, tmp_path / "out")
