"""10,000 damaged files: each is refused by a ValueError that names the file and a remedy, or read as what it says.

Per reader: 1500 `dataset.json`, 1500 instances JSON, 2500 pickles (1000 with a gadget), 1500 HSNet texts, 1500 PFENet
image lists, 1500 PFENet class lists; the same in every run. ``DIFFUP_FUZZ=N`` tries N times as many, other ones each
time.
"""

from __future__ import annotations

import builtins
import copy
import io
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from diffup.data.dataset import open_dataset
from diffup.data.lists import Pairs, read_hsnet_pickle, read_hsnet_text, read_pfenet_classes, read_pfenet_images
from diffup.data.spec import read_spec
from tests.unit.coco_oracle import merged, oracle

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


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data set in both layouts, without ``dataset.json``."""
    root = tmp_path_factory.mktemp("toy")
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


@fuzz(1500)
@given(content=documents(DOCUMENT) | documents({**DOCUMENT, "layout": "coco", "images": "images"}))
def test_a_dataset_json_is_refused_or_means_what_it_says(content: bytes, voc: Path) -> None:
    path = voc / "dataset.json"
    path.write_bytes(content)
    spec = refused(path, lambda: read_spec(path))
    if spec is None:
        return
    says = json.loads(content)
    assert (spec.name, spec.layout, list(spec.classes)) == (says["name"], says["layout"], says["classes"])
    assert [[spec.classes[c] for c in fold] for fold in spec.folds] == says["folds"]
    assert spec.ignore_index == says.get("ignore_index", 255)
    assert spec.min_area_fraction == says.get("min_area_fraction")
    dataset = refused(path, lambda: open_dataset(path, voc / "cache"), voc)
    if dataset is not None:
        for image in dataset.image_ids:
            for c in range(len(spec.classes)):
                mask = dataset.mask(image, c)
                assert mask.shape == (HEIGHT, WIDTH) and set(np.unique(mask)) <= {0, 1, 255}
                assert int((mask == 1).sum()) == dataset.areas[image].get(c, 0)


@fuzz(1500)
@given(content=documents(INSTANCES))
def test_an_instances_json_is_refused_or_gives_the_masks_of_pycocotools(content: bytes, voc: Path) -> None:
    path = voc / "dataset.json"
    path.write_text(json.dumps({**DOCUMENT, "layout": "coco", "images": "images"}))
    (voc / "instances.json").write_bytes(content)
    dataset = refused(path, lambda: open_dataset(path, voc / "cache"), voc / "instances.json")
    if dataset is None:
        return
    says = json.loads(content)
    for entry in says["images"]:
        entry |= {"id": int(entry["id"]), "height": HEIGHT, "width": WIDTH}
    for number, entry in enumerate(says["annotations"]):
        entry |= {"id": number, "image_id": int(entry["image_id"]), "category_id": int(entry["category_id"])}
    for entry in says["categories"]:
        entry["id"] = int(entry["id"])
    coco = oracle(says)
    for entry in says["images"]:
        for c, name in enumerate(dataset.classes):
            ids = {category["id"] for category in says["categories"] if category["name"] == name}
            image_id = str(Path(entry["file_name"]).with_suffix(""))
            np.testing.assert_array_equal(dataset.mask(image_id, c), merged(coco, entry["id"], ids))


# Lists


class Gadget:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path, how: int) -> None:
        self.call = [
            (os.mkdir, (str(marker),)),
            (builtins.exec, (f"open({str(marker)!r}, 'w').close()",)),
            (os.system, (f"touch {marker}",)),
            (builtins.open, (str(marker), "w")),
        ][how]

    def __reduce__(self) -> Any:
        return self.call


class Pure(pickle._Unpickler):  # the one in Python, without the C one's memo
    """The judge of pickles that hold no code."""

    def find_class(self, module: str, name: str) -> Any:
        raise AssertionError(f"{module}.{name} was let through")


LIST: dict[Any, Any] = {0: ["val2014/a.jpg", "val2014/b.jpg"], 7: ["val2014/a.jpg"], 79: ["c.jpg"]}
PROTOCOLS = st.integers(0, pickle.HIGHEST_PROTOCOL)


@st.composite
def pickles(draw: st.DrawFn) -> bytes:
    """A pickled list, edited or damaged or both."""
    held = edit(draw, LIST) if draw(st.booleans()) else LIST
    content = pickle.dumps(held, protocol=draw(PROTOCOLS))
    return damage(draw, content) if draw(st.integers(0, 3)) else content


def names_of(path: Path, read: Callable[[Path], Any]) -> Any:
    """What a list holds, checked as far as any list can be; None if it is refused."""
    found = refused(path, lambda: read(path))
    if found is not None:
        assert found
        if isinstance(found, Pairs):
            for image, c in found.entries:
                assert image and image.encode() and "\x00" not in image and type(c) is int and 0 <= c < 80
    return found


@fuzz(1500)
@given(content=pickles())
def test_a_damaged_pickle_is_refused_or_means_what_it_says(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "list.pkl"
    path.write_bytes(content)
    found = names_of(path, read_hsnet_pickle)
    if found is not None:
        says = Pure(io.BytesIO(content)).load()
        assert list(found.entries) == [(image, c) for c, images in says.items() for image in images]


@st.composite
def gadgets(draw: st.DrawFn) -> tuple[int, int, int, bool, list[int]]:
    """Which gadget, where, which protocol, and bytes to flip."""
    flips = draw(st.lists(st.integers(0, 2**16 - 1), max_size=2))
    return draw(st.integers(0, 3)), draw(st.integers(0, 20)), draw(PROTOCOLS), draw(st.booleans()), flips


@fuzz(1000)
@given(made=gadgets())
def test_a_gadget_in_a_pickle_never_runs(made: tuple[int, int, int, bool, list[int]], tmp_path: Path) -> None:
    how, place, protocol, as_key, flips = made
    marker, path = tmp_path / "marker", tmp_path / "list.pkl"
    held, gadget = copy.deepcopy(LIST), Gadget(marker, how)
    holder, key = places(held)[place % len(places(held))]
    if as_key:
        held[gadget] = ["a.jpg"]
    else:
        holder[key] = gadget
    content = bytearray(pickle.dumps(held, protocol=protocol))
    for flip in flips:
        content[flip % len(content)] ^= 1 << (flip >> 13)
    path.write_bytes(content)
    found = names_of(path, read_hsnet_pickle)
    assert not marker.exists()
    assert flips or found is None


@st.composite
def lines(draw: st.DrawFn, valid: list[str]) -> bytes:
    """Lines of a text list, edited and joined anyhow, or damaged."""
    rows = [str(row) for row in edit(draw, [*valid]) or []] if draw(st.booleans()) else [*valid]
    content = draw(st.sampled_from(["\n", "\r\n", "\n\n", " ", "\x0b", "\t"])).join(rows)
    raw = content.encode("utf-8", "surrogatepass")
    return damage(draw, raw) if draw(st.integers(0, 3)) else raw


@fuzz(1500)
@given(content=lines(["2007_000033__01", "2007_000061__04", "2008_000001__20", "b__07"]))
def test_a_damaged_text_of_hsnet(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "fold0.txt"
    path.write_bytes(content)
    found = names_of(path, read_hsnet_text)
    if found is not None:
        rows = [line.strip() for line in content.decode().splitlines() if line.strip()]
        assert [f"{image}__{c + 1:02d}" for image, c in found.entries] == rows


@fuzz(1500)
@given(content=lines(["JPEGImages/a.jpg Labels/a.png", "JPEGImages/b.jpg Labels/b.png"]))
def test_a_damaged_image_list_of_pfenet(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(content)
    found = names_of(path, read_pfenet_images)
    if found is not None:
        assert [*sum(found, ())] == content.decode().split()


CLASS_LIST: dict[Any, Any] = {1: [["/x/a.jpg", "/x/a.png"]], 6: [["b.jpg", "b.png"], ["c.jpg", "c.png"]]}


@st.composite
def literals(draw: st.DrawFn) -> bytes:
    """The text of a class list, edited, damaged, or with code in it."""
    held = edit(draw, CLASS_LIST) if draw(st.booleans()) else CLASS_LIST
    text = repr(held)
    if draw(st.booleans()):  # as PFENet writes it
        text = text.replace("['", "('").replace("']", "')")
    if draw(st.integers(0, 4)) == 0:
        code = [
            "__import__('os').abort()",
            "exit()",
            "9**9**9",
            "0x" + "f" * 5000,
            "[0 for _ in iter(int, 1)]",
            "f'{1}'",
        ]
        text = text.replace(draw(st.sampled_from(["1", "'b.jpg'", "6"])), draw(st.sampled_from(code)), 1)
    raw = text.encode("utf-8", "surrogatepass")
    return damage(draw, raw) if draw(st.integers(0, 2)) else raw


@fuzz(1500)
@given(content=literals())
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")  # of Python, on '\d' and the like
def test_a_damaged_class_list_of_pfenet(content: bytes, tmp_path: Path) -> None:
    import ast

    path = tmp_path / "sub_class_file_list_0.txt"
    path.write_bytes(content)
    found = names_of(path, read_pfenet_classes)
    if found is not None:
        says = ast.literal_eval(content.decode().strip())
        assert list(found.entries) == [(Path(image).stem, c - 1) for c, rows in says.items() for image, _ in rows]


# Small files that would take all memory or time

BOMBS = """
import json, pickle, resource, struct, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
from diffup.data.dataset import open_dataset
from diffup.data.lists import read_hsnet_pickle, read_pfenet_classes
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), resource.RLIM_INFINITY))
nested = b"\\x80\\x02" + b")" + b"0".join([b""]) + b"".join(b"q%c0h%ch%c\\x86" % (i, i, i) for i in range(60)) + b"."
lists = {
    "memo": (read_hsnet_pickle, b"\\x80\\x02}r" + struct.pack("<I", 0x3FFFFFFF) + b"."),
    "memo in text": (read_hsnet_pickle, b"}p1000000000\\n."),
    "tuples": (read_hsnet_pickle, b"\\x80\\x02}" + nested[2:-1] + b"K\\x01s."),
    "long text": (read_hsnet_pickle, b"\\x80\\x04}\\x8d" + struct.pack("<Q", 1 << 40) + b"."),
    "shared": (read_hsnet_pickle, b"\\x80\\x02}(K\\x00](X\\x01\\0\\0\\0aq\\x01" + b"h\\x01" * 2_000_000 + b"eq\\x02"
               + b"".join(b"K%ch\\x02" % c for c in range(1, 80)) + b"u."),
    "brackets": (read_pfenet_classes, b"(" * 1_000_000),
    "signs": (read_pfenet_classes, b"{" + b"-" * 200_000 + b"1: []}"),
    "digits": (read_pfenet_classes, b"{0x" + b"f" * 1_000_000 + b": []}"),
}
files = {"dataset.json": b'{"name": ' + b"[" * 1_000_000}
document = json.loads((folder / "instances.json").read_text())
for name, change in {
    "brackets": None,
    "runs": {"size": [12, 16], "counts": "o" * 1_000_000},
    "far": [[0, 0, 1e300, 0, 5, 1e300]],
    "many runs": {"size": [12, 16], "counts": [0] * 300_000},
}.items():
    document["annotations"][0]["segmentation"] = change
    files[name] = b"[" * 1_000_000 if change is None else json.dumps(document).encode()
def tell(name, read):
    began = time.perf_counter()
    try:
        read()
        print(f"{name}: read")
    except ValueError:
        print(f"{name}: refused")
    assert time.perf_counter() - began < 30, name
path = folder / "list"
for name, (read, content) in lists.items():
    path.write_bytes(content)
    tell(name, lambda: read(path))
for name, content in files.items():
    (folder / ("dataset.json" if name == "dataset.json" else "instances.json")).write_bytes(content)
    if name != "dataset.json":
        (folder / "dataset.json").write_text(sys.argv[2])
    tell(name, lambda: open_dataset(folder / "dataset.json", folder / "cache"))
"""


def test_small_files_that_stand_for_gigabytes_are_refused_in_little_memory(voc: Path, tmp_path: Path) -> None:
    """Under a limit of 1 GiB more than the imports take."""
    import shutil

    folder = Path(shutil.copytree(voc, tmp_path / "toy"))
    (folder / "instances.json").write_text(json.dumps(INSTANCES))
    says = json.dumps({**DOCUMENT, "layout": "coco", "images": "images"})
    command = [sys.executable, "-c", BOMBS, str(folder), says]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 13 and "read" not in done.stdout.replace("brackets", ""), done.stdout
