"""Parts of objects: what is kept, what becomes background, and that trainings without them are unchanged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from diffup.config import InputConfig, ModelConfig, TrainConfig
from diffup.episodes.cue_source import CueSource
from diffup.episodes.parts import SHARES, Part
from diffup.errors import UserError
from diffup.evaluation.encode import Encoder, FeatureCache
from diffup.training.sampler import EpisodeSampler
from tests.helpers.toy import ToyBackbone, ToyDataset


def two_objects() -> np.ndarray:
    mask = np.zeros((20, 12), np.uint8)
    mask[2:12, 1:4] = 1  # 10 rows
    mask[6:10, 7:10] = 1  # 4 rows
    mask[0, :] = 255
    return mask


def test_each_object_is_cut_by_its_own_height() -> None:
    mask = two_objects()
    upper, lower = Part(0.5, True).of(mask), Part(0.5, False).of(mask)
    assert np.flatnonzero((upper[:, 1:4] == 1).any(1)).tolist() == [2, 3, 4, 5, 6]
    assert np.flatnonzero((upper[:, 7:10] == 1).any(1)).tolist() == [6, 7]
    assert ((upper == 1) ^ (lower == 1))[mask == 1].all() and not (upper == 1)[mask != 1].any()
    assert (upper == 255).tolist() == (mask == 255).tolist() == (lower == 255).tolist()
    assert (mask == two_objects()).all()


@pytest.mark.parametrize("upper", [True, False])
@pytest.mark.parametrize("share", SHARES)
def test_a_single_row_is_left(share: float, upper: bool) -> None:
    mask = np.zeros((3, 3), np.uint8)
    mask[1, 1] = 1
    assert (Part(share, upper).of(mask) == mask).all()
    none = np.zeros((3, 3), np.uint8)
    assert (Part(share, upper).of(none) == none).all()


def test_interlocked_objects_are_cut_apart() -> None:
    """Boxes overlap, objects don't: each loses rows of its own alone."""
    mask = np.zeros((12, 12), np.uint8)
    mask[0:10, 0] = mask[9, 0:8] = 1  # an L
    mask[0:4, 4:8] = 1  # a block inside its box
    kept = Part(0.5, False).of(mask)
    assert np.flatnonzero((kept[:, 4:8] == 1).all(1)).tolist() == [2, 3, 9]
    assert np.flatnonzero(kept[:, 0] == 1).tolist() == [5, 6, 7, 8, 9]


def sampler(parts: float, cues: CueSource | None = None) -> EpisodeSampler:
    config = InputConfig(input_size=64, feature_grid=8, feature_dtype="float32")
    dataset: Any = ToyDataset()
    backbone: Any = ToyBackbone()
    features = FeatureCache(Encoder(backbone, config), dataset.image)
    pools = {c: dataset.pool(c) for c in (2, 3, 4, 5)}
    train = TrainConfig(steps=1, batch_size=6, max_shots=3, parts=parts)
    return EpisodeSampler(
        cues or CueSource(dataset, config), features, pools, 0, 0, ModelConfig(decoder_grid=16), train
    )


class Watched(CueSource):
    """Keeps which part was asked of which image."""

    def __init__(self) -> None:
        dataset: Any = ToyDataset()
        super().__init__(dataset, InputConfig())
        self.asked: list[tuple[str, Part | None]] = []

    def weights(self, image_id: str, class_index: int, kind: str, grid: int, part: Part | None = None) -> torch.Tensor:
        self.asked.append(("weights", part))
        return super().weights(image_id, class_index, kind, grid, part)

    def truth(self, image_id: str, class_index: int, grid: int, part: Part | None = None) -> Any:
        self.asked.append(("truth", part))
        return super().truth(image_id, class_index, grid, part)


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.5, 1, 5), (1.0, 6, 6)])
def test_support_and_query_are_cut_alike(share: float, low: int, high: int) -> None:
    cues = Watched()
    sampler(share, cues).step(0)
    cut = 0
    for place, (what, part) in enumerate(cues.asked):
        if what == "truth":
            cut += part is not None
            shown = part
        else:
            assert part == shown, place
    assert low <= cut <= high


def test_a_part_is_smaller_and_changes_nothing_that_is_kept() -> None:
    cues = Watched()
    image = ToyDataset().pool(2)[0]
    whole, part = cues.truth(image, 2, 16)[0], cues.truth(image, 2, 16, Part(0.5, True))[0]
    assert 0 < part.sum() < 0.8 * whole.sum() and (part <= whole).all()
    assert torch.equal(cues.truth(image, 2, 16)[0], whole)
    drawn = [cues.weights(image, 2, kind, 8, Part(0.3, False)) for kind in ("mask", "box", "scribble")]
    assert all(0 < w[0].sum() < cues.weights(image, 2, "mask", 8)[0].sum() for w in drawn)


def test_trainings_with_parts_are_other_trainings() -> None:
    assert sampler(0.0).drawn_by != sampler(0.3).drawn_by != sampler(0.4).drawn_by
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match=r"TrainConfig\.parts must be in"):
            TrainConfig(parts=share)
