"""Backbones of many families with random weights: three stages, any image size, text where there is any."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from diffup.backbones.embedded import EMBEDDED
from diffup.backbones.load import Backbone, load_backbone
from diffup.backbones.registry import BackboneName, check_backbone, has_text_encoder, parse_backbone, suggest
from diffup.backbones.timm import depth_indices, nearest_multiple, stage_indices
from diffup.backbones.weights import file_identity

# name → strides of the three stages, or None where the architecture takes one input size only
TIMM_FAMILIES: dict[str, tuple[int, int, int] | None] = {
    "resnet18": (8, 16, 32),
    "convnext_atto": (8, 16, 32),
    "efficientnet_b0": (8, 16, 32),
    "mobilenetv3_small_050": (8, 16, 32),
    "regnetx_002": (8, 16, 32),
    "densenet121": (8, 16, 32),
    "pvt_v2_b0": (8, 16, 32),
    "swin_tiny_patch4_window7_224": (8, 16, 32),  # NHWC inside
    "swinv2_cr_tiny_ns_224": (8, 16, 32),
    "vit_tiny_patch16_224": (16, 16, 16),
    "vit_small_patch14_reg4_dinov2": (14, 14, 14),  # patch 14, four register tokens
    "vit_small_patch16_dinov3": (16, 16, 16),  # rotary position embedding
    "eva02_tiny_patch14_224": (14, 14, 14),
    "maxvit_pico_rw_256": None,
    "levit_128s": None,
}
CLIP_MODELS = {
    "open_clip:ViT-S-32-alt": (32, 32, 32),
    "open_clip:RN50/openai": (8, 16, 32),
    "open_clip:MobileCLIP2-S0": (8, 16, 32),  # a convolutional timm tower
}
HEIGHT, WIDTH = 75, 110


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=list(CLIP_MODELS))
def clip(request: pytest.FixtureRequest) -> Backbone:
    return load_backbone(request.param, "random:3")


def _images(batch: int = 1, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def _assert_stages(backbone: Backbone, strides: tuple[int, int, int] | None) -> None:
    stages = backbone.stages(_images(2))
    height, width = backbone.input_size(HEIGHT, WIDTH)
    assert len(stages) == 3
    for i, stage in enumerate(stages):
        assert stage.shape[0] == 2 and stage.dtype == torch.float32
        if strides is not None:
            assert stage.shape[2:] == (height // strides[i], width // strides[i])
        assert torch.isfinite(stage).all() and stage.std() > 0
        assert stage.is_inference() and not stage.requires_grad
    widths = [stage.shape[3] for stage in stages]
    assert widths == sorted(widths, reverse=True)


def _assert_orientation(backbone: Backbone) -> None:
    """A change in the image's top right corner changes the maps most in their top right corner."""
    before = _images()
    after = before.clone()
    after[:, :, : HEIGHT // 3, -WIDTH // 3 :] = 1 - after[:, :, : HEIGHT // 3, -WIDTH // 3 :]
    change = (backbone.stages(after)[0] - backbone.stages(before)[0]).norm(dim=1)[0]
    h, w = change.shape
    quarters = {
        (top, left): change[rows, columns].mean().item()
        for top, rows in ((True, slice(0, h // 2)), (False, slice(h - h // 2, h)))
        for left, columns in ((True, slice(0, w // 2)), (False, slice(w - w // 2, w)))
    }
    assert max(quarters, key=lambda corner: quarters[corner]) == (True, False), quarters


@pytest.mark.parametrize("name", TIMM_FAMILIES)
def test_timm_families_give_three_stages_of_non_square_images(name: str) -> None:
    backbone = load_backbone(name, "random")
    _assert_stages(backbone, TIMM_FAMILIES[name])
    _assert_orientation(backbone)
    assert not backbone.has_text
    assert backbone.weights == "random:0" and backbone.name == name


def test_open_clip_models_give_three_stages_of_non_square_images(clip: Backbone) -> None:
    _assert_stages(clip, CLIP_MODELS[clip.name])
    _assert_orientation(clip)


@pytest.mark.parametrize("name", list(EMBEDDED))
def test_embedded_backbones_load_their_shipped_weights(name: str) -> None:
    backbone = load_backbone(name)
    assert backbone.weights.startswith("sha256:")
    assert backbone.loaded_hash != load_backbone(name, "random").loaded_hash
    assert backbone.has_text == EMBEDDED[name].has_text == has_text_encoder(name)
    _assert_stages(backbone, None)
    _assert_orientation(backbone)


def test_stage_choice() -> None:
    assert depth_indices(12) == [5, 8, 11]
    assert depth_indices(24) == [11, 17, 23]
    assert depth_indices(3) == [0, 1, 2]
    for blocks in range(3, 50):
        first, second, third = depth_indices(blocks)
        assert 0 <= first < second < third == blocks - 1
    with pytest.raises(ValueError, match="at least 3"):
        depth_indices(2)
    assert stage_indices([2, 4, 8, 16, 32]) == ([2, 3, 4], False)
    assert stage_indices([4, 8, 16]) == ([0, 1, 2], False)
    assert stage_indices([4, 8, 8, 16, 16, 32]) == ([2, 4, 5], False)
    assert stage_indices([16] * 12) == ([5, 8, 11], True)
    assert stage_indices([8, 16, 16, 16]) == ([1, 2, 3], False)


def test_nearest_multiple() -> None:
    assert [nearest_multiple(size, 14) for size in (1, 14, 20, 21, 320, 224)] == [14, 14, 14, 28, 322, 224]


def test_patch_14_and_register_tokens_match_the_model_itself() -> None:
    backbone = load_backbone("vit_small_patch14_reg4_dinov2", "random:1")
    assert backbone.input_size(75, 110) == (70, 112)
    model: Any = backbone._features.model
    seen: dict[int, torch.Tensor] = {}
    hooks = [
        model.blocks[i].register_forward_hook(lambda _m, _i, out, i=i: seen.__setitem__(i, out)) for i in (5, 8, 11)
    ]
    stages = backbone.stages(_images())
    for hook in hooks:
        hook.remove()
    for index, stage in zip((5, 8, 11), stages):
        with torch.inference_mode():
            tokens = model.norm(seen[index])[:, 5:]  # one class and four register tokens come first
        assert stage.shape == (1, 384, 5, 8)
        assert torch.equal(stage.flatten(2).transpose(1, 2), tokens)


def test_normalisation_of_the_sidecar_is_applied(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model: Any = timm.create_model("resnet18").eval()
    save_file(model.state_dict(), tmp_path / "resnet18.safetensors")
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 0.125]
    (tmp_path / "resnet18.json").write_text(json.dumps({"mean": mean, "std": std}))
    images = _images(2, 64, 96)
    scaled = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    with torch.no_grad():
        hidden = model.layer1(model.maxpool(model.act1(model.bn1(model.conv1(scaled)))))
        expected = [hidden := layer(hidden) for layer in (model.layer2, model.layer3, model.layer4)]
    backbone = load_backbone("resnet18", weights_dir=tmp_path)
    for stage, wanted in zip(backbone.stages(images), expected):
        torch.testing.assert_close(stage, wanted)
    (tmp_path / "resnet18.json").unlink()
    assert load_backbone("resnet18", weights_dir=tmp_path).mean == (0.485, 0.456, 0.406)


def test_backbone_is_frozen_and_deterministic() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first, again, other = (load_backbone("resnet18", f"random:{seed}") for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected), "drawing random weights must not disturb the caller's generator"
    assert first.loaded_hash == again.loaded_hash != other.loaded_hash
    assert not first._features.training
    assert not any(parameter.requires_grad for parameter in first._features.parameters())
    for one, two in zip(first.stages(_images()), again.stages(_images())):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    "images", [torch.rand(3, 32, 32), torch.rand(1, 32, 32, 3), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)]
)
def test_images_of_another_form_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"'resnet18' takes float images \[B, 3, H, W\]"):
        load_backbone("resnet18", "random").stages(images)


def test_text_and_dense_embeddings_share_a_space(clip: Backbone) -> None:
    assert clip.has_text
    dense = clip.dense_text(_images(2))
    assert len(dense) == 2
    assert dense.shape[2:] == clip.stages(_images(2))[-1].shape[2:]
    torch.testing.assert_close(dense.norm(dim=1), torch.ones_like(dense[:, 0]))
    plain, prompted = (f"a photo of a {name}." for name in ("cat", "red ring")), ("cat", "red ring")
    texts = clip.embed_text(list(plain))
    assert texts.shape == (2, dense.shape[1])
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(texts, clip.embed_text(list(prompted), ("a photo of a {}.",)))
    both = clip.embed_text(list(prompted), ("a photo of a {}.", "{}"))
    torch.testing.assert_close(both, F.normalize(texts + clip.embed_text(list(prompted)), dim=1))
    with pytest.raises(ValueError, match="no texts"):
        clip.embed_text([])


def test_dense_embeddings_are_the_value_path(clip: Backbone) -> None:
    """Against each architecture's own forward pass where attention can only look at one position."""
    model: Any = clip._features.model
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (clip.mean, clip.std))
    images = _images(1, 64, 96)
    dense = clip.dense_text(images)
    normalised = (images - mean) / std
    with torch.inference_mode():
        if clip.name.startswith("open_clip:ViT"):
            tower: Any = clip._features.tower
            (tokens,), _ = tower._blocks(normalised, [tower.blocks - 2])
            only_itself = torch.full((tokens.shape[1],) * 2, float("-inf")).fill_diagonal_(0.0)
            last = model.visual.transformer.resblocks[-1](tokens, attn_mask=only_itself)
            expected = (model.visual.ln_post(last) @ model.visual.proj)[:, 1:].transpose(1, 2).unflatten(2, (2, 3))
        elif clip.name.startswith("open_clip:RN50"):
            pool = model.visual.attnpool
            positions, pool.positional_embedding = pool.positional_embedding, torch.nn.Parameter(torch.zeros(2, 2048))
            deepest = clip.stages(images)[-1]
            columns = [pool(deepest[:, :, y : y + 1, x : x + 1]) for y in range(2) for x in range(3)]
            pool.positional_embedding = positions
            expected = torch.stack(columns, dim=2).unflatten(2, (2, 3))
        else:
            trunk, head = model.visual.trunk, model.visual.head
            deepest = trunk.forward_features(normalised)
            columns = [
                head(trunk.forward_head(deepest[:, :, y : y + 1, x : x + 1])) for y in range(2) for x in range(3)
            ]
            expected = torch.stack(columns, dim=2).unflatten(2, (2, 3))
    torch.testing.assert_close(dense, F.normalize(expected, dim=1), rtol=1e-4, atol=1e-5)


def test_clip_vit_at_its_own_size_needs_no_interpolation() -> None:
    backbone = load_backbone("open_clip:ViT-S-32-alt", "random")
    model: Any = backbone._features.model
    images, indices = _images(1, 224, 224), depth_indices(len(model.visual.transformer.resblocks))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (backbone.mean, backbone.std))
    with torch.inference_mode():
        own = model.visual.forward_intermediates(
            (images - mean) / std, indices=indices, normalize_intermediates=True, intermediates_only=True
        )["image_intermediates"]
    for stage, expected in zip(backbone.stages(images), own):
        torch.testing.assert_close(stage, expected)


def test_position_embedding_is_interpolated_as_a_grid() -> None:
    tower: Any = load_backbone("open_clip:ViT-S-32-alt", "random")._features.tower
    h, w = tower.visual.grid_size
    ramp = torch.arange(h * w, dtype=torch.float32) // w  # row number
    tower.visual.positional_embedding.data = torch.cat([torch.full((1,), -5.0), ramp])[:, None].expand(-1, 256).clone()
    positions = tower._positions((h * 2, w + 3))
    assert positions.shape == (1 + (h * 2) * (w + 3), 256)
    assert positions[0, 0] == -5.0
    grid = positions[1:, 0].view(h * 2, w + 3)
    assert torch.allclose(grid, grid[:, :1], atol=1e-4) and (grid[1:, 0] > grid[:-1, 0]).all()


def test_models_without_a_value_path_say_so() -> None:
    backbone = load_backbone("open_clip:vit_relpos_medium_patch16_cls_224", "random")
    assert not backbone.has_text and len(backbone.stages(_images())) == 3
    with pytest.raises(ValueError, match=r"can't read text.*pools by 'token'.*companion"):
        backbone.dense_text(_images())
    with pytest.raises(ValueError, match=r"'resnet18' can't read text \(it has no text encoder\)"):
        load_backbone("resnet18", "random").embed_text(["cat"])


def test_names_are_parsed_without_asking_a_library() -> None:
    assert parse_backbone("resnet50.a1_in1k") == BackboneName(kind="timm", model="resnet50", tag="a1_in1k")
    assert parse_backbone("open_clip:ViT-B-16/openai") == BackboneName(kind="open_clip", model="ViT-B-16", tag="openai")
    assert parse_backbone("open_clip:RN50").tag == ""
    assert has_text_encoder("open_clip:RN50") and not has_text_encoder("resnet50")
    for bad in ("", "open_clip:", "open_clip:RN50/", "resnet50.", " resnet50"):
        with pytest.raises(ValueError, match="incomplete"):
            parse_backbone(bad)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("resnet5", "resnet50"),
        ("ResNet50x", "resnet50"),
        ("vit_small_patch14_dinov", "vit_small_patch14_dinov2"),
        ("resnet50.a1_in1", "resnet50.a1_in1k"),
        ("ViT-B-16", "open_clip:ViT-B-16"),
        ("open_clip:ViT-B16/openai", "open_clip:ViT-B-16"),
        ("open_clip:ViT-B-16/opnai", "open_clip:ViT-B-16/openai"),
        ("open_clip:RN50/laion2b", "open_clip:RN50/"),
    ],
)
def test_unknown_names_suggest_near_ones(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=r"^backbone .*did you mean") as caught:
        check_backbone(name)
    assert meant in str(caught.value)


