"""Damaged input of every kind: each ends in a message that names the file, or is read for what it says.

15 200 inputs in all, of which some 12 900 are refused and the others still sound: 5 000 of ``dataset.json``, 3 000
instances JSONs, 4 000 of HSNet's and PFENet's lists, all grown out of sound ones, beside the 3 200 arbitrary ones of
``test_lists.py``.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffup.data import coco
from diffup.data.dataset import Dataset
from diffup.data.lists import (
    Pairs,
    read_hsnet_pickle,
    read_hsnet_text,
    read_pfenet_classes,
    read_pfenet_images,
)
from diffup.data.spec import DatasetSpec, read_spec
from tests.unit.folders import CLASSES, FOLDS, SIZE, square, write_coco


def fuzz(inputs: int) -> Callable[..., Any]:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=inputs, suppress_health_check=checks, deadline=None)


ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64, 10**40, 0.5, 1e308, -1e-9, float("nan"), float("inf")]),
    st.sampled_from(
        ["", " ", "dog", "..", "/", "../../etc/passwd", "a\x00b", "\ud800", "💥", "x" * 5000, "voc", "coco"]
    ),
    st.recursive(st.integers(-3, 300) | st.text(max_size=3), lambda v: st.lists(v, max_size=4), max_leaves=8),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=3),
    st.just([[[[[[[[[[]]]]]]]]]]),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document, by keys and positions from the top."""
    found = [path]
    if isinstance(value, dict):
        found += [place for key in value for place in places(value[key], (*path, key))]
    elif isinstance(value, list):
        found += [place for i, part in enumerate(value) for place in places(part, (*path, i))]
    return found


@st.composite
def mutations(draw: st.DrawFn, sound: Any) -> Any:
    """A sound document with one to three places replaced, dropped, doubled or renamed."""
    document = json.loads(json.dumps(sound))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(document)))
        if not path:
            return copy.deepcopy(draw(ODD))
        holder = document
        for step in path[:-1]:
            holder = holder[step]
        kind = draw(st.sampled_from(["replace", "replace", "drop", "double", "rename"]))
        if kind == "replace":
            holder[path[-1]] = copy.deepcopy(draw(ODD))
        elif kind == "drop":
            del holder[path[-1]]
        elif kind == "double" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[path[-1]]))
        elif isinstance(holder, dict):
            holder[draw(st.text(max_size=6))] = holder.pop(path[-1])
    return document


def as_bytes(document: Any, draw: Callable[[Any], Any]) -> bytes:
    """A document as JSON, once in a while with some of its bytes gone or changed."""
    content = json.dumps(document).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 5)) == 0 and content:
        at = draw(st.integers(0, len(content) - 1))
        cut, flip, add = content[:at], bytes([content[at] ^ draw(st.integers(1, 255))]), draw(st.binary(max_size=4))
        content = draw(st.sampled_from([cut, cut + flip + content[at + 1 :], cut + add + content[at:]]))
    return content


SPEC = {
    "name": "toy", "layout": "coco", "classes": list(CLASSES), "folds": FOLDS, "min_area_fraction": 0.01,
    "images": "images", "annotations": "instances.json", "train_annotations": "a.json", "test_annotations": "b.json",
}  # fmt: skip


@given(st.data())
@fuzz(5000)
def test_dataset_json(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "dataset.json"
    path.write_bytes(as_bytes(data.draw(mutations(SPEC)), data.draw))
    try:
        spec = read_spec(path)
    except ValueError as error:
        assert str(path) in str(error)
        return
    assert isinstance(spec, DatasetSpec) and spec.classes and spec.folds
    assert {c for fold in spec.folds for c in fold} <= set(range(len(spec.classes)))
    assert json.dumps(spec.identity()), "what names a data set can be written"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DatasetSpec, Any]:
    """A COCO data set with polygons, and both kinds of runs for crowds; its instances JSON."""
    folder = tmp_path_factory.mktemp("coco")
    pixels = SIZE[0] * SIZE[1]
    crowd = {"size": list(SIZE), "counts": [100, 200, pixels - 300]}
    annotations: list[dict[str, Any]] = [
        {"category": "cat", "segmentation": [square(5, 5, 10), square(20, 9, 8)]},
        {"category": "dog", "segmentation": crowd, "iscrowd": 1},
        {"category": "cow", "segmentation": [square(1, 1, 30)], "image_id": 11},
    ]
    json_path = write_coco(folder, annotations)
    return folder, read_spec(json_path), json.loads((folder / "instances.json").read_text())


