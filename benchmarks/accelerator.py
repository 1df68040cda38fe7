"""What this machine does a second, on a GPU or a CPU, and what the paper's grid would take on it.

    python -m benchmarks.accelerator --out RATES.json

Photographs read and resized, images encoded (from pixels in memory; and both at once), prior maps, episodes and
training steps, with ResNet-50 and ViT-B/16 of random weights (the time does not depend on them), in float32 and in
bfloat16 (left out where a large matrix product is ten times as slow in it: such processors have no instructions for
it); all but encoding is in float32 either way, as in cells. "Of the limit": of what that product reaches in the same
precision. Each measurement repeats its work for ``--seconds`` and takes the median call. Busy: on a GPU the share of a
call's time in which a kernel or a copy runs, on a CPU the processor's seconds per thread. The file is what ``--rates``
of a study reads (`cluster.planning.rates`). It takes a few minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.decode_speed import Photographs, episodes, machine, network, task
from benchmarks.measure import PRECISIONS, Bench, Row, reading_disk, table, threads_of_torch
from cluster.execution.memory import measured
from cluster.planning.cache import disk
from cluster.planning.estimate import duration
from cluster.planning.forecast import PARTS, STEPS, forecast
from cluster.planning.rates import ANNOTATIONS, FORMAT, SUPPORTS, rates_of
from cluster.storage.sizes import format_size
from diffup.backbones.load import load_backbone
from diffup.config import VISUAL_CUES, InputConfig, ModelConfig, SampleConfig
from diffup.data.images import read_photo
from diffup.episodes.cue_source import CueSource
from diffup.evaluation.encode import Encoder, FeatureCache
from diffup.evaluation.evaluate import evaluate, triples
from diffup.evaluation.pixels import Square
from diffup.evaluation.priors import PriorSource, Triple
from diffup.grid.cell import Cell
from diffup.models.card import versions
from diffup.models.flops import backbone_cost, decoder_cost, matching_cost
from diffup.training.recipes import pascal5i
from diffup.training.sampler import EpisodeSampler
from diffup.training.trainer import train
from experiments import full_grid

BACKBONES = ("resnet50", "vit_base_patch16_224")
SHOTS = (1, 5, 10)
JPEGS, JPEG_SIZE, QUALITY = 32, (640, 480), 90
IMAGES = 24  # in memory, for prior maps and episodes


def photographs(folder: Path) -> list[Path]:
    """JPEG files, made."""
    made, paths = Photographs(JPEGS), []
    for image_id in made.image_ids:
        paths.append(folder / f"{image_id}.jpg")
        Image.fromarray(made.image(image_id)).resize(JPEG_SIZE, Image.Resampling.BICUBIC).save(
            paths[-1], quality=QUALITY
        )
    return paths


def reading(bench: Bench, config: InputConfig, paths: Sequence[Path]) -> tuple[dict[str, float], Callable[..., Square]]:
    """Photographs read and resized a second, on one core and on all; and what does it."""
    encoder = Encoder(load_backbone("tiny_resnet", device="cpu"), config)

    def read(path: Path) -> Square:
        return encoder.square(read_photo(path).pixels)

    cores = os.cpu_count() or 1
    with threads_of_torch(1), ThreadPoolExecutor(cores) as pool:
        measure = partial(bench.measure, unit="image", count=len(paths))
        one = measure("JPEGs read and resized, 1 thread", work=lambda: [*map(read, paths)], threads=1)
        many = measure(f"JPEGs read and resized, {cores} threads", work=lambda: [*pool.map(read, paths)], threads=cores)
    return {"one": one, "many": many, "threads": cores}, read


def encoding(
    bench: Bench, name: str, config: InputConfig, paths: Sequence[Path], read: Callable[..., Square], readers: int
) -> list[dict[str, Any]]:
    """Rows of one backbone, as rates."""
    backbone = load_backbone(name, "random:0", device=bench.device)
    encoder = Encoder(backbone, config, None, bench.device)
    size, gflops = encoder.batch, backbone_cost(name, config.input_size)["encode_gflops"]
    batch = [read(paths[i % len(paths)]) for i in range(size)]
    files = [*paths] * 8 if bench.cuda else paths[:4]
    chunks = [files[i : i + size] for i in range(0, len(files), size)]

    def both() -> None:
        with ThreadPoolExecutor(readers) as pool:
            waiting = deque([[pool.submit(read, path) for path in chunk] for chunk in chunks])
            while waiting:
                encoder.encode_visual([each.result() for each in waiting.popleft()])

    rows = []
    for precision in bench.precisions:
        encoder = Encoder(backbone, replace(config, precision=precision), None, bench.device)
        measure = partial(bench.measure, unit="image", precision=precision, gflops=gflops)
        alone = measure(f"{name}: encoded", count=size, work=partial(encoder.encode_visual, batch))
        peak, busy = bench.rows[-1].peak_mb, bench.rows[-1].busy
        together = measure(
            f"{name}: read, resized and encoded", count=len(files), work=both, threads=0 if bench.cuda else 1 + readers
        )
        rows.append(
            {
                "backbone": name, "precision": precision, "images_per_s": alone, "overlapped_images_per_s": together,
                "gflops": gflops, "batch": size, "busy": busy, "peak_mb": peak,
                "of_limit": alone * gflops * 1e9 / bench.limits[precision],
            }
        )  # fmt: skip
    return rows


def matching(bench: Bench, name: str, cues: CueSource, features: FeatureCache, ids: Sequence[str]) -> dict[str, Any]:
    """Prior maps a second with features in memory: queries of their own, and as a grid shares them."""
    grid = features.encoder.config.feature_grid
    queries = ids[: 10 if bench.cuda else 2]
    mates = {query: [mate for mate in ids if mate != query][:SUPPORTS] for query in queries}
    alone = [Triple(query, mates[query][0], 0, "mask") for query in queries]
    shared = [Triple(query, mate, 0, "mask") for query in queries for mate in mates[query]]
    annotated = [Triple(t.query, t.support, 0, kind) for t in shared for kind in VISUAL_CUES]
    pair, many = (matching_cost(name, grid, k)["prior_gflops"] for k in (1, SUPPORTS))
    of = dict[str, float]()
    for key, what, wanted, gflops in (
        ("distinct", "prior maps, a query each", alone, pair),
        ("shared", f"prior maps, {SUPPORTS} supports a query", shared, many / SUPPORTS),
        ("annotated", f"the same × {ANNOTATIONS} annotations", annotated, many / SUPPORTS / ANNOTATIONS),
    ):
        work = partial(PriorSource(cues, features).get, wanted)
        of[key] = bench.measure(what, "triple", len(wanted), work, precision="float32", gflops=gflops)
    channels = sum(stage.shape[0] for stage in features.get(ids[:1])[0].stages)
    return {"channels": channels} | dict.fromkeys(bench.precisions, of)


def evaluating(
    bench: Bench, cues: CueSource, features: FeatureCache, dataset: Photographs, batch: int
) -> dict[str, Any]:
    """Episodes a second: as in a cell, prior maps included, and with prior maps at hand."""
    net, found = network().to(bench.device), list[dict[str, float]]()
    for shots in SHOTS:
        asked, what = episodes(dataset, batch, shots), task(net, shots)
        run = partial(evaluate, what, asked, cues, features, batch_size=batch, progress=False)
        ready = PriorSource(cues, features)
        ready.prepare(triple for episode in asked for triple in triples(what, episode))
        cost = decoder_cost(ModelConfig(), SampleConfig(), shots, features.encoder.config.feature_grid)
        measure = partial(bench.measure, unit="episode", count=batch, precision="float32")
        whole = measure(f"{shots}-shot episodes", work=run)
        decoding = measure(f"{shots}-shot episodes, prior maps at hand", work=partial(run, priors=ready),
                           gflops=cost["decode_gflops"])  # fmt: skip
        found.append({"shots": shots, "as_in_a_cell": whole, "decoding": decoding})
    return dict.fromkeys(bench.precisions, found)


class _Enough(Exception):
    """A training has run for long enough."""


def training(
    bench: Bench, cues: CueSource, features: FeatureCache, dataset: Photographs, folder: Path
) -> dict[str, float]:
    """Episodes of training steps a second, without drawing them: one drawn step serves all."""
    recipe, held, ends = pascal5i().changed(train={"steps": 100_000}), dict[object, Any](), list[float]()

    def keep(key: object, kind: type[Any], make: Callable[[], Any]) -> Any:
        return held[kind] if kind in held else held.setdefault(kind, make())

    def report(step: int, loss: float) -> None:
        ends.append(bench.clock())
        if len(ends) > 3 and ends[-1] - ends[0] > bench.seconds:
            raise _Enough

    pools = {c: dataset.pool(c) for c in (0, 1)}
    sampler = EpisodeSampler(cues, features, pools, 0, 0, recipe.model, recipe.train, keep)
    with measured(bench.device, bench.threads) as peak, contextlib.suppress(_Enough):
        train(sampler, folder, facts={}, progress=False, report=report, device=bench.device)
    per_s = recipe.train.episodes / statistics.median(np.diff(ends))
    bench.add(Row(what="training, prior maps at hand", precision="float32", per_s=per_s, unit="episode",
                  busy=None, peak_mb=bench.peak_mb(peak)))  # fmt: skip
    return {"episodes_per_s": per_s}


def papers_grid(document: dict[str, Any]) -> list[str]:
    """What the paper's grid takes on one such device, from its plan."""
    cells, _ = full_grid.build(full_grid.STUDY.parse([]))
    evaluated, cores = [cell for cell in cells if isinstance(cell, Cell)], document["decode"]["threads"]
    on = "GPU" if document["device"] == "cuda" else f"worker of {document['threads']} thread(s)"
    pixels = format_size(disk(evaluated).pixels)
    lines = [
        f"The paper's grid, {len(evaluated)} evaluation cells, on one {on} by these rates; pixels on disk: {pixels}"
    ]
    for precision in [each for each in PRECISIONS if each in document["priors"]]:
        rates = rates_of(document, precision)
        whole, part = forecast(cells, rates, "pixels"), forecast(evaluated, rates, "pixels")
        counts = ", ".join(f"{part.counts[name]:,} {name}" for name in PARTS if part.counts[name])
        both = duration(part.wall(evaluated, 1, cores)), duration(whole.wall(cells, 1, cores))
        lines.append(f"* {precision}: {both[0]} ({counts}); with {whole.counts[STEPS]:,} training steps {both[1]}")
    return lines


