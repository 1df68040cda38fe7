"""Three stages of any timm model, as channels-first maps.

A pyramid (ResNet, Swin, ConvNeXt, …) gives the ends of its last three levels, strides 8, 16 and 32 as a rule. A model
of one resolution (ViT and its kin) gives the blocks at relative depth 1/2, 3/4 and 1, with its final norm applied. So
stage i has the same relative depth in every architecture, which lets priors be compared across backbones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import nn

from diffup.errors import UserError

STAGES = 3
RELATIVE_DEPTHS = (0.5, 0.75, 1.0)
FINEST_STRIDE = 8


def depth_indices(blocks: int) -> list[int]:
    """0-based indices of the blocks at relative depth 1/2, 3/4 and 1.

    Raises:
        UserError: fewer than three blocks.
    """
    if blocks < STAGES:
        raise UserError(f"a backbone needs at least {STAGES} blocks or levels with outputs, this one has {blocks}")
    last = [math.ceil(depth * blocks) - 1 for depth in RELATIVE_DEPTHS]
    return [min(index, blocks - STAGES + stage) for stage, index in enumerate(last)]


def stage_indices(reductions: Sequence[int]) -> tuple[list[int], bool]:
    """Which outputs are the three stages.

    Args:
        reductions: stride of each output, in order of depth.

    Returns:
        indices, and whether the model has one resolution only (then its final norm fits every output).
    """
    level_ends = [i for i, stride in enumerate(reductions) if i + 1 == len(reductions) or reductions[i + 1] != stride]
    coarse = [i for i in level_ends if reductions[i] >= FINEST_STRIDE]
    for candidates in (coarse, level_ends):
        if len(candidates) >= STAGES:
            return candidates[-STAGES:], False
    return depth_indices(len(reductions)), len(level_ends) == 1


class TimmFeatures(nn.Module):
    """A timm model that gives three stages.

    Attributes:
        model: the timm model.
        heads: names of its classifier modules, which features don't need.
        mean, std: normalisation the model was trained with.
        fixed_size: the only input size (H, W) the architecture takes, or None.
        multiple: otherwise, H and W must be multiples of this.
    """

    def __init__(self, model: nn.Module) -> None:
        """Wrap `model`; raises UserError if it can't give intermediate features."""
        super().__init__()
        infos = getattr(model, "feature_info", None)
        if not infos or not hasattr(model, "forward_intermediates"):
            raise UserError(f"timm's {type(model).__name__} gives no intermediate features; choose another backbone")
        self.model = model
        config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
        heads = config.get("classifier") or ()
        self.heads: tuple[str, ...] = (heads,) if isinstance(heads, str) else tuple(heads)
        self.mean = tuple(float(value) for value in config["mean"])
        self.std = tuple(float(value) for value in config["std"])
        reductions = [int(info["reduction"]) for info in infos]
        self.indices, self.norm = stage_indices(reductions)
        # Attention in blocks (HaloNet, BAT) divides the coarsest map into whole blocks.
        sides: list[Any] = [getattr(module, "block_size", None) for module in model.modules()]
        blocks: list[int] = [side for side in sides if isinstance(side, int)]
        self.multiple = max(reductions) * max(blocks, default=1)
        self.fixed_size = _fixed_size(model, config)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The size nearest to (height, width) that the model takes."""
        return self.fixed_size or (nearest_multiple(height, self.multiple), nearest_multiple(width, self.multiple))

    def stages(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Three maps [B, C_s, h_s, w_s] from normalised images whose size `input_size` returned.

        Raises:
            UserError: the architecture refuses the size, or gives something else than three maps of the image's shape.
        """
        height, width = images_BCHW.shape[-2:]
        named = f"timm's {type(self.model).__name__} at {height} × {width} pixels"
        try:
            maps = self.model.forward_intermediates(  # type: ignore[operator]
                images_BCHW, indices=self.indices, norm=self.norm, output_fmt="NCHW", intermediates_only=True
            )
        except (AssertionError, ValueError, NotImplementedError) as error:  # how timm's models refuse an input
            gist = (str(error).strip() or "it takes another size").splitlines()[0]
            raise UserError(f"{named} gives no features: {gist:.200}. Choose another backbone") from error
        shapes = [tuple(stage.shape) for stage in maps]
        if len(maps) != STAGES or not all(len(s) == 4 and same_aspect(s[2:], (height, width)) for s in shapes):
            raise UserError(f"{named} gives no three maps of the image's shape but {shapes}. Choose another backbone")
        return tuple(maps)


def same_aspect(grid: tuple[int, ...], image: tuple[int, int]) -> bool:
    """Whether a map's sides are in the ratio of the image's, give or take one and a half positions."""
    (h, w), (height, width) = grid, image
    return abs(h * width - w * height) <= 1.5 * max(height, width)


def nearest_multiple(size: int, multiple: int) -> int:
    """The multiple nearest to `size`, at least one; halves go up."""
    return max(1, (2 * size + multiple) // (2 * multiple)) * multiple


def _fixed_size(model: nn.Module, config: dict[str, Any]) -> tuple[int, int] | None:
    patch_embed = getattr(model, "patch_embed", None)
    flexible = getattr(model, "dynamic_img_size", False) or getattr(patch_embed, "strict_img_size", True) is False
    if flexible or not config.get("fixed_input_size", False):
        return None
    height, width = getattr(patch_embed, "img_size", None) or config["input_size"][-2:]
    return int(height), int(width)


def build_timm(name: str, *, pretrained: bool = False) -> TimmFeatures:
    """Build a timm model that takes images of any size, where its architecture allows.

    Args:
        name: timm name, with tag or without.
        pretrained: download the weights from the hub (errors of the download pass through).

    Raises:
        UserError: the model gives no intermediate features.
    """
    # ViTs interpolate their position embedding with the first option, window models rebuild their masks with the
    # second; architectures that know neither refuse the argument.
    attempts: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
    for options in attempts:
        try:
            return TimmFeatures(timm.create_model(name, pretrained=pretrained, **options))
        except TypeError as error:
            if not options or "unexpected keyword" not in str(error):
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")
