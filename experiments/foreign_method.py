"""A method that is not ours, on the same episodes: a colour-histogram matcher beside the prior mean on ``shapes4i``.

    python experiments/foreign_method.py

A foreign method is a function ``(query, supports, cues) → probability`` (`diffup.evaluation.adapter`) in a module that
can be imported; `diffup.grid.axes.adapter` makes a cell's configuration of its name. Here 4 evaluation cells of 300
episodes on fold 0, 1 and 5 shots with masks: the matcher, which stands in the row ``own`` since it uses none of our
backbones, and the prior mean on ``tiny_resnet``. Nothing is trained; about a minute on 2 cores.

Expect: the matcher far from useless, since a class of ``shapes4i`` has a colour: mIoU 30.8 with 1 shot and 44.1 with 5,
against 27.2 and 27.5 for the prior mean, though it sees no form and no pattern.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster import cli
from diffup.config import InputConfig
from diffup.errors import command_line
from diffup.evaluation.adapter import Cue
from diffup.grid.axes import OWN, PRIOR_MEAN, adapter, evaluation_cells, named_backbone, tasks
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data, open_data
from experiments.report import print_tables

NAME = "foreign_method"
FUNCTION = "experiments.foreign_method:colour_histogram"
TASKS = tasks((1, 5), ("mask",))
EPISODES = 300
INPUT = InputConfig(input_size=224)
LEVELS = 8  # of each of red, green and blue


def _colours(image_HW3: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Index of each pixel's colour among LEVELS³, [H, W]."""
    levels = image_HW3.astype(np.int64) * LEVELS // 256
    return (levels[..., 0] * LEVELS + levels[..., 1]) * LEVELS + levels[..., 2]


def colour_histogram(
    query: NDArray[np.uint8], supports: list[NDArray[np.uint8]], cues: list[Cue]
) -> NDArray[np.float64]:
    """How often a pixel of this colour is annotated in the supports (Laplace's rule; 0.5 for unseen colours)."""
    foreground, background = np.ones(LEVELS**3), np.ones(LEVELS**3)
    for image, cue in zip(supports, cues, strict=False):  # a text cue would come last; this method can't read it
        marked, colours = cue.annotation == 1, _colours(image)
        foreground += np.bincount(colours[marked], minlength=LEVELS**3)
        background += np.bincount(colours[~marked], minlength=LEVELS**3)
    probability: NDArray[np.float64] = (foreground / (foreground + background))[_colours(query)]
    return probability


def grid(data: Data, *, episodes: int = EPISODES) -> list[AnyCell]:
    """4 cells: the matcher and the prior mean, 1 and 5 shots."""
    ours = evaluation_cells(
        data, 0, [named_backbone("tiny_resnet", check=False)], TASKS, config=INPUT, episodes=episodes, sample=PRIOR_MEAN
    )
    foreign = evaluation_cells(data, 0, [OWN], TASKS, config=INPUT, episodes=episodes, sample=adapter(FUNCTION))
    return [*ours, *foreign]


def build(args: argparse.Namespace) -> tuple[list[AnyCell], dict[str, Path]]:
    """Make sure that the embedded data set is on disk, and describe the grid on it."""
    from diffup.data.dataset import resolve_dataset

    data = open_data(resolve_dataset("shapes4i"), shots=max(shots for shots, _ in TASKS))
    return grid(data, episodes=args.episodes), data.files()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the grid; returns the exit code."""
    return cli.script(NAME, cli.parser(NAME, __doc__ or "", episodes=EPISODES), build, argv, print_tables)


if __name__ == "__main__":
    sys.exit(command_line(main))
