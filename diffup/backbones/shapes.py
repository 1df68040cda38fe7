"""The widths of a backbone's features, from its architecture: no weights are read, nothing is computed."""

from __future__ import annotations

from functools import lru_cache

import torch

from diffup.backbones import embedded
from diffup.backbones.registry import check_backbone

PROBE = 224  # side in pixels of the image that is not there; channels don't depend on it


@lru_cache(maxsize=256)
def channels(name: str) -> tuple[tuple[int, int, int], int]:
    """Channels of the three stages, and dimensions of the space shared with text (0 where there is none).

    Raises:
        UserError: an unknown name, or an architecture that gives no three stages.
    """
    parsed = check_backbone(name)
    if parsed.kind == "open_clip":
        import open_clip

        config = open_clip.get_model_config(parsed.model) or {}
        vision = config["vision_cfg"]
        shared = int(config["embed_dim"])
        if timm_name := vision.get("timm_model_name"):
            return channels(timm_name)[0], shared
        width = int(vision.get("width", 64 if isinstance(vision["layers"], list) else 768))
        if isinstance(vision["layers"], list):  # a ResNet: its last three levels
            return (8 * width, 16 * width, 32 * width), shared
        return (width, width, width), shared
    from diffup.backbones.load import build

    place = "cpu" if parsed.kind == "own" else "meta"  # one's own may load weights
    with torch.device(place), torch.inference_mode():
        model = build(name).eval()
        height, width = model.input_size(PROBE, PROBE)
        images = torch.empty(1, 3, height, width)
        first, second, third = (int(stage.shape[1]) for stage in model.stages(images))
        reads = parsed.kind == "embedded" and embedded.EMBEDDED[parsed.model].has_text
        return (first, second, third), int(model.dense_text(images).shape[1]) if reads else 0
