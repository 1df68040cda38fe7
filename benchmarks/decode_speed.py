"""Speed and memory of decoding against encoding, as ratios: ``python benchmarks/decode_speed.py``.

The heavy half (`diffup.evaluation.encode`) is paid once an image, the light half (`diffup.evaluation.evaluate`: BAFT,
UAPF, UQDD, upsampling, metric) once an episode. This measures, on made-up photographs and a backbone with random
weights (their values do not change the time):

* decoding an episode, 1-shot, against encoding its two images; 5-shot against 1-shot;
* a cold fold, images encoded on the way, against encoding its images alone;
* memory of decoding at K = 10, beyond the features, in a process of its own.

What is compared is timed in turns, round after round, and compared within a round: whatever else the machine does hits
both sides. The table shows the median of the rounds' ratios, with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import cProfile
import multiprocessing
import os
import platform
import pstats
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from numpy.typing import NDArray

from diffup.backbones.load import load_backbone
from diffup.config import InputConfig, ModelConfig, SampleConfig
from diffup.episodes.cue_source import CueSource
from diffup.episodes.episode import Episode
from diffup.episodes.sampling import paired_episodes
from diffup.evaluation.encode import INFO_GRID, Encoder, FeatureCache
from diffup.evaluation.evaluate import Evaluation, evaluate
from diffup.models.batch import Features
from diffup.models.card import versions
from diffup.models.diffup import DiffUpNet

FOLD_IMAGES, FOLD_EPISODES = 345, 1000
MEMORY_SHOTS = 10
SIDE = 400


class Photographs:
    """Made-up photographs of two classes, a bright ellipse on noise each, all drawn before anything is timed."""

    name, fingerprint, classes, folds = "made up", "", ("one", "two"), ((0, 1),)

    def __init__(self, count: int) -> None:
        self.image_ids = tuple(f"{number % 2}_{number}" for number in range(count))
        rng = np.random.default_rng(0)
        y, x = np.mgrid[:SIDE, :SIDE] / SIDE
        self._masks: dict[str, NDArray[np.uint8]] = {}
        self._images: dict[str, NDArray[np.uint8]] = {}
        for image_id in self.image_ids:
            (cy, cx), (ry, rx) = rng.uniform(0.3, 0.7, 2), rng.uniform(0.1, 0.3, 2)
            inside = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
            self._masks[image_id] = inside.astype(np.uint8)
            self._images[image_id] = (rng.integers(0, 90, (SIDE, SIDE, 3)) + 120 * inside[..., None]).astype(np.uint8)
        self.areas = {i: {int(i[0]): int(mask.sum())} for i, mask in self._masks.items()}
        self.sizes = dict.fromkeys(self.image_ids, (SIDE, SIDE))

    def mask(self, image_id: str, class_index: int) -> NDArray[np.uint8]:
        """The ellipse, [H, W]."""
        return self._masks[image_id]

    def image(self, image_id: str) -> NDArray[np.uint8]:
        """RGB, [H, W, 3]."""
        return self._images[image_id]

    def pool(self, class_index: int) -> tuple[str, ...]:
        """Images of a class."""
        return tuple(image_id for image_id in self.image_ids if image_id.startswith(f"{class_index}_"))


def network() -> DiffUpNet:
    """The default decoder, untrained: its time does not depend on its weights."""
    torch.manual_seed(0)
    return DiffUpNet(ModelConfig()).to(memory_format=torch.channels_last).eval()


def task(net: DiffUpNet, shots: int) -> Evaluation:
    """K masks, at the default steps."""
    return Evaluation(model=net, sample=SampleConfig(), annotation="mask", shots=shots, class_indices=(0, 1))


def episodes(dataset: Photographs, count: int, shots: int) -> list[Episode]:
    """A manifest over all images."""
    return paired_episodes({c: dataset.pool(c) for c in (0, 1)}, fold=0, shots=shots, episodes=count, seed=0)


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def spread(ratios: Sequence[float]) -> str:
    """Median, smallest and largest."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} – {max(ratios):.2f})"


Line = tuple[str, str, str, str, str]


def verdict(value: float, bar: float) -> str:
    """Whether a bar is met."""
    return "yes" if value <= bar else "NO"


