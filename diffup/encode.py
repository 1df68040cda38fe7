"""Encoding: the heavy, cacheable half. An image becomes features of three stages on one fixed grid, once per backbone.

Letters: C channels · D image-text dimensions · h w feature grid · R side of the decoder grid.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from diffup.backbones.load import Backbone
from diffup.config import InputConfig
from diffup.data.class_names import readable

INFO_GRID = 40  # side of the low-resolution RGB that query infos are computed from


@dataclass(frozen=True)
class Features:
    """What one image is to the rest of the method.

    Attributes:
        stages: three tensors [C, h, w], L2-normalised over C, rounded to the feature dtype.
        text: dense image-text embedding [D, h, w], or None where no text is read.
        rgb: low-resolution image [3, INFO_GRID, INFO_GRID] in [0, 1].
        size: height and width of the original image in pixels.
        made_by: `Encoder.identity` of what encoded the image.
    """

    stages: tuple[Tensor, ...]
    text: Tensor | None
    rgb: Tensor
    size: tuple[int, int]
    made_by: str = ""

    def nbytes(self) -> int:
        tensors = [*self.stages, self.rgb] + ([] if self.text is None else [self.text])
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _to_grid(maps_BChw: Tensor, grid: int) -> Tensor:
    if maps_BChw.shape[-2:] == (grid, grid):
        return maps_BChw
    return F.interpolate(maps_BChw.float(), size=(grid, grid), mode="bilinear", align_corners=False, antialias=True)


class Encoder:
    """A frozen backbone, and where text is read a text model, under one `InputConfig`.

    Args:
        backbone: what encodes images.
        config: input size, grid, dtype, prompts.
        text_model: the backbone itself or its companion; None where no text is read.
        device: torch device.

    Attributes:
        identity: backbone, its loaded weights and the configuration in words; features of equal identity go together.

    Raises:
        ValueError: `text_model` has no text encoder.
    """

    def __init__(
        self, backbone: Backbone, config: InputConfig, text_model: Backbone | None = None, device: str = "cpu"
    ) -> None:
        if text_model is not None and not text_model.has_text:
            raise ValueError(f"backbone {text_model.name!r} has no text encoder; name an open_clip companion model")
        self.backbone, self.config, self.text_model, self.device = backbone, config, text_model, device
        self._names: dict[tuple[str, ...], Tensor] = {}
        size, grid, dtype = config.input_size, config.feature_grid, config.feature_dtype
        reader = f", text by {text_model.name} [{text_model.loaded_hash}]" if text_model is not None else ""
        self.identity = f"{backbone.name} [{backbone.loaded_hash}] at {size} px on a {grid}-grid in {dtype}{reader}"

    @torch.inference_mode()
    def encode(self, images: Sequence[NDArray[np.uint8]]) -> list[Features]:
        """Encode RGB images [H, W, 3] of any sizes; each becomes a square of ``config.input_size``."""
        if not images:
            return []
        size, grid = self.config.input_size, self.config.feature_grid
        dtype = getattr(torch, self.config.feature_dtype)
        squares = torch.cat([_square(image, size) for image in images]).to(self.device)
        rgb = F.interpolate(squares, size=(INFO_GRID, INFO_GRID), mode="bilinear", antialias=True).cpu()
        stages = [F.normalize(_to_grid(s, grid).float(), dim=1).to(dtype).cpu() for s in self.backbone.stages(squares)]
        text = None
        if self.text_model is not None:
            text = F.normalize(_to_grid(self.text_model.dense_text(squares), grid).float(), dim=1).to(dtype).cpu()
        return [
            Features(
                stages=tuple(stage[i].clone() for stage in stages),
                text=None if text is None else text[i].clone(),
                rgb=rgb[i].clone(),
                size=(image.shape[0], image.shape[1]),
                made_by=self.identity,
            )
            for i, image in enumerate(images)
        ]

    @torch.inference_mode()
    def embed_names(self, names: Sequence[str]) -> Tensor:
        """Prompt-averaged, L2-normalised text embeddings of class names, [N, D]."""
        if self.text_model is None:
            raise ValueError(f"no text model beside backbone {self.backbone.name!r}; set InputConfig.companion")
        key = tuple(names)
        if key not in self._names:
            rows = []
            for name in names:
                prompts = [template.format(readable(name)) for template in self.config.prompts]
                rows.append(F.normalize(self.text_model.embed_text(prompts).float().mean(0), dim=0))
            self._names[key] = torch.stack(rows).cpu()
        return self._names[key]


def _square(image_HW3: NDArray[np.uint8], size: int) -> Tensor:
    pixels = torch.from_numpy(np.array(image_HW3)).permute(2, 0, 1)[None].float() / 255
    return F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True).clamp(0, 1)


class FeatureCache:
    """Features by image id, encoded on first use in batches and kept up to a number of bytes (oldest leave first)."""

    def __init__(
        self, encoder: Encoder, read: Callable[[str], NDArray[np.uint8]], *, batch: int = 8, limit_bytes: int = 4 << 30
    ) -> None:
        self.encoder, self.read, self.batch, self.limit = encoder, read, batch, limit_bytes
        self._kept: OrderedDict[str, Features] = OrderedDict()
        self._bytes = 0
        self.encoded = 0

    def get(self, image_ids: Sequence[str]) -> list[Features]:
        """Features of `image_ids`, in order; an id may repeat."""
        found = {image_id: self._kept[image_id] for image_id in image_ids if image_id in self._kept}
        missing = [image_id for image_id in dict.fromkeys(image_ids) if image_id not in found]
        for start in range(0, len(missing), self.batch):
            chunk = missing[start : start + self.batch]
            for image_id, features in zip(chunk, self.encoder.encode([self.read(i) for i in chunk]), strict=True):
                found[image_id] = features
                self._keep(image_id, features)
        return [found[image_id] for image_id in image_ids]

    def _keep(self, image_id: str, features: Features) -> None:
        self.encoded += 1
        self._kept[image_id] = features
        self._bytes += features.nbytes()
        while self._bytes > self.limit and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes()
