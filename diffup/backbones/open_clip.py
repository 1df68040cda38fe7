"""Three stages, dense image-text embeddings and text embeddings of an open_clip model.

Dense embeddings follow the value path of MaskCLIP (arXiv 2112.01071, section 3): the last attention is replaced by its
value and output projections, so that every position keeps its own content instead of gathering the image's. What comes
after it (norm, projection to the space shared with text) stays. Attention over a single position is exactly that path,
which is how timm towers with any position-wise or attention pooling are read: each position is pooled on its own.

Letters: B batch · C channels · D shared image-text space · N texts or tokens · h w grid of a stage.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from einops import rearrange
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn

from diffup.backbones.timm import TimmFeatures, depth_indices, nearest_multiple
from diffup.errors import UserError

Tokenizer = Callable[[list[str]], torch.Tensor]
POOLED_PER_POSITION = ("avg", "map", "fast", "rot_attn")


class ClipFeatures(nn.Module):
    """An open_clip model that gives three stages and, where its head allows, dense embeddings to compare with text.

    Attributes:
        model: the open_clip model.
        mean, std: normalisation of its images.
        no_dense_text: why `dense_text` is impossible, ``""`` if it is possible.
    """

    heads: tuple[str, ...] = ()

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Callable[[], Tokenizer],
        mean: tuple[float, ...] = open_clip.OPENAI_DATASET_MEAN,
        std: tuple[float, ...] = open_clip.OPENAI_DATASET_STD,
    ) -> None:
        """Wrap `model`.

        Args:
            tokenizer: makes the tokenizer; called at the first text, since some need files of their own.
            mean, std: normalisation of RGB in [0, 1] that the model was trained with.

        Raises:
            UserError: an image tower that gives no intermediate features.
        """
        super().__init__()
        self.model = model
        self._make_tokenizer = tokenizer
        self._tokenizer: Tokenizer | None = None
        visual: Any = model.visual
        self.mean, self.std = tuple(mean), tuple(std)
        self.tower: VitTower | ResNetTower | TimmTower
        if isinstance(visual, VisionTransformer):
            self.tower = VitTower(visual)
        elif isinstance(visual, ModifiedResNet):
            self.tower = ResNetTower(visual)
        elif isinstance(visual, TimmModel):
            self.tower = TimmTower(visual)
        else:
            raise UserError(f"open_clip image tower {type(visual).__name__} is not supported; choose another model")
        self.no_dense_text = self.tower.no_dense_text

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The size nearest to (height, width) that the image tower takes."""
        return self.tower.input_size(height, width)

    def stages(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Three maps [B, C_s, h_s, w_s] from normalised images whose size `input_size` returned."""
        return self.tower.stages(images_BCHW)

    def dense_text(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """One embedding per position, [B, D, h, w], not normalised; images as for `stages`."""
        if self.no_dense_text:
            raise UserError(f"no dense image-text embeddings: {self.no_dense_text}")
        return self.tower.dense_text(images_BCHW)

    def embed_text(self, texts: list[str]) -> torch.Tensor:
        """Embeddings [N, D] of texts, L2-normalised."""
        if self._tokenizer is None:
            self._tokenizer = self._make_tokenizer()
        tokens = self._tokenizer(texts).to(next(self.model.parameters()).device)
        embedded: torch.Tensor = self.model.encode_text(tokens, normalize=True)  # type: ignore[operator]
        return embedded


class VitTower:
    """open_clip's own VisionTransformer; its position embedding is interpolated to the grid of the image."""

    def __init__(self, visual: VisionTransformer) -> None:
        self.visual = visual
        self.patch: tuple[int, int] = visual.patch_size
        self.blocks = len(visual.transformer.resblocks)
        last = visual.transformer.resblocks[-1]
        self.no_dense_text = ""
        if visual.attn_pool is not None:
            self.no_dense_text = "the image tower ends in an attention pool with several queries"
        elif not all(hasattr(last, part) for part in ("ln_1", "ls_1", "ln_2", "ls_2", "mlp")):
            self.no_dense_text = f"the last block ({type(last).__name__}) has no plain attention"

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return nearest_multiple(height, self.patch[0]), nearest_multiple(width, self.patch[1])

    def _positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """Position embedding [1 + h·w, C] for a grid (h, w); the class token's comes first."""
        positions = self.visual.positional_embedding
        if grid == tuple(self.visual.grid_size):
            return positions
        h, w = self.visual.grid_size
        patches = rearrange(positions[1:], "(h w) c -> 1 c h w", h=h, w=w)
        patches = F.interpolate(patches.float(), size=grid, mode="bicubic", antialias=True, align_corners=False)
        return torch.cat([positions[:1], rearrange(patches, "1 c h w -> (h w) c").to(positions.dtype)])

    def _blocks(self, images_BCHW: torch.Tensor, indices: list[int]) -> tuple[list[torch.Tensor], tuple[int, int]]:
        """Outputs [B, 1 + h·w, C] of the given blocks, and the grid (h, w)."""
        visual = self.visual
        patches = visual.conv1(images_BCHW)
        grid = (patches.shape[-2], patches.shape[-1])
        tokens = rearrange(patches, "b c h w -> b (h w) c")
        tokens = torch.cat([visual.class_embedding.expand(len(tokens), 1, -1).to(tokens.dtype), tokens], dim=1)
        tokens = visual.ln_pre(tokens + self._positions(grid).to(tokens.dtype))
        _, outputs = visual.transformer.forward_intermediates(tokens, indices=indices, stop_early=True)
        return outputs, grid

    def stages(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs, (h, w) = self._blocks(images_BCHW, depth_indices(self.blocks))
        if self.visual.attn_pool is None:  # with an attention pool, ln_post belongs to the pool's space
            outputs = [self.visual.ln_post(tokens) for tokens in outputs]
        return tuple(rearrange(tokens[:, 1:], "b (h w) c -> b c h w", h=h, w=w) for tokens in outputs)

    def dense_text(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        (tokens,), (h, w) = self._blocks(images_BCHW, [self.blocks - 2])
        last = self.visual.transformer.resblocks[-1]
        width = tokens.shape[-1]
        tokens = tokens[:, 1:]
        weight, bias = last.attn.in_proj_weight, last.attn.in_proj_bias
        value = F.linear(last.ln_1(tokens), weight[2 * width :], None if bias is None else bias[2 * width :])
        # As in MaskCLIP's code, the block's residual and MLP stay.
        tokens = tokens + last.ls_1(last.attn.out_proj(value))
        tokens = tokens + last.ls_2(last.mlp(last.ln_2(tokens)))
        embedded = self.visual.ln_post(tokens) @ self.visual.proj
        return rearrange(embedded, "b (h w) d -> b d h w", h=h, w=w)


class ResNetTower:
    """CLIP's ModifiedResNet: three levels, and the value path of its attention pool."""

    no_dense_text = ""
    multiple = 32

    def __init__(self, visual: ModifiedResNet) -> None:
        self.visual = visual

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return nearest_multiple(height, self.multiple), nearest_multiple(width, self.multiple)

    def stages(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Index 0 is the stem: 2, 3, 4 are layer2, layer3, layer4.
        output = self.visual.forward_intermediates(images_BCHW, indices=[2, 3, 4], intermediates_only=True)
        return tuple(output["image_intermediates"])

    def dense_text(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        features = rearrange(self.stages(images_BCHW)[-1], "b c h w -> b h w c")
        pool = self.visual.attnpool
        return rearrange(pool.c_proj(pool.v_proj(features)), "b h w d -> b d h w")


class TimmTower:
    """A timm model as image tower; each position goes through pooling and head alone."""

    def __init__(self, visual: TimmModel) -> None:
        self.visual = visual
        self.features = TimmFeatures(visual.trunk)
        trunk: Any = visual.trunk
        pool = getattr(visual.head, "pool", None)
        kind = type(pool).__name__ if pool is not None else _pool_kind(trunk)
        self.no_dense_text = ""
        if kind not in (*POOLED_PER_POSITION, "RotAttentionPool2d"):
            self.no_dense_text = f"the image tower pools by {kind!r}, which has no value path per position"

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return self.features.input_size(height, width)

    def stages(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.features.stages(images_BCHW)

    def dense_text(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        trunk: Any = self.visual.trunk
        features = trunk.forward_features(images_BCHW)
        batch = len(images_BCHW)
        if features.ndim == 3:  # tokens; pooling skips the prefix, so a position needs one of its own
            prefix = int(getattr(trunk, "num_prefix_tokens", 0))
            h, w = _token_grid(features.shape[1] - prefix, images_BCHW.shape[-2:])
            alone = rearrange(features[:, prefix:], "b n c -> (b n) 1 c").expand(-1, 1 + prefix, -1)
        elif getattr(trunk, "output_fmt", "NCHW") == "NHWC":
            h, w = features.shape[1:3]
            alone = rearrange(features, "b h w c -> (b h w) 1 1 c")
        else:
            h, w = features.shape[2:]
            alone = rearrange(features, "b c h w -> (b h w) c 1 1")
        embedded = self.visual.head(trunk.forward_head(alone))
        return rearrange(embedded, "(b h w) d -> b d h w", b=batch, h=h, w=w)


def _pool_kind(trunk: Any) -> str:
    """How a timm trunk pools: its ``global_pool``, or that of its head module."""
    for owner in (getattr(trunk, "head", None), trunk):
        pool = getattr(owner, "global_pool", None)
        kind = getattr(pool, "pool_type", pool)
        if isinstance(kind, str):
            return kind or "none"
    return "unknown"


def _token_grid(tokens: int, image_size: torch.Size) -> tuple[int, int]:
    """Grid (h, w) of `tokens` patches over an image, by its aspect ratio."""
    height, width = image_size
    h = round(math.sqrt(tokens * height / width))
    assert h * (tokens // h) == tokens, "the tokens form no rectangle"
    return h, tokens // h


def build_clip(model: str, tag: str, *, pretrained: bool = False) -> ClipFeatures:
    """Build an open_clip model.

    Args:
        model: open_clip model name.
        tag: pretrained tag. It also tells the normalisation and whether the weights want QuickGELU, so it matters even
            when the weights come from a file.
        pretrained: download the tag's weights (errors of the download pass through).

    Raises:
        UserError: unsupported image tower, or `pretrained` without a tag.
    """
    if pretrained and not tag:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise UserError(
            f"open_clip:{model} needs a pretrained tag to be downloaded, as in open_clip:{model}/TAG; tags: {tags}"
        )
    config = open_clip.get_pretrained_cfg(model, tag) if tag else {}
    muted = logging.root.manager.disable
    if not pretrained:
        logging.disable(logging.WARNING)  # open_clip warns of random weights before a file's can be loaded
    try:
        built = open_clip.create_model(
            model,
            pretrained=tag if pretrained else None,
            force_quick_gelu=bool(config.get("quick_gelu", False)),
            force_preprocess_cfg={key: config[key] for key in ("mean", "std") if key in config},
            pretrained_text=False,
            require_pretrained=pretrained,
        )
    finally:
        logging.disable(muted)
    preprocessing: Any = built.visual.preprocess_cfg
    return ClipFeatures(
        built, lambda: open_clip.get_tokenizer(model), mean=preprocessing["mean"], std=preprocessing["std"]
    )
