"""How fast a GPU encodes and evaluates, against what the card can do: ``python -m benchmarks.accelerator --out FILE``.

Encoding: images per second of ResNet-50 and ViT-B/16 (random weights: the time does not depend on them), 32 at a time,
in float32 and under bfloat16's autocast, from pixels in memory to features in memory; and of the backbone's forward
pass alone. Evaluation: episodes per second, 1-shot and 5-shot, with features in memory. The limit is measured in the
same run: the same number of multiplications as one large matrix product, in the same precision. Cells always run in
float32, so that their figures do not depend on the card; bfloat16 says what that costs. Runs on a CPU too, with
``--device cpu``, where it says nothing of interest but that it runs.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.decode_speed import Photographs, episodes, network, task
from diffup.backbones.load import load_backbone
from diffup.config import InputConfig
from diffup.episodes.cue_source import CueSource
from diffup.evaluation.encode import Encoder, FeatureCache
from diffup.evaluation.evaluate import evaluate
from diffup.models.card import versions

BACKBONES = ("resnet50", "vit_base_patch16_224")
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
MATRIX = 8192  # side of the square matrices of the limit
BATCH = 32


def clocked(work: Callable[[], object], device: str, rounds: int) -> float:
    """Median seconds of a call, the device's queue emptied before and after."""
    seconds = []
    for turn in range(rounds + 2):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        if turn >= 2:  # the first ones warm up
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def limit(device: str, precision: str, side: int, rounds: int) -> float:
    """Operations per second of a large matrix product."""
    dtype = PRECISIONS[precision] or torch.float32
    one, two = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / clocked(lambda: one @ two, device, rounds)


def encoding(name: str, args: argparse.Namespace, limits: dict[str, float]) -> list[tuple[str, ...]]:
    """Rows of one backbone."""
    backbone = load_backbone(name, "random:0", device=args.device)
    encoder = Encoder(backbone, InputConfig(input_size=args.size), None, args.device)
    dataset = Photographs(args.batch)
    images = [dataset.image(image_id) for image_id in dataset.image_ids]
    pixels = torch.rand(args.batch, 3, args.size, args.size, device=args.device)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        backbone.stages(pixels)
    work, rows = counter.get_total_flops(), list[tuple[str, ...]]()
    for precision, dtype in PRECISIONS.items():
        with torch.autocast(args.device, dtype=dtype, enabled=dtype is not None), torch.inference_mode():
            whole = clocked(lambda: encoder.encode(images), args.device, args.rounds)
            forward = clocked(lambda: backbone.stages(pixels), args.device, args.rounds)
        share = work / forward / limits[precision]
        rows.append(
            (
                name, precision, f"{args.batch / whole:.0f} images/s", f"{args.batch / forward:.0f} images/s",
                f"{work / forward / 1e12:.2f} TFLOP/s", f"{100 * share:.0f} %",
            )
        )  # fmt: skip
    return rows


def evaluating(args: argparse.Namespace) -> list[tuple[str, ...]]:
    """Rows of 1-shot and 5-shot, on ResNet-50's features."""
    encoder = Encoder(
        load_backbone("resnet50", "random:0", device=args.device), InputConfig(input_size=args.size), None, args.device
    )
    dataset, net = Photographs(24), network().to(args.device)
    cues, features = CueSource(dataset, encoder.config), FeatureCache(encoder, dataset.image)  # type: ignore[arg-type]
    features.get(dataset.image_ids)
    rows: list[tuple[str, ...]] = []
    for shots in (1, 5):
        asked = episodes(dataset, args.episodes, shots)
        what = task(net, shots)
        work = partial(evaluate, what, asked, cues, features, batch_size=args.batch, progress=False)
        for precision, dtype in PRECISIONS.items():
            with torch.autocast(args.device, dtype=dtype, enabled=dtype is not None):
                seconds = clocked(work, args.device, max(1, args.rounds // 3))
            rows.append((f"{shots}-shot", precision, f"{len(asked) / seconds:.0f} episodes/s"))
    return rows


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; with ``--out`` also write a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--backbones", type=lambda text: tuple(text.split(",")), default=BACKBONES)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--size", type=int, default=InputConfig().input_size)
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--matrix", type=int, default=MATRIX)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: no CUDA GPU; --device cpu only shows that this runs", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {platform.machine()}"
    limits = {precision: limit(args.device, precision, args.matrix, args.rounds) for precision in PRECISIONS}
    of = ", ".join(f"{package} {version}" for package, version in versions().items())
    lines = [f"{name}; Python {platform.python_version()}, {of}", ""]
    lines += [f"limit, {p}: {limits[p] / 1e12:.1f} TFLOP/s in a product of {args.matrix}² matrices" for p in limits]
    header = ("backbone", "precision", "pixels to features", "forward pass", "of it", "of the limit")
    lines += ["", *table(header, [row for backbone in args.backbones for row in encoding(backbone, args, limits)])]
    lines += ["", *table(("evaluation", "precision", "speed"), evaluating(args))]
    print("\n".join(lines))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
