"""Which cues and objects training steps have, how often, and how their maps are distorted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from diffup.config import TrainConfig
from diffup.models.baft import EVIDENCE, MAPS
from diffup.models.uapf import ODDS, cue_logits
from diffup.training.sampler import size_weights, step_cues, virtual_evidence

STEPS = 10_000


def drawn(config: TrainConfig, with_text: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Whether there is text, and the number of visual cues, of many steps."""
    steps = [step_cues(np.random.default_rng((0, 0, step)), config, with_text) for step in range(STEPS)]
    return np.array([text for text, _ in steps]), np.array([shots for _, shots in steps])


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.3, 0.9, 2.7])
def test_a_step_has_text_with_twice_the_share_of_its_weight(weight: float) -> None:
    text, shots = drawn(dataclasses.replace(TrainConfig(), cue_weights=(0.5, 0.2, 0.2, weight)))
    expected = min(1.0, 2 * weight / (0.9 + weight))
    spread = 4 * np.sqrt(expected * (1 - expected) / STEPS)  # four standard deviations
    assert abs(text.mean() - expected) <= spread
    if weight:
        alone = (shots[text] == 0).mean()
        assert abs(alone - 0.25) <= 4 * np.sqrt(0.25 * 0.75 / text.sum())
    assert (shots[~text] > 0).all(), "a step has a cue"


def test_by_default_a_fifth_of_the_steps_has_text() -> None:
    text, _ = drawn(TrainConfig())
    assert text.mean() == pytest.approx(0.2, abs=0.016)
    assert not drawn(TrainConfig(), with_text=False)[0].any()


def test_k_visual_cues_come_in_proportion_to_one_over_k() -> None:
    _, shots = drawn(TrainConfig(), with_text=False)
    share = np.bincount(shots, minlength=6)[1:] / STEPS
    inverse = 1 / np.arange(1, 6)
    np.testing.assert_allclose(share, inverse / inverse.sum(), atol=0.02)


def test_sizes_are_balanced_by_their_inverse_number() -> None:
    shares = np.array([0.02] * 60 + [0.2] * 30 + [0.9] * 10)
    weights = size_weights(shares)
    mass = [weights[shares == share].sum() for share in (0.02, 0.2, 0.9)]
    np.testing.assert_allclose(mass, mass[0])
    rare = size_weights(np.array([0.02] * 600 + [0.9]))
    assert rare[-1] / rare[0] == pytest.approx(60, rel=0.05), "one odd image would be in every step"
    assert size_weights(np.array([0.1, 0.1])).tolist() == [0.5, 0.5]


def test_distorted_evidence_keeps_what_the_mask_starts_from() -> None:
    generator = torch.Generator().manual_seed(0)
    prior, odds = torch.rand(2, 3, 3, MAPS, 5, 5), torch.randn(2, 3, 3, EVIDENCE, 5, 5)
    before, maps = odds.clone(), prior.clone()
    other, distorted = virtual_evidence(prior, odds, generator)
    assert torch.equal(odds, before) and torch.equal(prior, maps), "what is kept for other trainings is changed"
    torch.testing.assert_close(cue_logits(distorted), cue_logits(odds))
    assert not torch.equal(other, prior)
    moved = (distorted != odds).flatten(4).any(-1).all((0, 1)).all(0)
    assert moved.nonzero().flatten().tolist() == list(ODDS)
