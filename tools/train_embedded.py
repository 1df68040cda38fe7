"""Train the three embedded backbones, alike: the same scenes in the same order, loss, optimizer and number of steps.

    python -m tools.train_embedded --out DIR [--seed 0] [--only tiny_resnet]

Scenes show combinations of form and appearance that are *not* classes of `shapes4i`. Every stage learns to tell form,
pattern and colour at every position (cosine classifiers, thrown away afterwards); ``tiny_clip`` also learns which
positions a caption speaks of, by a sigmoid loss between its dense image-text embeddings and captions (SigLIP, arXiv
2303.15343, per position). About 4, 4 and 7 minutes on one core. Accuracies are measured on held-out scenes of held-out
combinations and written beside the weights, with sizes, seconds and versions.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from diffup.backbones import embedded
from diffup.backbones.load import build
from diffup.backbones.open_clip import ClipFeatures
from diffup.backbones.timm import TimmFeatures
from diffup.data.render import COLOURS, COMBINATIONS, FORMS, PATTERNS, Scene, render
from diffup.data.shapes4i import CLASS_COMBINATIONS, OTHERS
from diffup.errors import command_line

STEPS = 900
BATCH = 16
SCENES = 6000
CROP = 114  # pixels of the scene, resized to INPUT: the scale at which shapes4i is encoded (160 → 224)
INPUT = 160
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
WARM_UP = 100
NOTHING_WEIGHT = 0.2  # of positions without an object, in the loss of form
HELD_OUT = tuple(OTHERS[i] for i in range(5, len(OTHERS), 9))  # combinations for the accuracies only
TRAINED = tuple(thing for thing in OTHERS if thing not in HELD_OUT)
ATTRIBUTES = {"form": FORMS, "pattern": PATTERNS, "colour": COLOURS}
TEMPLATES = ("{}", "a {}", "a photo of a {}.", "a picture of the {}")


def make_scenes(count: int, things: Sequence[Any], seed: int) -> list[Scene]:
    """Square scenes of 3 to 6 things drawn from `things`."""
    scenes = []
    for index in tqdm(range(count), desc="scenes", unit="scene"):
        rng = np.random.default_rng((seed, 77, index))
        picked = [things[int(i)] for i in rng.integers(len(things), size=int(rng.integers(3, 7)))]
        scenes.append(render(picked, rng))
    return scenes


class Heads(nn.Module):
    """Cosine classifiers of form, pattern and colour on every stage; form has "nothing" as one more value."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.sizes = [len(FORMS) + 1, len(PATTERNS), len(COLOURS)]
        self.stages = nn.ModuleList([nn.Conv2d(width, sum(self.sizes), 1, bias=False) for width in channels])
        self.scale = nn.Parameter(torch.tensor(math.log(12.0)))

    def forward(self, stages: Sequence[Tensor]) -> list[list[Tensor]]:
        """Per stage: logits [B, values, h, w] of form, pattern and colour."""
        out = []
        for features, layer in zip(stages, self.stages, strict=True):
            weight = F.normalize(layer.weight, dim=1)  # type: ignore[arg-type]
            logits = F.conv2d(F.normalize(features, dim=1), weight) * self.scale.exp()
            out.append(list(logits.split(self.sizes, dim=1)))
        return out


def batch_of(
    scenes: Sequence[Scene], indices: Sequence[int], rng: np.random.Generator
) -> tuple[Tensor, Tensor, list[Any]]:
    """Random crops: images [B, 3, INPUT, INPUT] in [0, 1], combination index + 1 per pixel, and the combinations."""
    images, labels = [], []
    things: list[Any] = []
    for index in indices:
        scene = scenes[index]
        top, left = rng.integers(scene.owner.shape[0] - CROP + 1), rng.integers(scene.owner.shape[1] - CROP + 1)
        image = scene.image[top : top + CROP, left : left + CROP]
        owner = scene.owner[top : top + CROP, left : left + CROP]
        values = []
        for thing in scene.objects:
            if thing not in things:
                things.append(thing)
            values.append(things.index(thing) + 1)
        label = np.asarray([*values, 0])[owner]
        if rng.random() < 0.5:
            image, label = image[:, ::-1], label[:, ::-1]
        images.append(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1))
        labels.append(torch.from_numpy(np.ascontiguousarray(label)))
    pixels = torch.stack(images).float() / 255
    pixels = F.interpolate(pixels, size=(INPUT, INPUT), mode="bilinear", antialias=True).clamp(0, 1)
    return pixels, torch.stack(labels), things