@given(st.data())
@fuzz(3000)
def test_instances_json(tree: tuple[Path, DatasetSpec, Any], data: st.DataObject) -> None:
    folder, spec, sound = tree
    path = folder / "instances.json"
    path.write_bytes(as_bytes(data.draw(mutations(sound)), data.draw))
    try:
        records, problems = coco.scan(folder, spec)
    except ValueError as error:
        assert str(path) in str(error)
        return
    assert all(problem.startswith("/") for problem in problems), "a file's path, which may be anywhere"
    if not problems:
        dataset = Dataset(folder, spec, records)
        for image_id in dataset.image_ids:
            for c in range(len(CLASSES)):
                mask = dataset.mask(image_id, c)
                assert mask.shape == dataset.sizes[image_id] and set(np.unique(mask)) <= {0, 1, 255}


LISTS: dict[str, tuple[Callable[[Path], object], bytes]] = {
    "HSNet text": (read_hsnet_text, b"2007_000033__01\n2007_000061__04\n2008_000001__20\n"),
    "HSNet pickle": (read_hsnet_pickle, pickle.dumps({0: ["val2014/a.jpg"], 79: ["val2014/b.jpg", "c"]})),
    "PFENet images": (read_pfenet_images, b"JPEGImages/a.jpg Labels/a.png\nJPEGImages/b.jpg Labels/b.png\n"),
    "PFENet classes": (read_pfenet_classes, b"{1: [('JPEGImages/a.jpg', 'L/a.png')], 6: [('b.jpg', 'b.png')]}"),
}


@pytest.mark.parametrize("name", LISTS)
@given(data=st.data())
@fuzz(1000)
def test_lists_that_were_sound(name: str, tmp_path: Path, data: st.DataObject) -> None:
    read, sound = LISTS[name]
    content = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "repeat"]))
        if kind == "flip" and at < len(content):
            content[at] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            del content[at:]
        elif kind == "insert":
            content[at:at] = data.draw(st.binary(max_size=8) | st.sampled_from([b"(((((", b"\x00", b"1e999", b"__99"]))
        else:
            content[at:at] = content[:at]
    path = tmp_path / "list"
    path.write_bytes(bytes(content))
    try:
        found = read(path)
    except ValueError as error:
        assert str(path) in str(error)
        return
    entries = found.entries if isinstance(found, Pairs) else found
    assert entries and all(len(entry) == 2 for entry in entries)  # type: ignore[attr-defined]


class Gadget:
    """Unpickled by Python itself, it would write a file."""

    def __init__(self, path: Path, how: str) -> None:
        self.path, self.how = path, how

    def __reduce__(self) -> tuple[Any, ...]:
        if self.how == "system":
            return os.system, (f"touch {self.path}",)
        if self.how == "eval":
            return eval, (f"open({str(self.path)!r}, 'w')",)
        return open, (str(self.path), "w")


@pytest.mark.parametrize("how", ["open", "system", "eval"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("where", ["top", "key", "list", "state"])
def test_nothing_in_a_pickle_is_executed(how: str, protocol: int, where: str, tmp_path: Path) -> None:
    gadget = Gadget(tmp_path / "ran", how)
    held: dict[str, Any] = {
        "top": gadget, "key": {gadget: ["a"]}, "list": {0: ["a", gadget]}, "state": {0: [{0: gadget}]},
    }  # fmt: skip
    path = tmp_path / "list.pkl"
    path.write_bytes(pickle.dumps(held[where], protocol))
    with pytest.raises(ValueError, match=r"not executed|is not a readable pickle"):
        read_hsnet_pickle(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, '{"images": [' + "[" * 100_000])
def test_deep_nesting_is_refused_and_takes_no_memory(text: str, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, read in (("dataset.json", read_spec), ("list", read_pfenet_classes)):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=name):
            read(tmp_path / name)
    spec = DatasetSpec(name="toy", layout="coco", classes=CLASSES, folds=((0,),), images="images")
    (tmp_path / "instances.json").write_text(text)
    with pytest.raises(ValueError, match=r"instances\.json"):
        coco.scan(tmp_path, spec)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10, "less than 500 MiB"