def per_episode(encoder: Encoder, net: DiffUpNet, rounds: int, batch: int) -> list[Line]:
    """Decoding against encoding, and 5-shot against 1-shot, with features in memory."""
    dataset = Photographs(max(12, 4 * batch))
    cues = CueSource(dataset, encoder.config)  # type: ignore[arg-type]
    features = FeatureCache(encoder, dataset.image)
    features.get(dataset.image_ids)
    asked = episodes(dataset, batch, 5)
    images = [dataset.image(image_id) for image_id in dataset.image_ids[:batch]]

    def decode(shots: int) -> float:
        return timed(lambda: evaluate(task(net, shots), asked, cues, features, batch_size=batch, progress=False))

    decode(5)  # warm-up, which also draws the cues
    encode_s, one_s, five_s = [], [], []
    for _ in range(rounds):
        encode_s.append(2 * timed(lambda: encoder.encode(images)) / batch)
        one_s.append(decode(1) / batch)
        five_s.append(decode(5) / batch)
    light = [one / encode for one, encode in zip(one_s, encode_s)]
    shots = [five / one for five, one in zip(five_s, one_s)]
    ms = {"encode": encode_s, "one": one_s, "five": five_s}
    middle = {name: 1000 * statistics.median(values) for name, values in ms.items()}
    return [
        ("encoding two images", f"{middle['encode']:.0f} ms", "", "", ""),
        ("decoding an episode, 1-shot", f"{middle['one']:.0f} ms", spread(light), "≤ 0.25 of encoding two images",
         verdict(statistics.median(light), 0.25)),
        ("decoding an episode, 5-shot", f"{middle['five']:.0f} ms", spread(shots), "≤ 3 of 1-shot",
         verdict(statistics.median(shots), 3)),
    ]  # fmt: skip


def cold_fold(encoder: Encoder, net: DiffUpNet, count: int, batch: int, rounds: int) -> Line:
    """`count` episodes over their share of a fold's images, from nothing, against encoding these images."""
    dataset = Photographs(max(12, round(FOLD_IMAGES * count / FOLD_EPISODES)))
    asked = episodes(dataset, count, 1)
    used = sorted({image for episode in asked for image in (episode.query, *episode.supports)})

    def fold() -> object:
        cues, features = CueSource(dataset, encoder.config), FeatureCache(encoder, dataset.image)  # type: ignore[arg-type]
        return evaluate(task(net, 1), asked, cues, features, batch_size=batch, progress=False)

    ratios, seconds = [], []
    for _ in range(rounds):
        encode_s = timed(lambda: FeatureCache(encoder, dataset.image).get(used))
        seconds.append(timed(fold))
        ratios.append(seconds[-1] / encode_s)
    name = f"cold fold: {count} episodes, {len(used)} images, 1-shot"
    return (
        name, f"{statistics.median(seconds):.1f} s", spread(ratios), "≤ 2 of encoding the images",
        verdict(statistics.median(ratios), 2),
    )  # fmt: skip


class GivenFeatures:
    """Stands in for a `FeatureCache`: features of the right shapes that were never encoded."""

    def __init__(self, image_ids: Sequence[str], channels: Sequence[int], config: InputConfig) -> None:
        self.encoder = SimpleNamespace(config=config, text_model=None, device="cpu")
        side = config.feature_grid
        self._kept = {
            image_id: Features(
                stages=tuple(torch.rand(c, side, side).div(c**0.5).half() for c in channels),
                text=None,
                rgb=torch.rand(3, INFO_GRID, INFO_GRID),
                size=(SIDE, SIDE),
            )
            for image_id in image_ids
        }

    def get(self, image_ids: Sequence[str], *, text: bool = True) -> list[Features]:
        """As `FeatureCache.get`."""
        return [self._kept[image_id] for image_id in image_ids]

    outlines = get

    def ahead(self, image_ids: object) -> None:
        """There is nothing to read."""


