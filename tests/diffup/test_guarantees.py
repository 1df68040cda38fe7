"""What a reader must be able to rely on: no truth leaks, the batch does not matter, any backbone goes the whole way."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import diffup.evaluation.evaluate as evaluation
import diffup.evaluation.scoring as scoring
from cluster.execution.run_cell import WorkContext, execute
from diffup.backbones.load import Backbone, load_backbone
from diffup.config import InputConfig, ModelConfig, SampleConfig, TrainConfig
from diffup.data.dataset import open_dataset
from diffup.data.shapes4i import generate
from diffup.episodes.cue_source import CueSource
from diffup.episodes.episode import Episode
from diffup.episodes.sampling import paired_episodes
from diffup.evaluation.encode import Encoder, FeatureCache
from diffup.evaluation.evaluate import Evaluation, evaluate, predict
from diffup.evaluation.scoring import Predicted, Prediction
from diffup.grid.cell import TrainingCell
from diffup.models.diffup import DiffUpNet
from tests.helpers.toy import ToyBackbone, ToyDataset

FOLD = 0
SHAPE = (48, 64)  # of the toy's images
INPUT = InputConfig(input_size=64, feature_grid=8)
MIXED = "mask+scribble+box"
# At an input of 160 none of the windows, patches and strides fits by luck.
ODD = InputConfig(input_size=160, feature_grid=10)
TIMM = (
    "swin_tiny_patch4_window7_224",  # channels last inside, windows of 7
    "convnext_atto",
    "vit_small_patch14_reg4_dinov2",  # patch 14, register tokens
    "efficientnet_b0",
    "regnety_002",
    "poolformer_s12",  # no attention
    "maxvit_pico_rw_256",  # one input size only
    "mobilevit_xxs",
    "eva02_tiny_patch14_224",  # rotary positions
    "resnetv2_18",
    "xcit_nano_12_p16_224",  # attention over channels
)
CLIP = ("open_clip:ViT-S-32-alt", "open_clip:RN50/openai", "open_clip:MobileCLIP2-S0")  # the last has a timm tower


pytestmark = pytest.mark.usefixtures("one_thread")


@lru_cache(maxsize=1)
def loaded(name: str) -> Backbone:
    """With random weights; the last one is kept."""
    return load_backbone(name, "random")


def network() -> DiffUpNet:
    """A decoder none of whose layers is still at its zero, so that everything it reads shows in what it says."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = DiffUpNet(ModelConfig(decoder_grid=16, width=16))
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return net.eval()


def task(annotation: str, shots: int, method: str = "diffup") -> Evaluation:
    return Evaluation(
        model=network() if method == "diffup" else None,
        sample=SampleConfig(method=method),
        annotation=annotation,
        shots=shots,
        class_indices=ToyDataset.folds[FOLD],
        fold=FOLD,
    )


def manifest(count: int, per_class: int = 8, shots: int = 5) -> list[Episode]:
    dataset = ToyDataset(per_class)
    pools = {c: dataset.pool(c) for c in dataset.folds[FOLD]}
    return paired_episodes(pools, fold=FOLD, shots=shots, episodes=count, seed=0)


def sources(config: InputConfig, backbone: Any, *, text: bool, batch: int = 8) -> tuple[CueSource, FeatureCache]:
    dataset = ToyDataset(8)
    encoder = Encoder(backbone, config, backbone if text else None)
    encoder.batch = batch
    return CueSource(dataset, config), FeatureCache(encoder, dataset.image)  # type: ignore[arg-type]


def digest(prediction: Prediction) -> str:
    """Of every byte that the model says."""
    maps = [m for m in (prediction.probability, prediction.variance, prediction.prior) if m is not None]
    return hashlib.sha256(
        b"".join(m.numpy().tobytes() for m in maps) + repr(prediction.predicted_iou).encode()
    ).hexdigest()


# No truth of a query reaches anything but the score


@pytest.mark.parametrize(
    ("annotation", "shots", "method"),
    [
        ("mask", 1, "diffup"),
        (f"{MIXED}+text", 5, "diffup"),
        ("text", 0, "diffup"),
        (MIXED, 5, "prior_mean"),
        ("box", 1, "prototype"),
    ],
)
def test_a_prediction_never_asks_for_the_querys_mask(annotation: str, shots: int, method: str) -> None:
    """Any look at it, for any class, is an error; the bytes are those of the honest run."""
    what = task(annotation, shots, method)
    for episode in manifest(3):
        cues, features = sources(INPUT, ToyBackbone(), text=True)
        honest = digest(predict(what, [episode], cues, features)[0])
        cues, features = sources(INPUT, ToyBackbone(), text=True)
        looked: list[str] = []
        mask = cues.dataset.mask

        def guarded(
            image_id: str, class_index: int, mask: Callable[..., Any] = mask, looked: list[str] = looked,
            query: str = episode.query,
        ) -> Any:  # fmt: skip
            looked.append(image_id)
            assert image_id != query, "the prediction looked at its query's mask"
            return mask(image_id, class_index)

        cues.dataset.mask = guarded  # type: ignore[method-assign]
        assert digest(predict(what, [episode], cues, features)[0]) == honest
        assert set(looked) == set(episode.supports[:shots]), "the guard was not in place"


