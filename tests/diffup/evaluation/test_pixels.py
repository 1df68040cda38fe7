"""Images as squares in 8 bits: rounded and nothing else, kept in shards, read by all backbones in place of images."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diffup.config import InputConfig
from diffup.errors import UserError
from diffup.evaluation.encode import Encoder, FeatureCache
from diffup.evaluation.pixels import Square, from_row, square, stacked, to_rows
from diffup.evaluation.shards import ShardStore
from tests.helpers.toy import ToyBackbone

SIDE = 48
ROUNDED = InputConfig(input_size=SIDE, feature_grid=8, pixel_dtype="uint8")
SIZES = ((40, 60), (7, 90), (200, 31))


def image(size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


IMAGES = {f"im{number}": image(size, number) for number, size in enumerate(SIZES)}


@pytest.mark.parametrize("size", SIZES)
def test_rounding_moves_a_pixel_by_half_a_step_at_most(size: tuple[int, int]) -> None:
    plain, rounded = (square(image(size), SIDE, dtype) for dtype in ("float32", "uint8"))
    assert plain.size == rounded.size == size
    assert rounded.pixels.dtype == torch.uint8 and rounded.pixels.shape == (3, SIDE, SIDE)
    moved = (stacked([rounded], "cpu") - stacked([plain], "cpu")).abs().max()
    assert 0 < moved <= 0.5 / 255 + 1e-6


def test_squares_in_shards_are_the_squares(tmp_path: Path) -> None:
    made = [square(each, SIDE, "uint8") for each in IMAGES.values()]
    store = ShardStore(tmp_path)
    store.write(list(IMAGES), to_rows(made))
    store.refresh()
    for image_id, expected in zip(IMAGES, made, strict=True):
        row = store.get(image_id)
        assert row is not None
        found = from_row(row)
        assert found.size == expected.size and torch.equal(found.pixels, expected.pixels)


def encoder(config: InputConfig = ROUNDED) -> Encoder:
    toy: Any = ToyBackbone()
    return Encoder(toy, config, toy)


def test_features_from_pixels_are_those_from_the_image_and_no_image_is_read(tmp_path: Path) -> None:
    plain = FeatureCache(encoder(), IMAGES.__getitem__).get(list(IMAGES))
    store = ShardStore(tmp_path)
    store.write(list(IMAGES)[:2], to_rows([encoder().square(IMAGES[i]) for i in list(IMAGES)[:2]]))
    store.refresh()
    read: list[str] = []

    def read_image(image_id: str) -> NDArray[np.uint8]:
        read.append(image_id)
        return IMAGES[image_id]

    found = FeatureCache(encoder(), read_image, pixels=store).get(list(IMAGES))
    assert read == ["im2"]
    for mine, expected in zip(found, plain, strict=True):
        assert mine.size == expected.size and mine.made_by == expected.made_by
        assert mine.text is not None and expected.text is not None
        pairs = zip((*mine.stages, mine.rgb, mine.text), (*expected.stages, expected.rgb, expected.text), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_a_damaged_row_is_read_from_the_image(tmp_path: Path) -> None:
    store = ShardStore(tmp_path)
    store.write(list(IMAGES), to_rows([Square(torch.zeros(3, SIDE, SIDE, dtype=torch.uint8), (1, 1))] * 3))
    path = next(tmp_path.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-100:] = bytes(100)[:-1] + b"\x01"
    path.write_bytes(content)
    store.refresh()
    sizes = [features.size for features in FeatureCache(encoder(), IMAGES.__getitem__, pixels=store).get(list(IMAGES))]
    assert sizes.count((1, 1)) < 3 and set(sizes) <= {(1, 1), *SIZES}


def test_rounding_is_told_from_none() -> None:
    assert encoder().identity != encoder(replace(ROUNDED, pixel_dtype="float32")).identity
    with pytest.raises(UserError, match="pixel_dtype must be one of float32, uint8"):
        InputConfig(pixel_dtype="float16")


def test_readers_read_each_image_once_ahead_and_change_nothing() -> None:
    """An image that can't be read is an error where it is asked for."""
    read: Counter[str] = Counter()

    def counted(image_id: str) -> NDArray[np.uint8]:
        read[image_id] += 1
        if image_id == "nowhere":
            raise UserError("no such image")
        return IMAGES[image_id]

    wanted = list(IMAGES)
    plain, ahead = FeatureCache(encoder(), IMAGES.__getitem__), FeatureCache(encoder(), counted, readers=2)
    ahead.ahead([*wanted, *wanted, "nowhere"])
    for mine, expected in zip(ahead.get(wanted), plain.get(wanted), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(mine.stages, expected.stages, strict=True))
    ahead.ahead(wanted)
    with pytest.raises(UserError, match="no such image"):
        ahead.get(["nowhere"])
    assert read == Counter([*wanted, "nowhere"])


def test_a_querys_size_and_low_resolution_outlive_its_features() -> None:
    """Memory for one image's features: nothing is encoded again for what episodes ask of a query at the end."""
    toy = encoder()
    features = FeatureCache(toy, IMAGES.__getitem__, limit_bytes=1)
    whole = features.get(list(IMAGES))
    assert features.encoded == len(IMAGES)
    for outline, each in zip(features.outlines(list(IMAGES) * 2), whole * 2, strict=True):
        assert outline.size == each.size and torch.equal(outline.rgb, each.rgb) and outline.stages == ()
    assert features.encoded == len(IMAGES)
    assert FeatureCache(toy, IMAGES.__getitem__).outlines(["im1"])[0].size == SIZES[1]
