"""At which size predictions meet labels: every protocol's rule on photographs that are not square, pixel by pixel."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from diffup.config import InputConfig, SampleConfig
from diffup.episodes.cue_source import CueSource
from diffup.episodes.episode import Episode
from diffup.episodes.protocols import PROTOCOLS, Protocol
from diffup.evaluation.adapter import Cue
from diffup.evaluation.encode import Encoder, FeatureCache
from diffup.evaluation.evaluate import Evaluation, evaluate, predict
from diffup.evaluation.metrics import counts
from tests.helpers.toy import ToyBackbone, ToyDataset

HSNET_LIKE = dataclasses.replace(PROTOCOLS["paired"], name="hsnet-like", scored_at="400 × 400", sides=(("", 400),))
EPISODES = [Episode(0, 0, "0_0", ("0_1",)), Episode(1, 1, "1_2", ("1_0",))]
INPUT = InputConfig(input_size=64, feature_grid=8, feature_dtype="float32")


class Photographs(ToyDataset):
    """The toy with labels as photographs have them: a void rim, and an object of odd size."""

    def __init__(self, name: str, size: tuple[int, int]) -> None:
        super().__init__()
        self.name, self.size = name, size

    def image(self, image_id: str) -> NDArray[np.uint8]:
        rng = np.random.default_rng([int(part) for part in image_id.split("_")])
        return rng.integers(0, 256, (*self.size, 3)).astype(np.uint8)

    def mask(self, image_id: str, class_index: int) -> NDArray[np.uint8]:
        height, width = self.size
        labels = np.zeros(self.size, np.uint8)
        labels[height // 7 : height // 2, width // 5 : width - width // 3] = 255
        labels[height // 7 + 1 : height // 2 - 1, width // 5 + 1 : width - width // 3 - 2] = 1
        labels[-(height // 9) :, : width // 11] = 255
        return labels


def guess(query: NDArray[np.uint8], supports: list[NDArray[np.uint8]], cues: list[Cue]) -> NDArray[np.float32]:
    """A foreign method: a shifted block."""
    height, width = query.shape[:2]
    probability = np.full((height, width), 0.1, np.float32)
    probability[height // 5 : height // 2 + 3, width // 4 : width - width // 4] = 0.83
    return probability


def enlarged(values: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float64]:
    """Bilinear, pixel centres at halves, in float64; one axis after the other."""
    out = values.astype(np.float64)
    for axis, new in enumerate(size):
        old = out.shape[axis]
        place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, None)
        low = np.minimum(place.astype(int), old - 1)
        share = (place - low).reshape(-1, *[1] * (1 - axis))
        out = np.take(out, low, axis) * (1 - share) + np.take(out, np.minimum(low + 1, old - 1), axis) * share
    return out


def chosen(labels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Nearest neighbour, one pixel after the other."""
    height, width = labels.shape
    return np.array(
        [[labels[i * height // size[0], j * width // size[1]] for j in range(size[1])] for i in range(size[0])]
    )


@pytest.mark.parametrize(
    ("protocol", "dataset", "size", "scored"),
    [
        (PROTOCOLS["paired"], "pascal5i", (61, 93), (61, 93)),
        (PROTOCOLS["pfenet"], "pascal5i", (61, 93), (61, 93)),
        (PROTOCOLS["pfenet"], "coco20i", (93, 61), (93, 61)),
        (HSNET_LIKE, "pascal5i", (61, 93), (400, 400)),
        (PROTOCOLS["bam"], "pascal5i", (61, 93), (310, 473)),
        (PROTOCOLS["bam"], "coco20i", (93, 61), (641, 420)),
        (PROTOCOLS["bam"], "pascal5i", (375, 500), (355, 473)),
        (PROTOCOLS["panet"], "pascal5i", (61, 93), (417, 417)),
        (PROTOCOLS["panet"], "coco20i", (500, 375), (417, 417)),
    ],
    ids=lambda value: value.name if isinstance(value, Protocol) else str(value),
)
def test_labels_and_predictions_meet_at_the_protocols_size(
    protocol: Protocol, dataset: str, size: tuple[int, int], scored: tuple[int, int]
) -> None:
    data = Photographs(dataset, size)
    assert protocol.label_size(dataset, size) == scored
    what = Evaluation(
        model=None, sample=SampleConfig(method="prior_mean"), annotation="mask", shots=1, class_indices=(0, 1),
        method=guess, protocol=protocol,
    )  # fmt: skip
    found = evaluate(what, EPISODES, CueSource(data, INPUT), None, progress=False)  # type: ignore[arg-type]
    truth = chosen(data.mask("0_0", 0), scored)
    probability = enlarged(guess(data.image("0_0"), [], []), scored)
    assert np.abs(probability - 0.5).min() > 1e-4, "a tie would compare rounding"
    said, valid = probability > 0.5, truth != 255
    expected = [
        (said & (truth == 1)).sum(), ((said | (truth == 1)) & valid).sum(),
        (~said & (truth == 0)).sum(), ((~said | (truth == 0)) & valid).sum(),
    ]  # fmt: skip
    for _, row in found.iterrows():
        assert row[["inter_fg", "union_fg", "inter_bg", "union_bg"]].tolist() == expected
        assert sum(row["prob_count"]) == valid.sum() < truth.size


@pytest.mark.parametrize("protocol", [*PROTOCOLS.values(), HSNET_LIKE], ids=lambda p: p.name)
@pytest.mark.parametrize("method", ["prior_mean", "prototype"])
def test_own_predictions_have_the_protocols_size(protocol: Protocol, method: str) -> None:
    data = Photographs("pascal5i", (50, 77))
    cues = CueSource(data, INPUT)  # type: ignore[arg-type]
    features = FeatureCache(Encoder(ToyBackbone(), INPUT, None), data.image)  # type: ignore[arg-type]
    what = Evaluation(
        model=None, sample=SampleConfig(method=method), annotation="mask", shots=1, class_indices=(0, 1),
        protocol=protocol,
    )  # fmt: skip
    for prediction in predict(what, EPISODES, cues, features):
        assert prediction.probability.shape == protocol.label_size("pascal5i", (50, 77))


def test_void_padding_to_a_square_changes_no_count() -> None:
    """PFENet and BAM score a square padded with 255: the same counts as without the padding."""

    labels = Photographs("pascal5i", (355, 473)).mask("0_0", 0)
    said = np.random.default_rng(0).random(labels.shape) < 0.5
    padding = ((0, 473 - 355), (0, 0))
    padded = counts(np.pad(said, padding, constant_values=True), np.pad(labels, padding, constant_values=255))
    assert padded == counts(said, labels)
