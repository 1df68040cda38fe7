"""The embedded backbones: shipped, small, measured, and what they claim."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffup.backbones import embedded
from diffup.backbones.load import build, load_backbone
from diffup.backbones.open_clip import ClipFeatures
from diffup.data.render import render
from tools import train_embedded


def test_weights_together_stay_under_eight_megabytes() -> None:
    assert sum(embedded.weights_path(name).stat().st_size for name in embedded.EMBEDDED) <= 8e6


@pytest.mark.parametrize("name", list(embedded.EMBEDDED))
def test_facts_are_stated_and_training_was_alike(name: str) -> None:
    facts = embedded.facts(name)
    first = embedded.facts("tiny_resnet")
    for field in ("steps", "batch", "scenes", "seed"):
        assert facts[field] == first[field]
    assert set(facts["accuracy_percent"]) == {"form", "pattern", "colour"}
    assert facts["parameters"] == sum(p.numel() for p in embedded.build(name).parameters())
    assert facts["bytes"] == embedded.weights_path(name).stat().st_size


def test_the_upgrade_is_the_better_backbone_and_the_training_backbone_is_not_starved() -> None:
    source = embedded.facts("tiny_resnet")["accuracy_percent"]
    upgrade = embedded.facts("tiny_regnet")["accuracy_percent"]
    assert upgrade["form"] > source["form"]
    assert source["pattern"] > 2 * 100 / 4
    assert source["colour"] > 80


def test_tokenizer_knows_the_vocabulary_and_admits_what_it_does_not() -> None:
    tokens = embedded.tokenizer()(["a photo of a striped red ring.", "zebra"])
    assert tokens.shape == (2, embedded.CONTEXT)
    unknown = embedded.INDEX["<unknown>"]
    assert unknown not in tokens[0]
    assert tokens[1, 1] == unknown
    assert (tokens.max(dim=1).values == embedded.INDEX["<end>"]).all()


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="tiny_resnet"):
        embedded.build("tiny_resnext")


def test_training_reads_the_embedding_that_test_time_reads() -> None:
    features = build("tiny_clip").eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert isinstance(features, ClipFeatures)
        direct = train_embedded.dense_embedding(features, features.stages(images)[-1])
        torch.testing.assert_close(direct, features.dense_text(images))


def test_caption_lights_up_the_thing_it_names() -> None:
    """On scenes of combinations unseen in training, the caption's similarity is highest on its own thing."""
    backbone = load_backbone("tiny_clip")
    things = list(train_embedded.HELD_OUT)
    right = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        pair = [things[int(i)] for i in rng.choice(len(things), 2, replace=False)]
        scene = render(pair, rng, radii=(26.0, 34.0))
        image = torch.from_numpy(scene.image).permute(2, 0, 1)[None].float() / 255
        image = F.interpolate(image, size=(224, 224), mode="bilinear")
        text = backbone.embed_text([f"a photo of a {thing.name}." for thing in pair])
        similarity = torch.einsum("dhw,nd->nhw", backbone.dense_text(image)[0], text)
        owner = F.interpolate(torch.from_numpy(scene.owner)[None, None].float(), size=similarity.shape[1:])[0, 0]
        for own, other in ((0, 1), (1, 0)):
            if (owner == own).any() and (owner == other).any():
                right += bool(similarity[own][owner == own].mean() > similarity[own][owner == other].mean())
    assert right >= 34


def test_training_writes_weights_that_load(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(train_embedded, "BATCH", 2)
    assert train_embedded.main(["--out", str(tmp_path), "--steps", "2", "--scenes", "20", "--only", "tiny_resnet"]) == 0
    monkeypatch.setattr(embedded, "WEIGHTS", tmp_path)
    assert embedded.facts("tiny_resnet")["steps"] == 2
    assert len(load_backbone("tiny_resnet").stages(torch.rand(1, 3, 64, 64))) == 3
