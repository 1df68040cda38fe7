"""Damaged list files: refused, or read as what they say; a gadget in a pickle never runs. See ``test_fuzz.py``."""

from __future__ import annotations

import builtins
import copy
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffup.data.lists import Pairs, read_hsnet_pickle, read_hsnet_text, read_pfenet_classes, read_pfenet_images
from tests.helpers.fuzzing import (
    damage,
    edit,
    fuzz,
    places,
    refused,
)

pytestmark = pytest.mark.slow


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
        assert " ".join(sum(found, ())).split() == content.decode().split()  # a name may hold blanks


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
