"""Uploads are read in memory: 500 damaged, huge, odd or foreign files give a picture or one line, and touch no disk."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffup.demo.pictures import GONE, LONGEST_SIDE, MOST_BYTES, Pictures, read_upload
from diffup.errors import UserError
from tests.helpers.fuzzing import damage, fuzz, junk

SIDE = 24


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (SIDE, SIDE + 8), **options: Any) -> bytes:
    """A picture with some structure, as a file of a format."""
    height, width = size
    ramp = np.add.outer(np.arange(height), np.arange(width)) % 256
    image = Image.fromarray(np.stack([ramp, ramp[::-1], ramp[:, ::-1]], -1).astype(np.uint8)).convert(mode)
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def animated() -> bytes:
    frames = [Image.new("RGB", (SIDE, SIDE), (90 * i, 0, 0)) for i in range(3)]
    content = io.BytesIO()
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:])
    return content.getvalue()


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded("JPEG", exif=exif)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that states a size and holds next to nothing: a decompression bomb."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


FILES: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encoded("JPEG"), "grey": lambda: encoded("JPEG", "L"), "cmyk": lambda: encoded("JPEG", "CMYK"),
    "png": lambda: encoded("PNG"), "rgba": lambda: encoded("PNG", "RGBA"), "palette": lambda: encoded("PNG", "P"),
    "bilevel": lambda: encoded("PNG", "1"), "webp": lambda: encoded("WEBP"), "bmp": lambda: encoded("BMP"),
    "tiff": lambda: encoded("TIFF"), "float": lambda: encoded("TIFF", "F"), "icon": lambda: encoded("ICO"),
    "eps": lambda: encoded("EPS"), "pdf": lambda: encoded("PDF"), "animated": animated,
    "rotated": lambda: rotated(6), "odd orientation": lambda: rotated(77), "empty": lambda: b"",
    "html": lambda: b"<html><script>alert(1)</script></html>", "svg": lambda: b"<svg xmlns='x' width='9' height='9'/>",
    "zip": lambda: b"PK\x03\x04" + b"\0" * 60, "lfs": lambda: b"version https://git-lfs.github.com/spec/v1\n",
    "one pixel": lambda: encoded("PNG", size=(1, 1)), "a line": lambda: encoded("PNG", size=(1, 3000)),
    "bomb": lambda: png_of_size(60_000, 60_000), "huge": lambda: png_of_size(30_000, 3_000),
    "no width": lambda: png_of_size(0, 5),
}  # fmt: skip
TAKEN = {"jpeg", "grey", "cmyk", "png", "rgba", "palette", "bilevel", "webp", "bmp", "tiff", "rotated",
         "odd orientation", "one pixel", "a line"}  # fmt: skip


def payload(content: bytes, name: str = "photo.jpg") -> dict[str, str]:
    return {"name": name, "data": base64.b64encode(content).decode()}


@pytest.fixture
def untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test runs in an empty folder, with an empty temporary folder, and both are empty after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", FILES)
def test_each_kind_of_file_is_taken_or_refused(kind: str, untouched: None) -> None:
    pictures = Pictures()
    answer = pictures.upload(payload(FILES[kind](), f"{kind}.jpg"))
    if kind in TAKEN:
        picture = pictures.get(answer["token"])
        assert picture.pixels.dtype == np.uint8 and picture.pixels.shape == (answer["height"], answer["width"], 3)
        shown = Image.open(io.BytesIO(base64.b64decode(answer["preview"].split(",")[1])))
        assert shown.size == (answer["width"], answer["height"])
    else:
        assert set(answer) == {"error"} and answer["error"].startswith(f"{kind}.jpg: ")
        assert "\n" not in answer["error"] and "Traceback" not in answer["error"]


def test_exif_turns_a_picture_upright() -> None:
    plain, _ = read_upload(payload(encoded("JPEG")))
    turned, _ = read_upload(payload(rotated(6)))
    assert turned.shape[:2] == plain.shape[1::-1]
    assert (turned == np.rot90(plain, -1)).all()


def test_a_large_picture_is_reduced_and_the_page_says_so() -> None:
    pictures = Pictures()
    answer = pictures.upload(payload(encoded("JPEG", size=(1500, 3000))))
    assert (answer["width"], answer["height"]) == (LONGEST_SIDE, LONGEST_SIDE // 2)
    assert answer["note"] == "reduced from 3000 × 1500 pixels"


def test_a_file_that_is_too_long_is_not_decoded() -> None:
    with pytest.raises(UserError, match="30 MB"):
        read_upload({"data": "A" * (MOST_BYTES * 4 // 3 + 9)})


@pytest.mark.parametrize("sent", [None, 7, "x", [], {}, {"data": None}, {"data": "§"}, {"data": "A"}, {"name": 3}])
def test_what_is_no_file_is_refused(sent: Any) -> None:
    assert set(Pictures().upload(sent)) == {"error"}


def test_pictures_of_others_stay_secret_and_the_oldest_go_first() -> None:
    pictures = Pictures(limit_bytes=3 * SIDE * SIDE * 3)
    tokens = [pictures.add(np.zeros((SIDE, SIDE, 3), np.uint8)).token for _ in range(4)]
    assert len(set(tokens)) == 4 and all(len(token) > 20 for token in tokens)
    assert [pictures.get(token).token for token in tokens[1:]] == tokens[1:]
    unknown: list[Any] = [tokens[0], "0", "", None, 3, []]
    for wrong in unknown:
        with pytest.raises(UserError, match=GONE[:20]):
            pictures.get(wrong)


@st.composite
def uploads(draw: st.DrawFn) -> Any:
    """Mostly a file of any kind with one to four faults; sometimes any value at all."""
    if draw(st.integers(0, 19)) == 0:
        return draw(junk)
    content = FILES[draw(st.sampled_from(sorted(FILES)))]()
    for _ in range(draw(st.integers(0, 4))):
        content = damage(draw, content)
    sent: dict[str, Any] = payload(content, draw(st.text(max_size=200)))
    if draw(st.integers(0, 9)) == 0:
        sent["data"] = draw(st.just(sent["data"][:-1]) | st.just(f"data:image/png;base64,{sent['data']}") | junk)
    return sent


@pytest.mark.slow
def test_500_faulty_uploads_give_a_picture_or_one_line(untouched: None) -> None:
    seen = {"taken": 0, "refused": 0}

    @fuzz(500)
    @given(uploads())
    def one(sent: Any) -> None:
        pictures = Pictures()
        answer = pictures.upload(sent)
        if set(answer) == {"error"}:
            seen["refused"] += 1
            assert answer["error"] and len(answer["error"]) < 600
            return
        seen["taken"] += 1
        assert pictures.get(answer["token"]).size == (answer["height"], answer["width"])

    one()
    assert seen["taken"] > 50 and seen["refused"] > 50 and sum(seen.values()) >= 500
