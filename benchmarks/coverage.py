"""How often does the 95 % interval hold the truth? Simulated episodes from finite pools of images, in seconds a core.

    python benchmarks/coverage.py --simulations 500
    python benchmarks/coverage.py --simulations 10000 --episodes 300 --resamples 200 --null

A world: every class has a population of images; an image has a size and a difficulty, an episode adds what the support
brings. Each simulation draws a pool of 25 to 60 images a class, then episodes from it as a manifest does, and asks
whether the interval of mIoU, of FB-IoU and of the paired difference of two methods holds the population's figure. The
interval that resamples single episodes is shown beside it. With ``--null`` two methods of one quality are compared: how
often is the p-value of their difference below a level?
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from diffup.evaluation.stats import EpisodeCounts, Estimate, Floats, bootstrap

CLASSES, POOLS, PIXELS = 5, (25, 60), 320 * 213
METHODS = (0.0, 0.04)  # what each method adds to an image's IoU
LEVELS = (0.05, 0.01, 0.005, 0.001)
POPULATION = 200_000  # images a class, for the truth


def images(rng: np.random.Generator, class_id: int, number: int) -> tuple[Floats, Floats]:
    """Pixels of the object and mean IoU of `number` images of a class; large objects are easier."""
    size = np.exp(rng.normal(np.log(9000) + 0.2 * class_id, 0.7, number)).clip(600, 0.45 * PIXELS)
    ease = rng.normal(0.55 - 0.03 * class_id, 0.14, number) + 0.05 * (np.log(size) - np.log(9000))
    return size, ease


def counted(size: Floats, iou: Floats) -> Floats:
    """Counts [N, 4] of episodes with these objects and IoUs; an object is missed as much as it is exceeded."""
    union = size * 2 / (1 + iou)
    inter = iou * union
    return np.stack([inter, union, PIXELS - union, PIXELS - inter], axis=1).round()


def outcomes(rng: np.random.Generator, size: Floats, ease: Floats, methods: Sequence[float] = METHODS) -> list[Floats]:
    """Counts of each method on these queries; the support is the same for all, the rest their own."""
    support = rng.normal(0, 0.08, len(size))
    return [
        counted(size, (ease + support + gain + rng.normal(0, 0.04, len(size))).clip(0.02, 0.98)) for gain in methods
    ]


def figures(totals: Floats) -> tuple[float, float]:
    """mIoU and FB-IoU of sums [C, 4] by class, in percent."""
    fg, bg = totals[:, :2].sum(axis=0), totals[:, 2:].sum(axis=0)
    return float(100 * (totals[:, 0] / totals[:, 1]).mean()), float(50 * (fg[0] / fg[1] + bg[0] / bg[1]))


def truth(seed: int) -> list[tuple[float, float]]:
    """The population's figures of each method."""
    rng = np.random.default_rng(seed)
    sums = np.zeros((len(METHODS), CLASSES, 4))
    for class_id in range(CLASSES):
        for method, counts in enumerate(outcomes(rng, *images(rng, class_id, POPULATION))):
            sums[method, class_id] = counts.mean(axis=0)
    return [figures(method) for method in sums]


def simulated(rng: np.random.Generator, episodes: int, methods: Sequence[float] = METHODS) -> list[EpisodeCounts]:
    """A manifest's episodes of each method, from pools of the world."""
    class_id = np.arange(episodes) % CLASSES
    query = np.empty(episodes, dtype="<U12")
    counts = np.zeros((len(methods), episodes, 4))
    for c in range(CLASSES):
        rows = np.flatnonzero(class_id == c)
        pool = int(rng.integers(POOLS[0], POOLS[1] + 1))
        size, ease = images(rng, c, pool)
        asked = rng.integers(pool, size=len(rows))
        query[rows] = [f"{c}_{image}" for image in asked]
        for method, made in enumerate(outcomes(rng, size[asked], ease[asked], methods)):
            counts[method, rows] = made
    ids = np.arange(episodes)
    return [EpisodeCounts(ids, class_id, query, made.astype(np.int64)) for made in counts]


def coverage(simulations: int, episodes: int, resamples: int, seed: int) -> dict[str, dict[str, tuple[float, float]]]:
    """Share of intervals that hold the truth, and their mean width, by figure and by way of resampling."""
    known = truth(seed)
    expected = {"mIoU": known[0][0], "FB-IoU": known[0][1], "paired difference": known[1][0] - known[0][0]}
    held: dict[str, dict[str, list[tuple[bool, float]]]] = {}
    for number in range(simulations):
        cells = simulated(np.random.default_rng((seed, number)), episodes)
        for way, clustered in (("clustered", True), ("single episodes", False)):
            first, second = bootstrap(cells, resamples=resamples, seed=number, clustered=clustered)
            found: dict[str, Estimate] = {
                "mIoU": first.miou, "FB-IoU": first.fb_iou, "paired difference": second.miou.minus(first.miou),
            }  # fmt: skip
            for name, estimate in found.items():
                low, high = estimate.interval()
                held.setdefault(name, {}).setdefault(way, []).append((low <= expected[name] <= high, high - low))
    return {
        name: {way: (float(np.mean([h for h, _ in pairs])), float(np.mean([w for _, w in pairs])))
               for way, pairs in ways.items()}
        for name, ways in held.items()
    }  # fmt: skip


def false_alarms(simulations: int, episodes: int, resamples: int, seed: int) -> dict[float, float]:
    """Share of p-values below each level where there is no difference, by level."""
    found = []
    for number in range(simulations):
        cells = simulated(np.random.default_rng((seed, number)), episodes, (0.0, 0.0))
        first, second = bootstrap(cells, resamples=resamples, seed=number)
        found.append(second.miou.minus(first.miou).p_value())
    return {level: float((np.array(found) < level).mean()) for level in LEVELS}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=500)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--null", action="store_true", help="how often a p-value is too small")
    options = parser.parse_args()
    if options.null:
        for level, share in false_alarms(
            options.simulations, options.episodes, options.resamples, options.seed
        ).items():
            print(f"p < {level:g}: {100 * share:.2f} %")
        return
    found = coverage(options.simulations, options.episodes, options.resamples, options.seed)
    print(f"{options.simulations} simulations of {options.episodes} episodes, {options.resamples} resamples")
    print("| figure | clustered: holds | width | single episodes: holds | width |")
    print("| :--- | ---: | ---: | ---: | ---: |")
    for name, ways in found.items():
        entries = [f"{100 * share:.1f} % | {width:.2f}" for share, width in ways.values()]
        print(f"| {name} | {' | '.join(entries)} |")


if __name__ == "__main__":
    main()
