"""What is each part worth? One factor of DiffUp changed at a time, against the unchanged one on the same episodes.

    python experiments/ablations.py --dataset DIR/dataset.json --weights-dir DIR --results DIR
    python experiments/ablations.py --embedded          (shapes4i and embedded backbones; nothing is downloaded)

`ABLATIONS` is the place to add a line: a name, and what it changes. What changes sampling alone shares DiffUp's
checkpoint; everything else is trained by itself, with the same seeds. Prior maps don't depend on the model, so all
lines but those that change the cues of training share them. ``--variants no_scm,steps_4`` runs some lines, and DiffUp
itself always.

With the defaults, for each fold and seed: 24 training cells on the first backbone and 30 lines, DiffUp among them,
× backbones × 1-shot mask, 5-shot mask and 1-shot scribble, so 90 evaluation cells of 500 episodes a backbone. The table
has the mIoU of DiffUp, and every variant's paired difference to it with its 95 % interval, mean over folds and seeds.
Novel classes are for reporting: choose nothing by this table (`experiments/selection.py` is for that).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import diffup.checkout  # noqa: F401
from analysis.printing import printed
from cluster.cli import EmbeddedOptions, Grid, SeedsOptions, Study, run
from cluster.options import Count, NamesOrNone, Numbers
from diffup.config import MAP_NAMES, PRIOR_MAPS
from diffup.errors import UserError
from diffup.grid.axes import Backbone, evaluation_cells, training_cell
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data
from diffup.grid.variants import VARIANTS, Change, changes_training, effective
from diffup.training import recipes
from diffup.training.recipes import Recipe

if TYPE_CHECKING:
    from analysis.tables.table import Table

BASE = "diffup"
TASKS = ((1, "mask"), (5, "mask"), (1, "scribble"))
BACKBONES = ("resnet50", "deit_tiny_patch16_224")
EMBEDDED = ("tiny_resnet", "tiny_regnet")
EPISODES = 500
FOLDS, SEEDS = (0,), (0,)
RECIPES = recipes.BENCHMARKS | {"shapes4i": recipes.shapes4i()}  # else `photographs`

# Frequencies of mask, box, scribble and text; text is drawn only where something reads it.
NO_SCRIBBLES, EQUAL_CUES = (0.65, 0.25, 0.0, 0.1), (0.3, 0.3, 0.3, 0.1)


def prior_set(*names: str) -> Change:
    """Only these of BAFT's maps, each as it is and propagated."""
    read = [name for name in PRIOR_MAPS if name.removeprefix("propagated_") in names]
    return {"model": {"prior_maps": "+".join(read)}}


# A line is a name and what it changes: one field of one configuration. Lines of the method study are named, not copied.
ABLATIONS: dict[str, Change] = {
    BASE: {},
    # modules
    "no_uapf": VARIANTS["no_uapf"],  # plain mean of the priors
    "no_scm": VARIANTS["no_scm"],
    "no_dqm_error": VARIANTS["no_dqm_error"],
    "no_dqm_iou": VARIANTS["no_dqm_iou"],
    "self_conditioning": VARIANTS["self_conditioning"],
    "no_self_conditioning": VARIANTS["no_self_conditioning"],
    "no_query_infos": VARIANTS["no_query_infos"],
    # diffusion
    "one_step": VARIANTS["one_step"],
    "steps_1": VARIANTS["steps_1"],
    "steps_3": {"sample": {"steps": 3}},
    "steps_4": VARIANTS["steps_4"],
    "steps_8": VARIANTS["steps_8"],
    "steps_16": {"sample": {"steps": 16}},
    "full_strength": VARIANTS["full_strength"],
    "bit_scale_0.05": {"model": {"bit_scale": 0.05}},
    "bit_scale_0.3": {"model": {"bit_scale": 0.3}},
    "bit_scale_1": {"model": {"bit_scale": 1.0}},
    # prior sets
    "only_max_cosine": prior_set("max_cosine"),
    "only_prototype": prior_set("prototype_contrast"),
    "only_assembled": prior_set("assembled_sharp", "assembled_soft"),
    "no_max_cosine": prior_set("prototype_contrast", "assembled_sharp", "assembled_soft"),
    "no_prototype": prior_set("max_cosine", "assembled_sharp", "assembled_soft"),
    "no_assembled": prior_set("max_cosine", "prototype_contrast"),
    "no_propagation": {"model": {"prior_maps": "+".join(MAP_NAMES)}},
    # cues and K in training
    "masks_only_training": VARIANTS["masks_only_training"],
    "no_scribbles_training": {"train": {"cue_weights": NO_SCRIBBLES}},
    "equal_cues_training": {"train": {"cue_weights": EQUAL_CUES}},
    "one_cue_training": VARIANTS["one_cue_training"],
    "two_cues_training": {"train": {"max_shots": 2}},
    "no_virtual_backbones": VARIANTS["no_virtual_backbones"],
}


