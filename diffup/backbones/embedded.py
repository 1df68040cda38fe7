"""The three tiny backbones that are shipped with the package, so that everything runs with no network.

They were trained by `tools.train_embedded` on combinations of form and appearance that are not classes of
`shapes4i`. No torch at import.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffup.data.render import COLOURS, FORMS, PATTERNS
from diffup.errors import UserError, extra

if TYPE_CHECKING:
    import torch
    from torch import nn

WEIGHTS = Path(__file__).parent / "embedded_weights"
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CONTEXT = 12
CLIP_TOWER = "diffup_tiny_clip_tower"
WORDS = ("<pad>", "<start>", "<unknown>", "a", "photo", "of", "the", "picture")
# "<end>" comes last because open_clip reads a text's embedding at its largest index.
VOCABULARY = (*WORDS, *PATTERNS, *COLOURS, *FORMS, "<end>")
INDEX = {word: index for index, word in enumerate(VOCABULARY)}


@dataclass(frozen=True)
class EmbeddedSpec:
    """One embedded backbone.

    Attributes:
        family: what it is, in words.
        has_text: whether it reads text.
    """

    family: str
    has_text: bool = False


EMBEDDED: dict[str, EmbeddedSpec] = {
    "tiny_resnet": EmbeddedSpec("timm ResNet of four basic blocks"),
    "tiny_regnet": EmbeddedSpec("timm RegNetX of thirteen blocks"),
    "tiny_clip": EmbeddedSpec("open_clip ConvNeXt with a text transformer", has_text=True),
}


def _timm_facts() -> dict[str, Any]:
    return {"mean": MEAN, "std": STD, "input_size": (3, 160, 160), "classifier": ()}


def _resnet() -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    sizes: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (16, 32, 48, 80), "stem_width": 16}
    block: Any = BasicBlock  # timm types this argument as an instance
    return ResNet(block, num_classes=0, **sizes)


def _regnet() -> nn.Module:
    from timm.models.regnet import RegNet, RegNetCfg

    return RegNet(RegNetCfg(depth=13, w0=32, wa=30, wm=2.4, group_size=16), num_classes=0)


def _clip() -> nn.Module:
    import timm
    from timm.models.convnext import ConvNeXt

    with extra("clip"):
        from open_clip.model import CLIP

    if not timm.is_model(CLIP_TOWER):  # open_clip builds its image tower from a registered timm name

        def diffup_tiny_clip_tower(pretrained: bool = False, **options: Any) -> nn.Module:
            """timm entry point of the image tower: a ConvNeXt whose last level stays at stride 16."""
            for unused in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
                options.pop(unused, None)
            sizes: dict[str, Any] = {"depths": (1, 2, 4, 1), "dims": (24, 48, 112, 160)}
            model: nn.Module = ConvNeXt(patch_size=2, output_stride=16, **sizes, **options)
            model.pretrained_cfg = model.default_cfg = _timm_facts()  # type: ignore[assignment]
            return model

        diffup_tiny_clip_tower.__module__ = __name__
        timm.models.register_model(diffup_tiny_clip_tower)
    vision = {"timm_model_name": CLIP_TOWER, "timm_pool": "avg", "timm_proj": "linear", "image_size": 160}
    text = {"context_length": CONTEXT, "vocab_size": len(VOCABULARY), "width": 64, "heads": 4, "layers": 2}
    model = CLIP(embed_dim=96, vision_cfg=vision, text_cfg=text)
    model.visual.preprocess_cfg = {"mean": MEAN, "std": STD}
    return model


_BUILD: dict[str, Callable[[], Any]] = {"tiny_resnet": _resnet, "tiny_regnet": _regnet, "tiny_clip": _clip}


def build(name: str) -> nn.Module:
    """The architecture of an embedded backbone, randomly initialised.

    Raises:
        UserError: an unknown name.
    """
    if name not in EMBEDDED:
        raise UserError(f"unknown embedded backbone {name!r}; there are {', '.join(EMBEDDED)}")
    model: nn.Module = _BUILD[name]()
    if not EMBEDDED[name].has_text:
        model.pretrained_cfg = _timm_facts()  # type: ignore[assignment]
    return model


def weights_path(name: str) -> Path:
    """The shipped weights file of an embedded backbone."""
    return WEIGHTS / f"{name}.safetensors"


def facts(name: str) -> dict[str, Any]:
    """What was measured when it was trained: parameters, samples, seconds, accuracies (see ``weights/<name>.json``)."""
    document: dict[str, Any] = json.loads((WEIGHTS / f"{name}.json").read_text())
    return document


def tokens(texts: list[str]) -> torch.Tensor:
    """Whole words of a closed vocabulary to indices, int64 [N, CONTEXT]: start, words, end, padding."""
    import torch

    rows = []
    for text in texts:
        words = re.findall(r"[a-z]+", text.lower())[: CONTEXT - 2]
        row = [INDEX["<start>"], *(INDEX.get(word, INDEX["<unknown>"]) for word in words), INDEX["<end>"]]
        rows.append(row + [INDEX["<pad>"]] * (CONTEXT - len(row)))
    return torch.tensor(rows)


def tokenizer() -> Callable[[list[str]], torch.Tensor]:
    """The tokenizer of ``tiny_clip``."""
    return tokens
