"""Images as backbones get them: squares of one size, which no backbone changes. Rounded to 8 bits they are a tenth of
the features of a ResNet-50, so that they are what a GPU reads (`diffup.config.EncoderConfig.pixel_dtype`).

Letters: S side of the square.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Square:
    """An image, resized.

    Attributes:
        pixels: RGB [3, S, S]; float32 in [0, 1], or uint8.
        size: height and width of the original image in pixels.
    """

    pixels: Tensor
    size: tuple[int, int]


def square(image_HW3: NDArray[np.uint8], side: int, dtype: str) -> Square:
    """An RGB image resized to a square (bilinear, antialiased), in float32 or rounded to uint8."""
    image = torch.from_numpy(np.array(image_HW3)).permute(2, 0, 1)[None].float() / 255
    pixels = resized(image, side).clamp(0, 1)[0]
    size = (image_HW3.shape[0], image_HW3.shape[1])
    return Square((pixels * 255).round().to(torch.uint8) if dtype == "uint8" else pixels, size)


def stacked(squares: Sequence[Square], device: str | torch.device) -> Tensor:
    """Squares as a batch in [0, 1], [B, 3, S, S] in float32 on a device, to a GPU by way of pinned memory."""
    pixels = torch.stack([square.pixels for square in squares])
    pixels = pixels.pin_memory() if torch.device(device).type == "cuda" else pixels
    pixels = pixels.to(device, non_blocking=True)
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def resized(maps_BChw: Tensor, side: int) -> Tensor:
    """Maps at side × side (bilinear, antialiased)."""
    return F.interpolate(maps_BChw, size=(side, side), mode="bilinear", antialias=True)


def to_rows(squares: Sequence[Square]) -> dict[str, Tensor]:
    """Squares as rows of a `diffup.evaluation.shards.ShardStore`."""
    sizes = torch.tensor([square.size for square in squares], dtype=torch.int64)
    return {"pixels": torch.stack([square.pixels for square in squares]), "size": sizes}


def from_row(row: Mapping[str, Tensor]) -> Square:
    """Inverse of `to_rows` for one row."""
    height, width = row["size"].tolist()
    return Square(row["pixels"], (height, width))
