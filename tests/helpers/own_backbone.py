"""A backbone of one's own: the smallest module that follows the protocol of `diffup.backbones.own`, and wrong ones.

`build` is its function for grids, ``"tests.helpers.own_backbone:build"``. Its features are colours at three strides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OwnBackbone(nn.Module):
    """Random colour features of three widths at strides 4, 8 and 16, always the same ones."""

    mean, std, multiple = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 16

    def __init__(self, widths: tuple[int, int, int] = (8, 12, 16)) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.mix = nn.ParameterList(torch.randn(width, 3, generator=generator) for width in widths)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Three maps [B, C, h, w], shallow to deep."""
        return [
            torch.einsum("cd,bdhw->bchw", mix, F.avg_pool2d(images, 4 * 2**stage)) for stage, mix in enumerate(self.mix)
        ]


class Wrong(nn.Module):
    """A module whose maps are those of `OwnBackbone`, changed by a function."""

    def __init__(self, change: Callable[[list[Tensor]], Any], **attributes: Any) -> None:
        super().__init__()
        self.right, self.change = OwnBackbone(), change
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, images: Tensor) -> Any:
        """Whatever the function makes."""
        return self.change(self.right(images))


def build() -> OwnBackbone:
    """The function that a grid names."""
    return OwnBackbone()


def needs_more(width: int) -> OwnBackbone:
    """A function that can't be called without arguments."""
    return OwnBackbone((width, width, width))


def nothing() -> None:
    """A function that builds no module."""