def test_other_truths_change_the_score_and_not_a_byte_of_the_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through `evaluate` itself: masks of queries inverted."""
    what = task(MIXED, 3)
    asked = manifest(6)
    supports = {image for episode in asked for image in episode.supports[:3]}
    asked = [episode for episode in asked if episode.query not in supports]
    assert asked
    queries = {episode.query for episode in asked}
    honest_score = scoring.score
    said: list[list[str]] = []

    def recorded(predicted: Predicted, truths: list[NDArray[np.uint8]], threshold: float) -> list[dict[str, Any]]:
        said[-1].extend(digest(prediction) for prediction in predicted)
        return honest_score(predicted, truths, threshold)

    monkeypatch.setattr(evaluation, "score", recorded)
    tables = []
    for poisoned in (False, True):
        cues, features = sources(INPUT, ToyBackbone(), text=False)
        mask = cues.dataset.mask
        if poisoned:
            cues.dataset.mask = lambda i, c, mask=mask: 1 - mask(i, c) if i in queries else mask(i, c)  # type: ignore
        said.append([])
        tables.append(evaluate(what, asked, cues, features, progress=False))
    assert said[0] == said[1] and len(said[0]) == len(asked)
    assert (tables[0]["inter_fg"] != tables[1]["inter_fg"]).all()
    assert tables[0]["predicted_iou"].equals(tables[1]["predicted_iou"])


def test_labels_of_novel_classes_change_no_byte_of_a_checkpoint(tmp_path: Path) -> None:
    """Novel objects relabelled as other novel classes, then erased; a base class's labels do matter."""
    original = generate(tmp_path / "original" / "shapes4i", images=4, progress=False)
    dataset = open_dataset(original)
    novel = [c + 1 for c in dataset.novel_classes(FOLD)]  # as pixel values
    base = [c + 1 for c in dataset.base_classes(FOLD)]
    found = {"original": _train(original, tmp_path)}
    changes = {
        "relabelled": dict(zip(novel, [*novel[1:], novel[0]])),
        "erased": dict.fromkeys(novel, 0),
        "base": dict(zip(base, [*base[1:], base[0]])),
    }
    for name, change in changes.items():
        copy = tmp_path / name / "shapes4i"
        shutil.copytree(original.parent, copy)
        changed = 0
        for path in sorted((copy / "SegmentationClass").glob("*.png")):
            with Image.open(path) as image:
                palette, labels = image.getpalette(), np.asarray(image)
            table = np.arange(256, dtype=np.uint8)
            table[list(change)] = list(change.values())
            changed += int((table[labels] != labels).any())
            written = Image.fromarray(table[labels])
            if palette:
                written.putpalette(palette)
            written.save(path)
        assert changed > 4
        found[name] = _train(copy / original.name, tmp_path)
    assert found["relabelled"] == found["original"] and found["erased"] == found["original"]
    assert found["base"] != found["original"], "the test would not notice a change"


def _train(dataset_json: Path, root: Path) -> str:
    cell = TrainingCell(
        dataset="shapes4i",
        fold=FOLD,
        backbone="tiny_resnet",
        weights=load_backbone("tiny_resnet").weights,
        input=replace(INPUT, input_size=96),
        model=ModelConfig(decoder_grid=16, width=16),
        train=TrainConfig(steps=3, batch_size=2, max_shots=2, cue_weights=(1, 1, 1, 0)),
    )
    results = root / f"results-{dataset_json.parent.parent.name}"
    execute(cell, WorkContext(results=results, datasets={"shapes4i": str(dataset_json)}))
    folder = results / cell.key() / "checkpoint"
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(folder.iterdir()))).hexdigest()


# The batch is a matter of speed


@pytest.mark.slow
@pytest.mark.parametrize(("annotation", "shots"), [("mask", 1), (MIXED, 5)])
@pytest.mark.parametrize("name", ["toy", "resnet18", "vit_tiny_patch16_224", "convnext_atto", "open_clip:ViT-S-32-alt"])
def test_batches_of_one_and_eight_agree(name: str, annotation: str, shots: int) -> None:
    """Encoding and decoding one by one, and eight at a time: probabilities to 1e-4."""
    backbone = ToyBackbone() if name == "toy" else loaded(name)
    text = name != "toy" and backbone.has_text
    what = task(f"{annotation}+text" if text else annotation, shots)
    config = replace(INPUT, input_size=96)
    asked = manifest(8)
    together = predict(what, asked, *sources(config, backbone, text=text, batch=8))
    cues, features = sources(config, backbone, text=text, batch=1)
    for episode, one in zip(asked, together):
        alone = predict(what, [episode], cues, features)[0]
        torch.testing.assert_close(alone.probability, one.probability, atol=1e-4, rtol=0)
        assert alone.predicted_iou == pytest.approx(one.predicted_iou, abs=1e-4)
    assert max(float(one.probability.std()) for one in together) > 0.01, "flat maps agree without meaning it"


# Any backbone


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TIMM, *CLIP])
def test_any_backbone_goes_the_whole_way(name: str) -> None:
    """Photo to mask with random weights: masks, scribbles, and text where the model reads it; twice, the same bytes."""
    backbone = loaded(name)
    text = name in CLIP
    assert backbone.has_text == text
    what = task("mask+scribble+text" if text else "mask+scribble", 2)
    episode = manifest(1)[0]
    first, again = (
        predict(what, [episode], *sources(ODD, backbone, text=text))[0] for _ in range(2)
    )  # fmt: skip
    assert digest(first) == digest(again)
    assert first.variance is not None and first.prior is not None
    for one in (first.probability, first.variance, first.prior):
        assert one.shape == SHAPE and torch.isfinite(one).all()
        assert float(one.std()) > 1e-6, "a flat map says nothing of the image"
    assert float(first.prior.std()) > 0.05
    assert float(first.probability.min()) >= 0 and float(first.probability.max()) <= 1
    assert float(first.variance.min()) > 0 and 0 <= first.predicted_iou <= 1
    [row] = scoring.score(Predicted.of(first), [ToyDataset().mask(episode.query, episode.class_index)], 0.5)
    assert row["inter_bg"] + row["union_fg"] == SHAPE[0] * SHAPE[1]
