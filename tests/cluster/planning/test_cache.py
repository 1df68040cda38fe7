"""What is kept on disk: how large it is, and whether it pays."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.options import Cache
from cluster.planning.cache import choose_cache, disk
from cluster.planning.rates import read_rates
from diffup.config import InputConfig
from diffup.errors import UserError
from diffup.grid.axes import PRIOR_MEAN, Backbone, evaluation_cells, tasks, training_cell
from diffup.grid.cell import Cell
from diffup.training.recipes import Recipe
from tests.cluster.planning.test_plan import DATA

INPUT = InputConfig(input_size=160, feature_grid=20)
BACKBONES = [Backbone(name=name, weights="random:0") for name in ("resnet18", "resnet50")]
TRAINED = training_cell(DATA, 0, BACKBONES[0], Recipe(input=INPUT))
FREE = evaluation_cells(
    DATA, 0, BACKBONES, tasks((1, 2, 3, 5), ("mask",)), sample=PRIOR_MEAN, config=INPUT, episodes=100
)


def in_8_bits(cells: list[Cell]) -> list[Cell]:
    return [replace(cell, input=replace(cell.input, pixel_dtype="uint8")) for cell in cells]


def test_disk_counts_each_image_once_a_backbone_and_each_triple_once() -> None:
    one = disk(FREE[:1], {"fake": 10**9})
    per_image = 20 * 20 * (128 + 256 + 512) * 2 + 3 * 40 * 40 * 4  # ResNet-18's last three levels in half precision
    assert (one.features, one.priors) == (200 * per_image, 100 * 3 * (8 + 7) * 20 * 20 * 4)
    nested = disk([cell for cell in FREE if cell.backbone == "resnet18"], {"fake": 10**9})
    assert (nested.features, nested.priors) == (600 * per_image, 5 * one.priors)
    assert disk(FREE[:1], {"fake": 7}).features == 7 * per_image
    banked = [replace(cell, input=replace(cell.input, bank=60)) for cell in FREE[:1]]
    both = disk([*FREE[:1], *banked], {"fake": 10**9})
    assert (both.features, both.priors) == (one.features, 2 * one.priors), "maps beside a bank are others"
    assert disk(FREE, {}).complete and not disk([TRAINED], {}).complete
    assert disk([TRAINED], {"fake": 30}).features == 30 * per_image


def test_pixels_are_counted_once_for_all_backbones_where_they_are_rounded() -> None:
    assert disk(FREE, {}).pixels == 0
    rounded = in_8_bits(FREE)
    most = max(cell.episodes * (1 + cell.shots) for cell in rounded)
    side = rounded[0].input.input_size
    assert disk(rounded, {}).pixels == most * 3 * side**2
    few = disk(rounded, {}, {"fake": 50}).pixels
    assert 0 < few <= 50 * 3 * side**2 and few > disk(rounded, {}, {"fake": 10}).pixels


@pytest.mark.parametrize(
    ("asked", "gpu", "plain", "rounded"),
    [
        ("auto", False, "features", "features"),
        ("auto", True, "features", "pixels"),
        ("features", True, "features", "features"),
        ("none", True, "none", "none"),
    ],
)
def test_without_rates_a_gpu_is_faster_than_a_disk_and_a_cpu_slower(
    asked: Cache, gpu: bool, plain: Cache, rounded: Cache
) -> None:
    assert choose_cache(asked, FREE, gpu=gpu).cache == choose_cache(asked, FREE, gpu=gpu, room=0).cache == plain
    assert choose_cache(asked, in_8_bits(FREE), gpu=gpu).cache == rounded


def test_features_are_kept_only_where_there_is_room() -> None:
    cells = in_8_bits(FREE)
    full = choose_cache("auto", cells, gpu=False, room=0)
    assert full.cache == "pixels" and "exceed the 0 B that are free" in full.why
    many = choose_cache("auto", [replace(cell, episodes=10**6) for cell in cells], gpu=False)
    assert many.cache == "pixels" and "exceed the 20.0 GB" in many.why
    drawn_often = [replace(cell, episodes=3000) for cell in cells]
    assert choose_cache("auto", drawn_often, gpu=False).cache == "pixels"
    assert choose_cache("auto", drawn_often, gpu=False, images={"fake": 100}).cache == "features"
    assert choose_cache("pixels", cells, gpu=False).cache == "pixels"


def test_features_are_kept_only_where_reading_them_is_faster_than_encoding_again() -> None:
    """ResNet-50 at 160 px has 4.17 GFLOP, and 2.9 MB of features in 20 × 20 positions."""
    resnet50 = [cell for cell in FREE if cell.backbone == "resnet50"]
    bytes_each = 20 * 20 * 3584 * 2 + 3 * 40 * 40 * 4
    slow = replace(read_rates(), encoding={"resnet50": 1.0}, disk=1e6, decode=1e-3)  # 4.17 s against 2.9 s
    assert choose_cache("auto", in_8_bits(resnet50), gpu=False, rates=slow).cache == "features"
    assert choose_cache("auto", in_8_bits(resnet50), gpu=True, rates=slow).cache == "features"  # a GPU, but a slow one
    fast = replace(slow, encoding={"resnet50": 0.1})
    chosen = choose_cache("auto", in_8_bits(resnet50), gpu=True, rates=fast)
    again = 16.68 / 4 * 0.1 + 3 * 160**2 / 1e6  # encoding, and reading the pixels
    assert chosen.cache == "pixels" and f"takes {bytes_each / 1e6 / again:.1f} times as long" in chosen.why
    assert choose_cache("auto", resnet50, gpu=True, rates=fast).cache == "none"  # no pixels to keep
    reading = replace(fast, decode=3.0)  # then each photograph would be read and resized again, which takes longer
    assert choose_cache("auto", resnet50, gpu=True, rates=reading).cache == "features"


def test_pixels_that_no_cell_reads_are_refused() -> None:
    with pytest.raises(UserError, match="no cell that is to be evaluated rounds its input"):
        choose_cache("pixels", FREE, gpu=False)
