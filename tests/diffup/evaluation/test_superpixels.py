"""Snap: a sharp edge is found again at full resolution, labels are not read, and no other prediction changes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diffup.config import InputConfig, ModelConfig, SampleConfig
from diffup.episodes.cue_source import CueSource
from diffup.episodes.episode import Episode
from diffup.episodes.protocols import PROTOCOLS
from diffup.errors import UserError
from diffup.evaluation import superpixels as module
from diffup.evaluation.encode import Encoder, FeatureCache
from diffup.evaluation.evaluate import Evaluation, evaluate, predict
from diffup.evaluation.scoring import upsample
from diffup.evaluation.superpixels import Superpixels, segmentations, snapped
from diffup.grid.axes import EVIDENCE
from diffup.models.diffup import DiffUpNet
from tests.helpers.toy import ToyBackbone, ToyDataset

SIZE = (90, 120)
INPUT = InputConfig(input_size=64, feature_grid=8, feature_dtype="float32")
EPISODES = [Episode(0, 0, "0_0", ("0_1",)), Episode(1, 1, "1_2", ("1_0",)), Episode(2, 1, "1_3", ("1_0",))]


def picture() -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A bright disc on dark noise, and where it is."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    disc = (y - 41) ** 2 + (x - 67) ** 2 < 26**2
    image = np.random.default_rng(0).integers(20, 40, (*SIZE, 3))
    image[disc] += 180
    return image.astype(np.uint8), disc


def iou(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    return float((mask & truth).sum() / (mask | truth).sum())


def evaluated(sample: SampleConfig, batch: int = 2, features: FeatureCache | None = None, protocol: str = "paired"):  # type: ignore[no-untyped-def]
    dataset = ToyDataset()
    cache = features or FeatureCache(Encoder(ToyBackbone(), INPUT), dataset.image)  # type: ignore[arg-type]
    model = DiffUpNet(ModelConfig(decoder_grid=16, width=16)) if sample.method == "diffup" else None
    what = Evaluation(
        model=model, sample=sample, annotation="mask", shots=1, class_indices=(0, 1), protocol=PROTOCOLS[protocol]
    )
    cues = CueSource(dataset, INPUT)  # type: ignore[arg-type]
    table = evaluate(what, EPISODES, cues, cache, batch_size=batch, progress=False)
    return table, predict(what, EPISODES, cues, cache)


def test_a_coarse_map_gets_the_edge_of_the_image() -> None:
    image, disc = picture()
    coarse = torch.from_numpy(disc[: 9 * 10, :120].reshape(9, 10, 10, 12).mean((1, 3)) * 2 - 1).float()
    fine = upsample(coarse, SIZE)
    plain = iou(fine.numpy() > 0, disc)
    assert plain < 0.93 and iou(snapped(fine, segmentations(image)).numpy() > 0, disc) > plain + 0.04


def test_a_mean_of_the_logit_and_three_averages() -> None:
    labels = (np.array([[0, 0], [1, 1]], np.int32), np.array([[0, 1], [0, 1]], np.int32), np.zeros((2, 2), np.int32))
    found = snapped(torch.tensor([[4.0, 0.0], [8.0, 0.0]]), labels)
    assert found.tolist() == [[(4 + 2 + 6 + 3) / 4, (0 + 2 + 0 + 3) / 4], [(8 + 4 + 6 + 3) / 4, (0 + 4 + 0 + 3) / 4]]
    with pytest.raises(ValueError, match="upsample it"):
        snapped(torch.zeros(2, 3), labels)


def test_superpixels_are_made_once_and_no_label_is_read() -> None:
    dataset, read = ToyDataset(), []

    def image(image_id: str) -> NDArray[np.uint8]:
        read.append(image_id)
        return dataset.image(image_id)

    kept = Superpixels(image)
    first, again = kept.get("0_0"), kept.get("0_0")
    assert first is again and read == ["0_0"] and not dataset.asked
    assert len(first) == 3 and all(labels.shape == (48, 64) and labels.min() == 0 for labels in first)


@pytest.mark.parametrize("method", ["diffup", "evidence", "prior_mean", "prototype", "insid3"])
def test_snap_goes_with_every_own_method_in_any_batch(method: str) -> None:
    plain, snap = SampleConfig(method=method), SampleConfig(method=method, snap=True)
    torch.manual_seed(0)
    table, shown = evaluated(snap)
    torch.manual_seed(0)
    alone, _ = evaluated(snap, batch=1)
    assert table["inter_fg"].equals(alone["inter_fg"]) and table["union_fg"].equals(alone["union_fg"])
    torch.manual_seed(0)
    for prediction, before in zip(shown, evaluated(plain)[1], strict=True):
        assert prediction.probability.shape == before.probability.shape
        assert not torch.equal(prediction.probability, before.probability)
        assert (prediction.variance is None) == (method != "diffup")
        if prediction.variance is not None and before.variance is not None:
            torch.testing.assert_close(prediction.variance, before.variance)


def test_what_is_scored_at_another_size_is_snapped_at_the_images_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []

    def spy(logit: torch.Tensor, labels: module.Labels) -> torch.Tensor:
        asked.append(tuple(logit.shape))
        return snapped(logit, labels)

    monkeypatch.setattr("diffup.evaluation.evaluate.snapped", spy)
    fixed = dataclasses.replace(PROTOCOLS["paired"], name="fixed", scored_at="30 × 30", sides=(("", 30),))
    monkeypatch.setitem(PROTOCOLS, "fixed", fixed)
    _, shown = evaluated(dataclasses.replace(EVIDENCE, snap=True), protocol="fixed")
    assert set(asked) == {(48, 64)}
    assert {tuple(prediction.probability.shape) for prediction in shown} == {(30, 30)}


def test_a_regions_cell_reads_features_that_are_cached() -> None:
    dataset = ToyDataset()
    features = FeatureCache(Encoder(ToyBackbone(), INPUT), dataset.image)  # type: ignore[arg-type]
    before, _ = evaluated(EVIDENCE, features=features)
    encoded = features.encoded
    after, _ = evaluated(dataclasses.replace(EVIDENCE, regions=True), features=features)
    assert features.encoded == encoded and list(before["prob_sum"]) != list(after["prob_sum"])


@pytest.mark.parametrize(
    "asked",
    [
        {"method": "prior_mean", "regions": True},
        {"regions": True},
        {"method": "adapter", "function": "a:b", "function_version": "1", "snap": True},
    ],
)
def test_what_does_not_go_together_is_refused(asked: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"SampleConfig\.(regions|snap)"):
        SampleConfig(**asked)  # type: ignore[arg-type]
