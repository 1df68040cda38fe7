"""Masks as people draw them: one class, whatever program saved it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffup.data.labels import read_binary, read_drawn
from diffup.errors import UserError
from diffup.support import Support
from tests.diffup.data.test_labels import block, written


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([0, 1], [0, 1]),
        ([0, 255], [0, 1]),
        ([0, 38], [0, 1]),
        ([0, 1, 2], [0, 1, 2]),
        ([0, 5, 255], [0, 1, 0]),
        ([255], [1]),
        ([0], [0]),
    ],
)
def test_a_drawn_mask_has_one_class(values: list[int], classes: list[int], tmp_path: Path) -> None:
    drawn = np.repeat(np.array(values, np.uint8), 4)[:, None].repeat(6, 1)
    read = read_drawn(written(tmp_path, Image.fromarray(drawn)))
    np.testing.assert_array_equal(read, np.repeat(np.array(classes, np.uint8), 4)[:, None].repeat(6, 1))


@pytest.mark.parametrize(
    "values", [[0, 5, 12], [5, 12], [0, 128, 255], [0, 127, 255], [0, 5, 12, 255], [1, 2, 3], [1, 2]]
)
def test_several_labels_are_no_drawn_mask(values: list[int], tmp_path: Path) -> None:
    drawn = np.repeat(np.array(values, np.uint8), 4)[:, None].repeat(6, 1)
    with pytest.raises(UserError, match=r"it holds the labels .*, of which one is the class; pass that one's pixels"):
        read_drawn(written(tmp_path, Image.fromarray(drawn)))


def test_a_sorted_palette_has_its_class_where_it_is_not_black(tmp_path: Path) -> None:
    """As Pillow's quantize() and PNG optimisers leave a mask: white, or red, is label 0."""
    for colour in ((255, 255, 255), (128, 0, 0)):
        drawn = Image.new("RGB", (9, 8))
        drawn.paste(colour, (2, 3, 6, 7))
        sorted_image = drawn.quantize(2)
        shown = np.asarray(drawn)[:, :, 0] > 0
        assert np.asarray(sorted_image)[0, 0] == 1, "black must not be label 0 here"
        np.testing.assert_array_equal(read_drawn(written(tmp_path, sorted_image)), shown)
        support = Support(np.zeros((8, 9, 3), np.uint8), sorted_image, "mask")  # type: ignore[arg-type]
        np.testing.assert_array_equal(support.drawn((8, 9)), shown)
    drawn.paste((0, 128, 0), (0, 0, 2, 2))
    with pytest.raises(UserError, match="is black: the program that wrote it has sorted its palette"):
        read_drawn(written(tmp_path, drawn.quantize(3)))


def test_thin_values_beside_white_are_edges_and_a_stray_pixel_is_no_class(tmp_path: Path) -> None:
    drawn = np.zeros((40, 60), np.uint8)
    drawn[10:29, 10:40] = 255
    for between in (1, 127, 128):
        drawn[9, 10:40] = between
        read = read_drawn(written(tmp_path, Image.fromarray(drawn)))
        assert read.sum() == (drawn > 127).sum() > 500
    drawn[9], drawn[:5] = 0, 5  # less of a label than of white: either may be meant
    with pytest.raises(UserError, match="of which one is the class"):
        read_drawn(written(tmp_path, Image.fromarray(drawn)))


def test_a_drawn_mask_is_turned_upright(tmp_path: Path) -> None:
    drawn = np.zeros((6, 9), np.uint8)
    drawn[0, :2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    path = written(tmp_path, Image.fromarray(drawn), exif=exif)
    np.testing.assert_array_equal(read_drawn(path), np.rot90(drawn, -1) > 0)
    np.testing.assert_array_equal(read_binary(path).values, drawn > 0)  # of a data set: as it is stored


def test_a_drawn_mask_with_soft_edges(tmp_path: Path) -> None:
    disc = Image.fromarray(block(255, (120, 160))).resize((400, 300), Image.Resampling.BICUBIC)
    read = read_drawn(written(tmp_path, disc))
    np.testing.assert_array_equal(read, np.asarray(disc) > 127)
    np.testing.assert_array_equal(read_drawn(written(tmp_path, disc.convert("RGB"))), read)