def on_grid(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Label at the centre of each cell of a grid, [B, h, w]."""
    return F.interpolate(labels[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()


def attribute_targets(things: Sequence[Any], labels: Tensor) -> list[Tensor]:
    """Form (the last value is "nothing"), pattern and colour per position; -100 where there is nothing to tell."""
    out = []
    for attribute, values in ATTRIBUTES.items():
        nothing = len(values) if attribute == "form" else -100
        table = [nothing, *(values.index(getattr(thing, attribute)) for thing in things)]
        out.append(torch.tensor(table)[labels])
    return out


def dense_loss(logits: list[list[Tensor]], labels: Tensor, things: Sequence[Any]) -> Tensor:
    """Mean cross-entropy of form, pattern and colour over stages, deeper stages counting more."""
    losses = []
    for weight, stage in zip((0.5, 0.75, 1.0), logits, strict=True):
        targets = attribute_targets(things, on_grid(labels, (stage[0].shape[-2], stage[0].shape[-1])))
        form, *appearance = zip(stage, targets, strict=True)
        # Most positions show nothing, and at full weight form is not learned before steps run out.
        losses.append(2 * weight * F.cross_entropy(*form, weight=torch.tensor([1.0] * len(FORMS) + [NOTHING_WEIGHT])))
        losses += [weight * F.cross_entropy(part, target) for part, target in appearance]
    return torch.stack(losses).sum()


def dense_embedding(features: ClipFeatures, last_stage: Tensor) -> Tensor:
    """What ``features.dense_text`` gives, [B, D, h, w], from a last stage that was computed already."""
    visual: Any = features.model.visual
    alone = rearrange(last_stage, "b c h w -> (b h w) c 1 1")
    embedding = visual.head(visual.trunk.forward_head(alone))
    return rearrange(embedding, "(b h w) d -> b d h w", b=last_stage.shape[0], h=last_stage.shape[2])


def caption_loss(
    features: ClipFeatures, last_stage: Tensor, labels: Tensor, things: Sequence[Any], scale: Tensor, bias: Tensor,
    rng: np.random.Generator,
) -> Tensor:  # fmt: skip
    """Sigmoid loss between every position and the caption of every thing in the batch."""
    dense = F.normalize(dense_embedding(features, last_stage), dim=1)
    texts = features.embed_text([TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(t.name) for t in things])
    logits = torch.einsum("bdhw,nd->bnhw", dense, texts) * scale.exp() + bias
    target = on_grid(labels, (dense.shape[-2], dense.shape[-1]))
    positive = F.one_hot(target, len(things) + 1)[..., 1:].permute(0, 3, 1, 2).float()
    return F.binary_cross_entropy_with_logits(logits, positive, pos_weight=torch.tensor(4.0)) * 20


@torch.inference_mode()
def accuracies(
    features: TimmFeatures | ClipFeatures, heads: Heads, scenes: Sequence[Scene], seed: int
) -> dict[str, float]:
    """Share of object positions whose form, pattern and colour the last two stages name rightly, and "nothing"."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (embedded.MEAN, embedded.STD))
    right, total = np.zeros(3), np.zeros(3)
    for start in range(0, len(scenes), BATCH):
        chunk = range(start, min(start + BATCH, len(scenes)))
        pixels, labels, things = batch_of(scenes, list(chunk), np.random.default_rng((seed, start)))
        logits = heads(features.stages((pixels - mean) / std))
        size = (logits[1][0].shape[-2], logits[1][0].shape[-1])
        target = on_grid(labels, size)
        wanted = attribute_targets(things, target)
        for i in range(3):
            both = logits[1][i] + F.interpolate(logits[2][i], size=size, mode="bilinear")
            inside = target > 0
            right[i] += float((both.argmax(1) == wanted[i])[inside].sum())
            total[i] += float(inside.sum())
    return {name: round(100 * right[i] / total[i], 1) for i, name in enumerate(ATTRIBUTES)}


def train(name: str, scenes: Sequence[Scene], held_out: Sequence[Scene], out: Path, seed: int, steps: int) -> None:
    """Train one backbone and write ``<name>.safetensors`` (fp16) and ``<name>.json``."""
    torch.manual_seed(seed)
    rng = np.random.default_rng((seed, 5))
    features = build(name)
    model = features.model
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (embedded.MEAN, embedded.STD))
    with torch.no_grad():
        heads = Heads([stage.shape[1] for stage in features.stages(torch.zeros(2, 3, INPUT, INPUT))])
    scale, bias = nn.Parameter(torch.tensor(math.log(10.0))), nn.Parameter(torch.tensor(-5.0))
    parameters = [*model.parameters(), *heads.parameters(), scale, bias]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    started = time.perf_counter()
    model.train()
    bar = tqdm(range(steps), desc=name)
    for step in bar:
        rate = min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate
        pixels, labels, things = batch_of(scenes, rng.integers(len(scenes), size=BATCH).tolist(), rng)
        pixels = (pixels - mean) / std
        stages = features.stages(pixels)
        loss = dense_loss(heads(stages), labels, things)
        if isinstance(features, ClipFeatures):
            loss = loss + caption_loss(features, stages[-1], labels, things, scale, bias, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.2f}")
    seconds = time.perf_counter() - started
    model.eval()
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.safetensors"
    save_file({key: v.half() if v.is_floating_point() else v for key, v in model.state_dict().items()}, path)
    document = {
        "mean": embedded.MEAN,
        "std": embedded.STD,
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": os.path.getsize(path),
        "seed": seed,
        "steps": steps,
        "batch": BATCH,
        "scenes": len(scenes),
        "seconds": round(seconds, 1),
        "accuracy_percent": accuracies(features, heads, held_out, seed),
        "accuracy_of": f"object positions of {len(held_out)} scenes of {len(HELD_OUT)} combinations unseen in training",
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
    }
    (out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    print(name, json.dumps(document["accuracy_percent"]), f"{seconds:.0f} s")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    assert not set(TRAINED) & set(CLASS_COMBINATIONS) and len(COMBINATIONS) == len(OTHERS) + len(CLASS_COMBINATIONS)
    parser = argparse.ArgumentParser(prog="python -m tools.train_embedded", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and facts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--only", choices=sorted(embedded.EMBEDDED), action="append", help="train just this one")
    args = parser.parse_args(argv)
    scenes = make_scenes(args.scenes, TRAINED, args.seed)
    held_out = make_scenes(max(16, args.scenes // 20), HELD_OUT, args.seed + 1)
    for name in args.only or list(embedded.EMBEDDED):
        train(name, scenes, held_out, args.out, args.seed, args.steps)
    return 0


if __name__ == "__main__":
    raise SystemExit(command_line(main))