def _measure_memory(channels: Sequence[int], config: InputConfig, batch: int, threads: int) -> float:
    torch.set_num_threads(threads)
    dataset, net = Photographs(2 * (MEMORY_SHOTS + batch)), network()
    features, cues = GivenFeatures(dataset.image_ids, channels, config), CueSource(dataset, config)  # type: ignore[arg-type]
    asked = episodes(dataset, batch, MEMORY_SHOTS)
    evaluate(task(net, 1), asked[:1], cues, features, batch_size=1, progress=False)  # type: ignore[arg-type]
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    evaluate(task(net, MEMORY_SHOTS), asked, cues, features, batch_size=batch, progress=False)  # type: ignore[arg-type]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before


def memory(channels: Sequence[int], config: InputConfig, batch: int, threads: int) -> Line:
    """Peak memory of decoding a batch at K = 10 beyond what the process held before, features included."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        used = pool.submit(_measure_memory, channels, config, batch, threads).result()
    name = f"memory beyond the features, {MEMORY_SHOTS}-shot, batch {batch}"
    return name, f"{used:.0f} MiB", "", "< 2048 MiB", verdict(used, 2047)


def profile(encoder: Encoder, net: DiffUpNet, batch: int, shots: int, repeats: int = 5) -> str:
    """Where decoding spends its time: milliseconds an episode, callees included, of the method's functions."""
    dataset = Photographs(max(12, 4 * batch))
    cues = CueSource(dataset, encoder.config)  # type: ignore[arg-type]
    features = FeatureCache(encoder, dataset.image)
    asked = episodes(dataset, batch, max(shots, 1))

    def decode() -> object:
        return evaluate(task(net, shots), asked, cues, features, batch_size=batch, progress=False)

    decode()
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(repeats):
        decode()
    profiler.disable()
    rows = []
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    for (path, _, function), (_, _, _, cumulative, _) in stats.items():
        if f"{os.sep}diffup{os.sep}" in path:
            rows.append((1000 * cumulative / (repeats * batch), f"{Path(path).stem}.{function}"))
    lines = [f"{ms:8.2f}  {name}" for ms, name in sorted(rows, reverse=True)[:24]]
    return "\n".join([f"ms an episode, {shots}-shot, batch {batch}, callees included", *lines])


def machine() -> str:
    """Processor, cores, Python."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model na")]
        name = found[0] if found else name
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{name}, {os.cpu_count()} cores, load {load}; Python {platform.python_version()}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", default="resnet50", metavar="NAME", help="with random weights (%(default)s)")
    parser.add_argument("--input-size", type=int, default=SIDE, metavar="N", help="side of the input (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="of decoding and encoding (%(default)s)")
    parser.add_argument("--episodes", type=int, default=FOLD_EPISODES, metavar="N",
                        help="of the cold fold, whose images are scaled with it (%(default)s)")  # fmt: skip
    parser.add_argument("--fold-rounds", type=int, default=1, metavar="N", help="of the cold fold (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="episodes at a time (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of torch (%(default)s)")
    parser.add_argument("--profile", action="store_true", help="also say where decoding spends its time")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    config = InputConfig(input_size=options.input_size)
    encoder, net = Encoder(load_backbone(options.backbone, "random"), config), network()
    channels = [stage.shape[0] for stage in encoder.encode([Photographs(1).image("0_0")])[0].stages]
    lines = per_episode(encoder, net, options.rounds, options.batch_size)
    lines.append(cold_fold(encoder, net, options.episodes, options.batch_size, options.fold_rounds))
    lines.append(memory(channels, config, options.batch_size, options.threads))
    rows = [("what", "median", "ratio: median (range)", "bar", "met"), *lines]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    print(f"{options.backbone}, random weights, images {SIDE}×{SIDE}, input {config.input_size}×{config.input_size}, "
          f"{options.threads} thread(s), {SampleConfig().steps} steps, {options.rounds} rounds\n{machine()}; "
          f"{', '.join(f'{name} {version}' for name, version in versions().items())}\n")  # fmt: skip
    for number, row in enumerate(rows):
        print("| " + " | ".join(text.ljust(width) for text, width in zip(row, widths)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    if options.profile:
        for shots in (1, 5):
            print("\n" + profile(encoder, net, options.batch_size, shots))
    return 0


if __name__ == "__main__":
    sys.exit(main())