def test_a_module_of_ones_own_is_told_how_to_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ours.py").touch()
    for name, known in (("ours.py:build", "ours:build"), ("./ours.py:build", "ours:build"), ("ours", "ours:function")):
        with pytest.raises(ValueError, match=f"write {known}"):
            check_backbone(name)


def test_hopeless_names_still_get_a_hint() -> None:
    assert suggest("qqqqqqqqqqqqqqqq") == []
    with pytest.raises(ValueError, match="list_models"):
        check_backbone("qqqqqqqqqqqqqqqq")


def test_file_that_changed_since_the_cell_was_made_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet18.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), path)
    identity = file_identity(path)
    assert load_backbone("resnet18", identity, weights_dir=tmp_path).weights == identity
    save_file(timm.create_model("resnet18").state_dict(), path)
    with pytest.raises(ValueError, match=rf"resnet18\.safetensors is sha256:\w+, but .*{identity}"):
        load_backbone("resnet18", identity, weights_dir=tmp_path)
    with pytest.raises(ValueError, match=r"no weights directory was given.*--weights-dir"):
        load_backbone("resnet18", identity)
    path.unlink()
    with pytest.raises(ValueError, match=r"has no file resnet18\.safetensors"):
        load_backbone("resnet18", identity, weights_dir=tmp_path)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet18.safetensors"
    save_file(timm.create_model("resnet10t").state_dict(), path)
    with pytest.raises(ValueError, match=r"resnet18\.safetensors does not fit ResNet.*missing: .*unexpected: "):
        load_backbone("resnet18", weights_dir=tmp_path)


