"""Damage for readers: documents edited at any depth, bytes flipped and cut, and what a refusal must say."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from PIL import Image

TIMES = int(os.environ.get("DIFFUP_FUZZ") or 0)
REMEDY = re.compile(r"[Cc]orrect|[Rr]epair|[Rr]ename|remove|put |pass the|must use|use fewer|set '")
HEIGHT, WIDTH = 12, 16
DOCUMENT = {
    "name": "toy", "layout": "voc", "classes": ["dog", "cat", "cow"], "folds": [["dog"], ["cat", "cow"]],
    "ignore_index": 255, "min_area_fraction": 0.01, "images": "JPEGImages", "masks": "SegmentationClass",
    "lists": "ImageSets/Segmentation", "annotations": "instances.json",
}  # fmt: skip
INSTANCES = {
    "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in (1, 2)],
    "categories": [{"id": i, "name": name} for i, name in enumerate(["dog", "cat", "cow"], start=3)],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "iscrowd": 0, "segmentation": [[1, 1, 9, 1, 9.5, 8, 1, 8]]},
        {"id": 2, "image_id": 1, "category_id": 3, "iscrowd": 1,
         "segmentation": {"size": [HEIGHT, WIDTH], "counts": [20, 60, 112]}},
        {"id": 3, "image_id": 2, "category_id": 4, "iscrowd": 0,
         "segmentation": {"size": [HEIGHT, WIDTH], "counts": "d0l1n0^NZ1"}},
    ],
}  # fmt: skip
NASTY: list[Any] = [
    None, True, False, 0, 1, -1, 3, 255, 256, 2**31, 2**63, 10**400, 0.5, 1.5, 1e308, float("nan"), float("inf"),
    -float("inf"), "", " ", "0", "1", "3", "NaN", "\x00", "a\x00b", "\n", "\ud800", "é", "..", "../x", "/etc/hostname",
    "/dev/zero", "/dev/stdin", "a/b", "x" * 300, "x" * 5000, "cat", "coco", [], {}, [[]], [None], {"a": None}, [[1, 2]],
    ["123456"], [[0.5] * 6], [1.5, 190.5], [True] * 6, "o" * 3000, {"size": [12, 16], "counts": "o" * 3000},
]  # fmt: skip
junk = st.sampled_from(NASTY) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def fuzz(number: int) -> Callable[[Any], Any]:
    """Settings of a reader's test: so many examples, each within ten seconds."""
    return settings(
        max_examples=number * max(1, TIMES),
        deadline=timedelta(seconds=10),
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        derandomize=not TIMES,
    )


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a document, at any depth."""
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]
    return []


def edit(draw: st.DrawFn, document: Any) -> Any:
    """One or two values dropped, replaced, doubled, moved or renamed, at any depth."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 2))):
        where = places(document)
        if not where:
            return copy.deepcopy(draw(junk))
        holder, key = draw(st.sampled_from(where))
        what = draw(st.sampled_from(["drop", "replace", "replace", "replace", "double", "move", "rename"]))
        if what == "drop":
            del holder[key]
        elif what == "replace":
            holder[key] = copy.deepcopy(draw(junk))
        elif what == "move":
            other, place = draw(st.sampled_from(where))
            holder[key] = copy.deepcopy(other[place])
        elif isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder[draw(st.sampled_from([*holder, "x", 0]) if what == "rename" else st.just("copy"))] = holder.pop(key)
    return document


def damage(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes flipped, cut off, doubled or put in; deep nesting."""
    place = draw(st.integers(0, len(content)))
    what = draw(st.sampled_from(["flip", "flip", "cut", "double", "insert", "nest"]))
    if what == "flip":
        return content[:place] + bytes([draw(st.integers(0, 255))]) + content[place + 1 :]
    if what == "cut":
        return content[:place]
    if what == "double":
        return content[:place] + content[max(0, place - 9) :]
    if what == "insert":
        return content[:place] + draw(st.binary(max_size=8)) + content[place:]
    return content[:place] + draw(st.sampled_from([b"[", b'{"a":', b"(", b"-"])) * 3000 + content[place:]


@st.composite
def documents(draw: st.DrawFn, valid: Any) -> bytes:
    """A JSON file: mostly a valid one edited, its keys doubled or its bytes damaged; sometimes anything."""
    how = draw(st.integers(0, 9))
    if how == 0:
        return json.dumps(draw(junk)).encode()
    text = json.dumps(edit(draw, valid) if how < 8 else valid)
    if how == 7:  # a key twice: the later one counts
        first, second = (draw(st.sampled_from(['"id"', '"name"', '"folds"', '"images"', '"iscrowd"'])) for _ in "ab")
        text = text.replace(first, second, 1)
    return damage(draw, text.encode()) if how >= 8 else text.encode()


def refused(path: Path, read: Callable[[], Any], *named: Path) -> Any:
    """What `read` gives, or None if it refuses as it should; nothing else may be raised."""
    try:
        return read()
    except ValueError as error:
        message = str(error)
        assert any(str(name) in message for name in (path, *named)), f"names no file: {message}"
        assert REMEDY.search(message), f"no remedy: {message}"
        assert len(message) < 20_000
        message.encode()  # can be printed and logged
        return None


def make_toy(root: Path) -> Path:
    """A tiny data set in both layouts, without ``dataset.json``."""
    for name in ("JPEGImages", "SegmentationClass", "images"):
        (root / name).mkdir()
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[2:9, 3:12], labels[1, :] = 2, 255
    for i in (1, 2):
        picture = Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90 * i, np.uint8))
        picture.save(root / "JPEGImages" / f"{i}.png")
        picture.save(root / "images" / f"{i}.png")
        Image.fromarray(labels).save(root / "SegmentationClass" / f"{i}.png")
    (root / "instances.json").write_text(json.dumps(INSTANCES))
    return root
