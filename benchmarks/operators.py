"""How many operators a GPU would launch for a triple and for an episode: ``python -m benchmarks.operators``.

A GPU is idle while Python launches one small operator after another, so that their number decides how fast it can be.
They are counted on a CPU, by `torch.profiler`, in the batches that a GPU gets: every operator that computes or copies;
views and allocations launch nothing. Features are in memory; the queries are of several sizes.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.decode_speed import GivenFeatures, Photographs, episodes, task
from diffup.config import InputConfig, ModelConfig
from diffup.episodes.cue_source import CueSource
from diffup.evaluation.evaluate import batches, triples
from diffup.evaluation.priors import PriorSource
from diffup.models import baft
from diffup.models.diffup import DiffUpNet

CHANNELS = (32, 64, 96)  # their number and the decoder's width change no operator
NOTHING = {
    "chunk", "contiguous", "detach", "detach_", "empty", "expand", "flatten", "item", "lift_fresh", "mT", "new_empty",
    "permute", "reshape", "resolve_conj", "resolve_neg", "select", "slice", "split", "squeeze", "t", "to", "transpose",
    "unbind", "unflatten", "unsqueeze", "view", "view_as",
}  # fmt: skip
"""Operators that launch nothing, unless they have to copy."""
ON_CPU = {"randn"}
"""Of an episode's noise, which is drawn on the CPU from the episode's own seed."""


def operators(work: Callable[[], object]) -> Counter[str]:
    """Operators of a call that a GPU would launch, by name; those that an operator is made of are not counted."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    found: Counter[str] = Counter()
    for event in profiler.events() or ():
        parent = event.cpu_parent
        if event.name.startswith("aten::") and not (parent is not None and parent.name.startswith("aten::")):
            name = event.name.removeprefix("aten::")
            if name not in ON_CPU and (name not in NOTHING or _copies(event)):
                found[name] += 1
    return found


def _copies(event: Any) -> bool:
    return any(child.name == "aten::copy_" or _copies(child) for child in event.cpu_children)


def counted(batch: int, shots: int = 1, pairs: int | None = None) -> tuple[Counter[str], Counter[str]]:
    """Operators of a batch's prior maps, and of all else from prior maps to counts."""
    dataset = Photographs(2 * batch + shots)
    config = InputConfig(feature_grid=20)
    features = GivenFeatures(dataset.image_ids, CHANNELS, config)
    cues = CueSource(dataset, config)  # type: ignore[arg-type]
    source = PriorSource(cues, features, pairs=pairs or batch)  # type: ignore[arg-type]
    baft.CPU_BYTES = baft.GPU_BYTES
    what, asked = task(DiffUpNet(ModelConfig(width=8)).eval(), shots), episodes(dataset, batch, shots)
    wanted = [triple for episode in asked for triple in triples(what, episode)]
    for triple in wanted:
        cues.weights(triple.support, triple.class_index, triple.kind, config.feature_grid)
    matching = operators(lambda: source.prepare(wanted))

    def decode() -> object:
        return list(batches(what, asked, cues, features, batch_size=batch, priors=source, window=0))  # type: ignore[arg-type]

    decode()  # what is computed once for all batches
    return matching, operators(decode)


def main(argv: Sequence[str] | None = None) -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="episodes at a time (%(default)s)")
    parser.add_argument("--shots", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--most", type=int, default=12, help="operators that are listed (%(default)s)")
    args = parser.parse_args(argv)
    for name, found, of in zip(("triple", "episode"), counted(args.batch, args.shots), (args.shots, 1), strict=True):
        print(f"{found.total() / (args.batch * of):.2f} operators a {name} ({found.total()} a batch of {args.batch})")
        print("  " + ", ".join(f"{operator} {count}" for operator, count in found.most_common(args.most)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
