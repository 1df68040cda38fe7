"""Variants: DiffUp with one factor changed, as a dict of overrides of a recipe, for ablations and for every grid.

A variant that changes `model` or `train` is trained by itself; one that changes `sample` alone shares DiffUp's
checkpoint and, in training-free rows, nothing is trained at all (`diffup.grid.axes.PRIOR_MEAN`, ``PROTOTYPE``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffup.training.recipes import Recipe

MASKS_ONLY = (1.0, 0.0, 0.0, 0.0)

Change = dict[str, dict[str, Any]]  # for `diffup.training.recipes.Recipe.changed`

VARIANTS: dict[str, Change] = {
    "diffup": {},
    "one_step": {"model": {"one_step": True}},
    "plain_schedule": {"model": {"schedule": "plain"}},
    "prior_centred": {"model": {"schedule": "prior_centred"}},
    "no_uapf": {"model": {"uapf": False}},
    "no_scm": {"model": {"scm": False}},
    "self_conditioning": {"model": {"self_conditioning": True}},
    "no_self_conditioning": {"model": {"self_conditioning": False}},
    "no_query_infos": {"model": {"query_infos": False}},
    "no_dqm_error": {"model": {"dqm_error": False}},
    "no_dqm_iou": {"model": {"dqm_iou": False}},
    "no_dqm": {"model": {"dqm_error": False, "dqm_iou": False}},
    "no_residual": {"model": {"residual": False}, "sample": {"strength": 1.0}},
    "unbounded": {"model": {"bound": 0.0}},
    "no_virtual_backbones": {"train": {"virtual_backbones": False}},
    "one_cue_training": {"train": {"max_shots": 1}},
    "masks_only_training": {"train": {"cue_weights": MASKS_ONLY}},
    "full_strength": {"sample": {"strength": 1.0}},
    "from_prior": {"sample": {"start": "prior"}},
    "steps_1": {"sample": {"steps": 1}},
    "steps_4": {"sample": {"steps": 4}},
    "steps_8": {"sample": {"steps": 8}},
}


def effective(changes: Mapping[str, Change], recipe: Recipe) -> dict[str, Change]:
    """The changes without those to what a recipe has anyway; none at all is kept: it is DiffUp itself."""
    return {name: change for name, change in changes.items() if not change or recipe.changed(**change) != recipe}


def changes_training(change: Change) -> bool:
    """Whether a change needs a checkpoint of its own."""
    return bool({"model", "train"} & set(change))
