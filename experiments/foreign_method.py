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

import sys
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

import diffup.checkout  # noqa: F401
from analysis.printing import print_tables
from cluster.cli import Grid, GridOptions, Study, run
from cluster.options import Count
from diffup.config import InputConfig
from diffup.evaluation.adapter import Cue
from diffup.grid.axes import OWN, PRIOR_MEAN, adapter, evaluation_cells, named_backbone, tasks
from diffup.grid.datasets import open_data

FUNCTION = "experiments.foreign_method:colour_histogram"
TASKS = tasks((1, 5), ("mask",))
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


@dataclass(frozen=True, kw_only=True)
class ForeignMethod(GridOptions):
    """Options of this grid."""

    episodes: Count = 300


def build(asked: ForeignMethod) -> Grid:
    """4 cells: the matcher and the prior mean, 1 and 5 shots."""
    data = open_data("shapes4i", shots=max(shots for shots, _ in TASKS))
    evaluate = partial(evaluation_cells, data, 0, tasks=TASKS, config=INPUT, episodes=asked.episodes)
    ours = evaluate(backbones=[named_backbone("tiny_resnet", check=False)], sample=PRIOR_MEAN)
    return [*ours, *evaluate(backbones=[OWN], sample=adapter(FUNCTION))], data.files()


STUDY = Study(name="foreign_method", description=__doc__, options=ForeignMethod, build=build, report=print_tables)

if __name__ == "__main__":
    sys.exit(run(STUDY))
