"""Supports in Python whose image or annotation is a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffup import Support
from diffup.errors import UserError
from diffup.support import to_rgb

SIZE = (30, 40)


def drawn(value: int = 1) -> np.ndarray:
    """A rectangle."""
    mask = np.zeros(SIZE, np.uint8)
    mask[4:20, 6:33] = value
    return mask


@pytest.mark.parametrize("value", [1, 38, 255])
@pytest.mark.parametrize("kind", ["mask", "scribble"])
@pytest.mark.parametrize("as_text", [True, False])
def test_a_path_is_read_as_its_array_would_be(value: int, kind: str, as_text: bool, tmp_path: Path) -> None:
    path = tmp_path / "drawn.PNG"
    Image.fromarray(drawn(value)).save(path, format="PNG")
    image = np.zeros((*SIZE, 3), np.uint8)
    read = Support(image, str(path) if as_text else path, kind).drawn(SIZE)
    np.testing.assert_array_equal(read, Support(image, drawn().astype(bool), kind).drawn(SIZE))


def test_home_is_meant_by_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.fromarray(drawn()).save(tmp_path / "mask.png")
    assert Support(np.zeros((*SIZE, 3), np.uint8), "~/mask.png").drawn(SIZE).sum() == 16 * 27


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (None, "mask", r"mask\.png: mask is missing"),
        (b"no picture", "mask", r"mask\.png: mask can't be decoded"),
        (np.zeros(SIZE, np.uint8), "mask", "the mask of a support is empty"),
        (np.zeros(SIZE, np.uint8), "scribble", "the scribble of a support is empty"),
        (drawn()[:, :-1], "mask", r"the mask has shape \(30, 39\)"),
        (drawn().T, "mask", "looks transposed"),
        (drawn(), "box", "a box is four numbers x0, y0, x1, y1, not the path"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(content: object, kind: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        Image.fromarray(np.asarray(content)).save(path)
    with pytest.raises(UserError, match=message):
        Support(np.zeros((*SIZE, 3), np.uint8), path, kind).drawn(SIZE)


def test_a_mask_that_was_drawn_on_the_upright_picture_fits(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    Image.fromarray(stored).save(tmp_path / "photo.png", exif=exif)
    Image.fromarray(drawn()).save(tmp_path / "mask.png")
    upright = to_rgb(tmp_path / "photo.png", "the support")
    np.testing.assert_array_equal(upright, np.rot90(stored, 3))
    assert Support(tmp_path / "photo.png", tmp_path / "mask.png").drawn(upright.shape[:2]).sum() == 16 * 27