def grid(
    data: Data,
    backbones: Sequence[Backbone],
    *,
    recipe: Recipe,
    folds: Sequence[int] = FOLDS,
    seeds: Sequence[int] = SEEDS,
    episodes: int = EPISODES,
    variants: Sequence[str] | None = None,
) -> list[AnyCell]:
    """For each fold and seed, the training cells of `variants` and their evaluation cells.

    Args:
        data: any data set.
        backbones: tested, the first one is trained on.
        recipe: of the base.
        folds: which folds.
        seeds: of training.
        episodes: per evaluation cell.
        variants: names of `ABLATIONS`, by default all that change something of the recipe; DiffUp itself is always
            there.
    """
    variants = tuple(effective(ABLATIONS, recipe)) if variants is None else variants
    cells: list[AnyCell] = []
    for fold in folds:
        for seed in seeds:
            base = training_cell(data, fold, backbones[0], recipe, seed=seed)
            for name in dict.fromkeys((BASE, *variants)):
                changed, trained = recipe.changed(**ABLATIONS[name]), base
                if changes_training(ABLATIONS[name]):
                    trained = training_cell(data, fold, backbones[0], changed, variant=name, seed=seed)
                if trained is not base or name == BASE:
                    cells.append(trained)
                cells += evaluation_cells(
                    data, fold, backbones, TASKS, config=recipe.input, episodes=episodes, trained=trained,
                    variant=name, sample=changed.sample,
                )  # fmt: skip
    return cells


def table(results: Path, keys: Sequence[str]) -> Table:
    """Every variant's difference to DiffUp by backbone and task, and DiffUp's own mIoU.

    Args:
        results: the result store.
        keys: the grid's cells.

    Raises:
        UserError: none of them is an evaluation cell.
    """
    from analysis.results import load_results, only
    from analysis.tables.differences import ablation_table
    from analysis.tables.scores import studies

    (study,) = studies(only(load_results(results), keys))
    return ablation_table(study, base=BASE, order=tuple(ABLATIONS))


@dataclass(frozen=True, kw_only=True)
class Ablations(EmbeddedOptions, SeedsOptions):
    """Options of this grid."""

    episodes: Count = EPISODES
    backbones: NamesOrNone = None
    """tested; the first is trained on"""
    folds: Numbers = FOLDS
    """which folds"""
    variants: NamesOrNone = None
    """lines to run (default: all)"""


def build(asked: Ablations) -> Grid:
    """The grid on the data set that is asked for.

    Raises:
        UserError: no such fold or variant.
    """
    names = asked.backbones or (EMBEDDED if asked.embedded else BACKBONES)
    backbones = list(asked.find_backbones(names).values())
    data = asked.open(shots=max(shots for shots, _ in TASKS))
    recipe = RECIPES.get(data.name, recipes.photographs())
    lines = effective(ABLATIONS, recipe)
    for name in asked.variants or ():
        if name not in lines:
            why = "changes nothing of this recipe" if name in ABLATIONS else "is no variant"
            raise UserError(f"--variants: {name!r} {why}; there are {', '.join(lines)}")
    cells = grid(
        data, backbones, recipe=recipe, folds=data.chosen_folds(asked.folds), seeds=asked.training_seeds,
        episodes=asked.episodes, variants=asked.variants,
    )  # fmt: skip
    return cells, data.files()


STUDY = Study(name="ablations", description=__doc__, options=Ablations, build=build, report=printed(table))

if __name__ == "__main__":
    sys.exit(run(STUDY))
