"""Panels: which episodes are shown, and what stands in the row of tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from diffup.evaluation.drawing import GAP, HEAD, SIDE
from diffup.evaluation.metrics import episode_ious, ranked
from diffup.evaluation.panels import SHARED, panel, shown_episodes
from diffup.evaluation.scoring import Prediction
from tests.diffup.evaluation.test_train_evaluate import checkpoint, evaluation, manifest, setting

__all__ = ["checkpoint"]


def test_worst_median_and_best_are_by_iou() -> None:
    """Of equal ones the first counts as the worse; nothing to find and nothing found is perfect."""
    assert episode_ious([1, 0, 5], [4, 0, 5]).tolist() == [0.25, 1.0, 1.0]
    assert ranked([5, 1, 3, 9, 2], [10, 10, 10, 10, 10]) == {"worst": 1, "median": 2, "best": 3}
    assert ranked([1, 1, 1], [2, 2, 2]) == {"worst": 0, "median": 1, "best": 2}
    with pytest.raises(ValueError, match="no episode to rank"):
        ranked([], [])


def test_shown_are_the_first_episodes_and_the_cells_own() -> None:
    table = pd.DataFrame({"inter_fg": np.arange(40)[::-1], "union_fg": np.full(40, 50)})
    assert shown_episodes(table) == [*range(SHARED), 19, 39]  # the best is the first one
    assert shown_episodes(table[:3]) == [0, 1, 2]


def _tiles(image: Image.Image) -> int:
    assert image.height == SIDE + HEAD and (image.width + GAP) % (SIDE + GAP) == 0
    return (image.width + GAP) // (SIDE + GAP)


def test_a_trained_model_shows_prior_and_deviation_and_all_supports(checkpoint: Path) -> None:
    dataset, cues, _ = setting()
    episode = manifest(dataset, 1)[0]
    height, width = dataset.image(episode.query).shape[:2]
    truth = dataset.mask(episode.query, episode.class_index) == 1
    perfect = torch.from_numpy(truth.astype(np.float32))
    trained = Prediction(perfect, torch.full((height, width), 0.04), 0.9, perfect)
    free = Prediction(perfect, None, float("nan"))
    one = panel(evaluation(checkpoint), episode, trained, cues)
    assert _tiles(one) == 6
    assert _tiles(panel(evaluation(checkpoint, shots=3), episode, trained, cues)) == 6
    assert _tiles(panel(evaluation(None), episode, free, cues)) == 5
    assert _tiles(panel(evaluation(checkpoint, "text", 0), episode, trained, cues)) == 5
    # The tile of the prediction is that of the truth, in another colour.
    pixels = np.asarray(one).astype(int)[HEAD:]
    found, asked = (pixels[:, i * (SIDE + GAP) : i * (SIDE + GAP) + SIDE] for i in (4, 5))
    painted = [np.ptp(tile, axis=2) > 60 for tile in (found, asked)]
    assert painted[0].mean() > 0.02 and (painted[0] == painted[1]).mean() > 0.99
    assert np.abs(found - asked)[painted[0] & painted[1]].sum(axis=1).min() > 100