def everything(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """Everything, as a file of rates without its provenance."""
    config = InputConfig(input_size=args.size, feature_grid=args.grid, pixel_dtype="uint8")
    for precision in PRECISIONS:
        bench.limit(precision, args.matrix)
    found: dict[str, Any] = {"input": {"size": args.size, "grid": args.grid}, "encode": []}
    with tempfile.TemporaryDirectory() as place:
        paths = photographs(Path(place))
        found["photographs"] = {"size": JPEG_SIZE, "bytes": statistics.mean(path.stat().st_size for path in paths)}
        found["decode"], read = reading(bench, config, paths)
        for name in args.backbones:
            found["encode"] += encoding(bench, name, config, paths, read, os.cpu_count() or 1 if bench.cuda else 1)
        name, dataset = args.backbones[0], Photographs(IMAGES)
        encoder = Encoder(load_backbone(name, "random:0", device=bench.device), config, None, bench.device)
        cues, features = CueSource(dataset, config), FeatureCache(encoder, dataset.image)  # type: ignore[arg-type]
        features.get(dataset.image_ids)
        found["priors"] = matching(bench, name, cues, features, dataset.pool(0))
        found["episodes"] = evaluating(bench, cues, features, dataset, args.batch)
        found["training"] = training(bench, cues, features, dataset, Path(place) / "trained")
        found["disk"] = reading_disk(Path(place))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, and write a file of rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--backbones", type=lambda text: tuple(text.split(",")), default=BACKBONES, metavar="A,B,…")
    recipe = pascal5i().input
    parser.add_argument("--size", type=int, default=recipe.input_size, help="of the input in pixels (%(default)s)")
    parser.add_argument("--grid", type=int, default=recipe.feature_grid, help="of features (%(default)s)")
    parser.add_argument("--batch", type=int, help="episodes at a time (32 on a GPU, else 4)")
    parser.add_argument("--matrix", type=int, help="side of the limit's matrices (8192 on a GPU, else 1024)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU (%(default)s, as a worker has)")
    shared = "others use this CPU: where one thread works, count the processor's seconds in place of the clock's"
    parser.add_argument("--shared", action="store_true", help=shared)
    parser.add_argument("--out", type=Path, metavar="FILE", help="of the rates, JSON")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: no CUDA GPU; --device cpu measures the CPU", file=sys.stderr)
        return 2
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    cuda = device == "cuda"
    args.batch, args.matrix = args.batch or (32 if cuda else 4), args.matrix or (8192 if cuda else 1024)
    command = shlex.join(["python", "-m", "benchmarks.accelerator", *(sys.argv[1:] if argv is None else argv)])
    began, bench = time.perf_counter(), Bench(device, args.seconds, args.threads, shared=args.shared)
    with threads_of_torch(args.threads):
        found = everything(bench, args)
    hardware = torch.cuda.get_device_name() if cuda else machine().partition(", load")[0]
    document = {
        "format": FORMAT, "device": device, "hardware": hardware, "host": machine(), "threads": args.threads,
        "versions": versions(), "tf32": {"matmul": torch.backends.cuda.matmul.allow_tf32,
                                         "cudnn": torch.backends.cudnn.allow_tf32},
        "command": command, "seconds": round(time.perf_counter() - began, 1), "limits": bench.limits, **found,
        "rows": [asdict(row) for row in bench.rows],
    }  # fmt: skip
    head = f"{hardware}; {', '.join(f'{package} {version}' for package, version in versions().items())}"
    tail = [f"`{command}`, {document['seconds']:.0f} s; disk read at {format_size(found['disk']['bytes_per_s'])}/s"]
    print("\n".join([head, "", *table(bench.rows), "", *papers_grid(document), "", *tail]))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
