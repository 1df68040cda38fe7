"""What a method costs by its architecture: parameters and GFLOPs, without weights or data.

A multiply and an add are two operations, as in `torch.utils.flop_counter`; elementwise work and resizing count nothing.
The matching of features (BAFT) is counted as its matrix products on the feature grid.

Letters: C channels · L positions of the feature grid · K supports.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffup.backbones.registry import check_backbone
from diffup.backbones.shapes import channels
from diffup.config import EncoderConfig, ModelConfig, SampleConfig
from diffup.models.baft import EVIDENCE, MAPS, self_affinities, visual_priors
from diffup.models.batch import Batch
from diffup.models.diffup import DiffUpNet

GIGA, STAGES = 1e9, 3


@lru_cache(maxsize=64)
def backbone_cost(name: str, side: int) -> dict[str, float]:
    """Parameters (millions) of a backbone's image encoder as built, and GFLOPs of its three stages for one image.

    Args:
        name: of the backbone; an unknown one is a UserError.
        side: of the square image in pixels.
    """
    from diffup.backbones.load import build

    # Those of open_clip can't be built without memory, and one's own may load weights.
    place = "meta" if check_backbone(name).kind in ("timm", "embedded") else "cpu"
    with torch.random.fork_rng(devices=[]), torch.device(place), torch.inference_mode():
        model = build(name).eval()
        height, width = model.input_size(side, side)
        images = torch.empty(1, 3, height, width)
        with FlopCounterMode(display=False) as counter:
            model.stages(images)
    vision = getattr(model.model, "visual", model.model)
    return {"backbone_mparams": _millions(vision), "encode_gflops": counter.get_total_flops() / GIGA}


@lru_cache(maxsize=64)
def matching_cost(name: str, grid: int, supports: int) -> dict[str, float]:
    """GFLOPs of the prior maps of one episode's visual cues (the query's text map is not counted)."""
    if not supports:
        return {"prior_gflops": 0.0}
    widths = channels(name)[0]
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        query = [torch.empty(1, width, grid, grid) for width in widths]
        shown = [torch.empty(1, supports, width, grid, grid) for width in widths]
        visual_priors(query, self_affinities(query), shown, [torch.empty(1, supports, 2, grid, grid)])
    return {"prior_gflops": counter.get_total_flops() / GIGA}


@lru_cache(maxsize=64)
def decoder_cost(model: ModelConfig, sample: SampleConfig, cues: int, grid: int) -> dict[str, float]:
    """Parameters (millions) of UAPF and UQDD, and GFLOPs of fusing and sampling one episode of `cues` cues."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        net = DiffUpNet(model).eval()
        side = model.decoder_grid
        kinds = torch.zeros(1, cues, dtype=torch.long)
        prior, odds = (torch.rand(1, cues, STAGES, maps, grid, grid) for maps in (MAPS, EVIDENCE))
        batch = Batch(prior, odds, kinds, torch.rand(1, 3, side, side))
        with FlopCounterMode(display=False) as counter:
            net.segment_priors(batch, sample, torch.zeros(1, side, side))
    return {"decoder_mparams": _millions(net), "decode_gflops": counter.get_total_flops() / GIGA}


def _millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def method_cost(
    backbone: str, input: EncoderConfig, model: ModelConfig | None, sample: SampleConfig, supports: int, texts: int
) -> dict[str, float]:
    """All costs of one episode, by name: see the functions above.

    Args:
        backbone: of the test.
        input: size of the image and the feature grid.
        model: of the checkpoint, None for a training-free method, which has no decoder.
        sample: how masks are made.
        supports, texts: visual cues and text prompts of an episode.
    """
    grid = input.feature_grid
    costs = {**backbone_cost(backbone, input.input_size), **matching_cost(backbone, grid, supports)}
    return costs if model is None else {**costs, **decoder_cost(model, sample, supports + texts, grid)}
