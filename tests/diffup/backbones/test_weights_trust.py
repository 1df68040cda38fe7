"""Weights that give wrong features without an error: each is refused, or said, with the backbone and the file."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from diffup.backbones import weights as weights_io
from diffup.backbones.load import Backbone, load_backbone
from diffup.backbones.registry import check_tag
from diffup.config import InputConfig
from diffup.errors import UserError
from diffup.evaluation.encode import Encoder, FeatureCache
from tests.helpers.toy import ToyBackbone

CONFIG = InputConfig(input_size=64, feature_grid=4)
IMAGES = [np.full((48, 64, 3), value, np.uint8) for value in (10, 120, 250)]
NAME = "test_resnet"

pytestmark = pytest.mark.usefixtures("one_thread")


def state() -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in fresh()._features.model.state_dict().items()}


def fresh() -> Backbone:
    return load_backbone(NAME, "random:1")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["conv1.0.weight", "bn1.running_var"])
def test_a_weights_file_with_numbers_that_are_not_finite_is_refused(tmp_path: Path, where: str, bad: float) -> None:
    held = state()
    assert where in held
    held[where].view(-1)[0] = bad
    save_file(held, tmp_path / f"{NAME}.safetensors")
    with pytest.raises(UserError, match=rf"{NAME}\.safetensors is damaged: 1 of \d+ entries .*{where}.*fetch it again"):
        load_backbone(NAME, weights_dir=tmp_path)


def test_the_classifier_may_hold_anything(tmp_path: Path) -> None:
    held = state()
    (head,) = [key for key in held if key.endswith("fc.weight")]
    held[head][:] = float("nan")
    save_file(held, tmp_path / f"{NAME}.safetensors")
    assert load_backbone(NAME, weights_dir=tmp_path).loaded_hash == fresh().loaded_hash


def overflowing(tmp_path: Path, scale: float) -> Backbone:
    """Finite weights whose features overflow: what half of a damaged exponent does."""
    held = state()
    for key in held:
        if key.endswith(("bn1.weight", "bn2.weight", "bn3.weight")):
            held[key] *= scale
    save_file(held, tmp_path / f"{NAME}.safetensors")
    return load_backbone(NAME, weights_dir=tmp_path)


@pytest.mark.parametrize("scale", [1e18, 1e30])
def test_features_that_overflow_stop_the_encoding(tmp_path: Path, scale: float) -> None:
    """1e18: finite maps whose length overflows, which normalisation would turn into zeros without an error."""
    backbone = overflowing(tmp_path, scale)
    told = rf"backbone '{NAME}' with weights {tmp_path}/{NAME}\.safetensors gives features that are not finite"
    with pytest.raises(UserError, match=rf"{told}, for number 0 of its batch and|{told}, for number 0 of its batch"):
        Encoder(backbone, CONFIG).encode(IMAGES)
    cache = FeatureCache(Encoder(backbone, CONFIG), lambda image_id: IMAGES[int(image_id)])
    with pytest.raises(UserError, match=rf"{told}, for '2'"):
        cache.get(["2", "1"])
    assert cache.encoded == 0


class Damaged(ToyBackbone):
    """Stages, dense text or text embeddings with a bad value for the images brighter than 0.4."""

    source = "/weights/toy.pth"

    def __init__(self, part: str, bad: float) -> None:
        self.part, self.bad = part, bad

    def _spoil(self, part: str, found: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        found = found.clone()
        if part == self.part:
            found[images.mean(dim=(1, 2, 3)) > 0.4, 0, 0, 0] = self.bad
        return found

    def stages(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self._spoil(f"stage{i}", s, images_BCHW) for i, s in enumerate(super().stages(images_BCHW)))

    def dense_text(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self._spoil("dense", super().dense_text(images_BCHW), images_BCHW)

    def embed_text(self, prompts: list[str]) -> torch.Tensor:
        found = super().embed_text(prompts)
        return found * self.bad if self.part == "text" else found


@given(
    part=st.sampled_from(["stage0", "stage1", "stage2", "dense"]),
    bad=st.sampled_from([float("nan"), float("inf"), float("-inf"), 3e38]),
    batch=st.integers(1, 3),
)
@settings(deadline=None, max_examples=30)
def test_one_bad_number_in_one_image_stops_the_encoding(part: str, bad: float, batch: int) -> None:
    model: Any = Damaged(part, bad)
    encoder = Encoder(model, CONFIG, model)
    encoder.batch = batch
    cache = FeatureCache(encoder, lambda image_id: IMAGES[int(image_id)])
    with pytest.raises(UserError, match=r"backbone 'toy' with weights /weights/toy\.pth gives features that") as caught:
        cache.get(["0", "1", "2"])
    assert "'0'" not in str(caught.value) and "'1'" in str(caught.value)
    assert len(cache.get(["0"])) == 1, "an image that is sound is encoded"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_text_embeddings_that_are_not_finite_stop(bad: float) -> None:
    model: Any = Damaged("text", bad)
    encoder = Encoder(model, CONFIG, model)
    with pytest.raises(UserError, match=r"'toy' with weights /weights/toy\.pth gives a text embedding .* for 'red'"):
        encoder.embed_names(["red", "blue"])


# OpenAI's CLIP and its activation


@pytest.mark.parametrize("model", ["RN50", "ViT-B-16", "ViT-B-32", "ViT-L-14", "ViT-L-14-336"])
def test_a_file_under_a_name_that_does_not_tell_the_activation_is_asked_for_by_tag(model: str, tmp_path: Path) -> None:
    name = f"open_clip:{model}"
    for path in (tmp_path / f"{model}.safetensors", tmp_path / f"{model}.pt"):
        path.write_bytes(b"x")
        wanted = rf"{path.name}: .*openai.* want QuickGELU .*'{name}/openai' for OpenAI's weights"
        with pytest.raises(UserError, match=wanted):
            weights_io.weights_identity(name, weights_dir=tmp_path)  # what a plan calls
        with pytest.raises(UserError, match=wanted):
            load_backbone(name, "sha256:0123456789ab", weights_dir=tmp_path)
        assert weights_io.weights_identity(f"{name}/openai", weights_dir=tmp_path).startswith("sha256:")
        path.unlink()
    assert weights_io.weights_identity(name, weights_dir=tmp_path) == "hub"


@pytest.mark.parametrize(
    "name", ["resnet50", "tiny_clip", "open_clip:ViT-B-16/openai", "open_clip:ViT-B-16/laion2b_s34b_b88k",
             "open_clip:ViT-S-32-alt", "open_clip:ViT-B-16-quickgelu", "open_clip:MobileCLIP2-S0"],
)  # fmt: skip
def test_names_that_tell_the_activation_need_no_tag(name: str) -> None:
    check_tag(name, Path("file.pt"))


def test_the_sizes_in_openais_own_state_dicts_are_no_weights(tmp_path: Path) -> None:
    notes = {key: torch.tensor(224) for key in ("input_resolution", "context_length", "vocab_size")}
    torch.save({"visual.proj": torch.ones(2, dtype=torch.float16)} | notes, tmp_path / "RN50.pt")
    assert list(weights_io.load_state_dict(tmp_path / "RN50.pt")) == ["visual.proj"]


# Other files that fit and mislead


@pytest.mark.parametrize("names", [("model", "model_ema"), ("state_dict", "state_dict_ema"), ("model", "state_dict")])
def test_a_file_of_several_state_dicts_is_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    path = tmp_path / f"{NAME}.pth"
    torch.save({name: state() for name in names} | {"epoch": 3}, path)
    with pytest.raises(UserError, match=rf"{NAME}\.pth holds several state dicts \(.*\), which give other features"):
        load_backbone(NAME, weights_dir=tmp_path)


@pytest.mark.parametrize("wrap", [("model_ema",), ("model", "state_dict"), ("state_dict", "model")])
def test_one_state_dict_is_found_however_deep(tmp_path: Path, wrap: tuple[str, ...]) -> None:
    held: Any = state()
    for name in wrap:
        held = {name: held, "epoch": 3}
    torch.save(held | {"model_ema": None} if wrap[-1] != "model_ema" else held, tmp_path / f"{NAME}.pth")
    assert load_backbone(NAME, weights_dir=tmp_path).loaded_hash == fresh().loaded_hash


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_quantised_weights_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    held = state()
    held["conv1.0.weight"] = held["conv1.0.weight"].to(dtype)
    save_file(held, tmp_path / f"{NAME}.safetensors")
    with pytest.raises(UserError, match=rf"{NAME}\.safetensors is quantised \(conv1\.0\.weight {dtype}\)"):
        load_backbone(NAME, weights_dir=tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    held = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state().items()}
    save_file(held, tmp_path / f"{NAME}.safetensors")
    stages = load_backbone(NAME, weights_dir=tmp_path).stages(torch.rand(1, 3, 64, 64))
    assert all(stage.dtype == torch.float32 and stage.isfinite().all() for stage in stages)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
        ([0.5, 0.5, 0.5], [127.5, 127.5, 127.5]),
        ([0.5, 0.5, float("nan")], [0.5, 0.5, 0.5]),
        ([0.5, 0.5, 0.5], [0.5, 0.5, float("inf")]),
        ([-0.1, 0.5, 0.5], [0.5, 0.5, 0.5]),
    ],
)
def test_a_normalisation_for_other_images_is_refused(tmp_path: Path, mean: list[float], std: list[float]) -> None:
    save_file(state(), tmp_path / f"{NAME}.safetensors")
    (tmp_path / f"{NAME}.json").write_text(json.dumps({"mean": mean, "std": std}))
    with pytest.raises(UserError, match=rf"{NAME}\.json: .*images in \[0, 1\].*divide"):
        load_backbone(NAME, weights_dir=tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_normalisation_is_read_in_every_unicode_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / f"{NAME}.safetensors"
    (tmp_path / f"{NAME}.json").write_text('{"mean": [0, 0, 0], "std": [1, 1, 1]}', encoding=encoding)
    assert weights_io.normalisation_beside(NAME, path) == ((0, 0, 0), (1, 1, 1))


def test_a_file_whose_normalisation_nothing_tells_gets_a_warning(tmp_path: Path) -> None:
    """vit_tiny_patch16_224 has weights trained with mean 0.5, and DeiT's with ImageNet's, under other names."""
    name = "convnext_atto"
    means = {timm.get_pretrained_cfg(tagged).mean for tagged in timm.list_pretrained(f"{name}.*")}  # type: ignore[union-attr]
    assert len(means) == 1, "this test needs an architecture whose weights agree"
    for model, several in ((name, False), ("vit_small_patch16_224", True)):
        save_file(load_backbone(model, "random")._features.model.state_dict(), tmp_path / f"{model}.safetensors")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load_backbone(model, weights_dir=tmp_path)
        assert [f"{model}.json beside the file" in str(w.message) for w in caught] == [True] * several
        (tmp_path / f"{model}.json").write_text('{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}')
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_backbone(model, weights_dir=tmp_path)


# Images


@given(scale=st.floats(1.01, 1e4), shift=st.floats(-3, 3))
@settings(deadline=None, max_examples=25)
def test_images_of_another_range_are_refused(scale: float, shift: float) -> None:
    images = torch.linspace(0, 1, 64 * 64).expand(1, 3, -1).reshape(1, 3, 64, 64) * scale + shift
    told = r"'test_resnet' takes images in \[0, 1\], not from .* to .*; divide values of 0-255 by 255"
    with pytest.raises(UserError, match=told):
        BACKBONE.stages(images)


def test_images_of_the_whole_range_are_taken_and_nan_is_not() -> None:
    images = torch.rand(2, 3, 64, 64)
    images[0], images[1, :, 0, 0] = 0, 1
    assert BACKBONE.stages(images)[0].isfinite().all()
    images[1, 2, 3, 4] = float("nan")
    with pytest.raises(UserError, match="takes images in"):
        BACKBONE.stages(images)
    with pytest.raises(UserError, match=r"takes float images \[B, 3, H, W\]"):
        BACKBONE.stages(torch.rand(2, 1, 64, 64))


BACKBONE = fresh()