def test_open_clip_weights_from_a_directory(tmp_path: Path) -> None:
    source = load_backbone("open_clip:ViT-S-32-alt", "random:9")
    torch.save(source._features.model.state_dict(), tmp_path / "ViT-S-32-alt.pth")
    loaded = load_backbone("open_clip:ViT-S-32-alt", weights_dir=tmp_path)
    assert loaded.loaded_hash == source.loaded_hash
    assert torch.equal(loaded.dense_text(_images()), source.dense_text(_images()))


@pytest.mark.slow
def test_openai_weights_get_the_activation_they_were_trained_with() -> None:
    openai, plain = (load_backbone(f"open_clip:ViT-B-32{tag}", "random") for tag in ("/openai", ""))
    kinds = [type(b._features.model.visual.transformer.resblocks[0].mlp.gelu).__name__ for b in (openai, plain)]
    assert kinds == ["QuickGELU", "GELU"]


@pytest.mark.parametrize("name", ["resnet18", "open_clip:RN50/openai"])
def test_hub_weights_offline_say_what_to_do(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=rf"backbone '{name}' could not be downloaded.*--weights-dir"):
        load_backbone(name, "hub")
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path))} has no .*\.safetensors either: put it there"):
        load_backbone(name, weights_dir=tmp_path)


def test_hub_weights_of_open_clip_need_a_tag() -> None:
    with pytest.raises(ValueError, match=r"open_clip:RN50/TAG; tags: openai"):
        load_backbone("open_clip:RN50", "hub")
