"""What plans need to know of backbones, so that a dry run of the shipped studies loads neither torch nor timm."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from diffup.backbones.registry import OPEN_CLIP_PREFIX, parse_backbone

SIDE = 320  # in pixels of the images whose operations are counted


@dataclass(frozen=True)
class Architecture:
    """Channels of the three stages together, and GFLOPs of one image of `SIDE`."""

    channels: int
    gflops: float


# As diffup.backbones.shapes and diffup.models.flops have them; tests/cluster/planning/test_counts.py compares.
KNOWN = {
    "tiny_resnet": Architecture(160, 0.74),
    "tiny_regnet": Architecture(720, 1.30),
    "tiny_clip": Architecture(232, 0.85),
    "mobilenetv2_100": Architecture(448, 1.14),
    "resnet50": Architecture(3584, 16.68),
    "resnet101": Architecture(3584, 31.83),
    "deit_tiny_patch16_224": Architecture(576, 5.86),
    "vit_base_patch16_224": Architecture(2304, 74.52),
    "vit_small_patch14_dinov2": Architecture(1152, 27.92),
    "vit_base_patch14_dinov2": Architecture(2304, 100.86),
    "open_clip:RN50": Architecture(3584, 21.91),
    "open_clip:RN101": Architecture(3584, 37.06),
    "open_clip:ViT-B-16": Architecture(2304, 68.59),
}


@lru_cache(maxsize=256)
def architecture(name: str) -> Architecture:
    """That of a backbone; one that is not in `KNOWN` is built, which loads torch.

    Raises:
        UserError: an unknown name, or an architecture that gives no three stages.
    """
    parsed = parse_backbone(name)
    plain = f"{OPEN_CLIP_PREFIX if parsed.kind == 'open_clip' else ''}{parsed.model}"
    if plain in KNOWN:
        return KNOWN[plain]
    from diffup.backbones.shapes import channels
    from diffup.models.flops import backbone_cost

    return Architecture(sum(channels(name)[0]), backbone_cost(name, SIDE)["encode_gflops"])
