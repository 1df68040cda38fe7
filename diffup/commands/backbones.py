"""List backbones, or check one.

    diffup backbones                        # those that are shipped, and those of plug-ins
    diffup backbones ls dinov2              # all whose name contains a word
    diffup backbones check resnet50 --weights-dir DIR
    diffup backbones check my_package.my_module:build

``check`` loads a backbone, encodes an image of noise and prints the shapes of its three stages, where its weights came
from, and how long it took.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from diffup.commands.options import Count, Folder, Name, parse
from diffup.errors import UserError

RUNS = 3  # that are timed


@dataclass(frozen=True, kw_only=True)
class Check:
    """Options of ``check``."""

    name: tyro.conf.Positional[Name]
    """timm, open_clip:…, shipped, an entry point or package.module:build"""
    weights_dir: Folder = None
    """folder of weights files; others are downloaded by name"""
    size: Count = 320
    """side of the image in pixels"""
    device: Name = "cpu"
    """where it runs"""


def main(argv: Sequence[str]) -> int:
    """Run ``ls``, ``check``, or ``ls`` with a word alone; returns the exit code."""
    command, *rest = argv or ["ls"]
    if command in ("-h", "--help"):
        print(__doc__)
        return 0
    if command == "check":
        options = parse(Check, rest, prog="diffup backbones check", description=__doc__ or "")
        print(checked(options))
        return 0
    listed(*(rest if command == "ls" else argv))
    return 0


def listed(word: str = "", *more: str) -> None:
    """Print the backbones whose name contains a word; without one those that need no download.

    Raises:
        UserError: there is none, or several words.
    """
    from diffup.backbones.embedded import EMBEDDED
    from diffup.plugins import BACKBONES, entry_points

    if more:
        raise UserError(f"one word at a time, not {word!r} and {more[0]!r}; write: diffup backbones ls {word}")
    if not word:
        for name, spec in EMBEDDED.items():
            print(f"{name:14}{spec.family}")
        for name, function in entry_points(BACKBONES).items():
            print(f"{name:14}plug-in {function}")
        print("and any model of timm and open_clip; 'diffup backbones WORD' lists those with WORD in their name")
        return
    from diffup.backbones.registry import known_names

    found = [name for name in known_names() if word.lower() in name.lower()]
    if not found:
        raise UserError(f"no backbone has {word!r} in its name")
    print("\n".join(found))


def checked(options: Check) -> str:
    """What a check has found, in words.

    Raises:
        UserError: the backbone can't be loaded or does not give three stages of finite features.
    """
    import torch

    from diffup.backbones.load import load_backbone
    from diffup.backbones.own import check_steady
    from diffup.backbones.registry import parse_backbone

    if not 16 <= options.size <= 4096:
        raise UserError(f"--size {options.size}: an image has a side of 16 to 4096 pixels")
    began = time.perf_counter()
    backbone = load_backbone(options.name, weights_dir=options.weights_dir, device=options.device)
    loaded = time.perf_counter() - began
    if (parsed := parse_backbone(options.name)).kind == "own":
        check_steady(options.name, parsed.model)
    image = torch.rand(1, 3, options.size, options.size, generator=torch.Generator().manual_seed(0))
    stages = backbone.stages(image)
    for number, stage in enumerate(stages):
        if not stage.isfinite().all():
            raise UserError(f"backbone {options.name!r} gives values that are not finite in stage {number}")
    seconds = []
    for _ in range(RUNS):
        began = time.perf_counter()
        backbone.stages(image)[-1].sum().item()
        seconds.append(time.perf_counter() - began)
    height, width = backbone.input_size(options.size, options.size)
    text = "reads text" if backbone.has_text else "no text: name an open_clip companion for text cues"
    lines = [
        f"{backbone.name} works on {options.device}",
        f"weights        {backbone.source} ({backbone.weights}, loaded {backbone.loaded_hash})",
        f"normalisation  mean {_three(backbone.mean)}, std {_three(backbone.std)}",
        f"input          {height} x {width} for an image of {options.size} x {options.size}",
        *(f"stage {n}        {_shape(stage)}" for n, stage in enumerate(stages)),
        f"text           {text}",
        f"time           {loaded:.1f} s to load, {sorted(seconds)[RUNS // 2]:.3f} s per image",
    ]
    return "\n".join(lines)


def _three(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _shape(stage: object) -> str:
    _, channels, height, width = stage.shape  # type: ignore[attr-defined]
    return f"{channels} channels on {height} x {width}"
