"""DiffUpNet from maps to a mask: what it says before it has learned anything."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from diffup.config import OBJECTNESS, ModelConfig, SampleConfig
from diffup.models.baft import EVIDENCE, MAPS, evidence_logit
from diffup.models.batch import Batch
from diffup.models.diffup import DiffUpNet, Segmentation
from diffup.models.uapf import EDGE

SIDE = 16


def batch(cues: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(0)
    odds = torch.randn(2, cues, 3, EVIDENCE, 8, 8, generator=generator)
    odds[:, :, :, -1] = odds[:, :, :1, -1]
    prior = torch.rand(2, cues, 3, MAPS, 8, 8, generator=generator)
    return Batch(prior, odds, torch.zeros(2, cues, dtype=torch.long), torch.rand(2, 3, 40, 40, generator=generator))


def segmented(given: Batch, **model: str | bool) -> Segmentation:
    torch.manual_seed(0)
    net = DiffUpNet(ModelConfig(decoder_grid=SIDE, width=8, **model))  # type: ignore[arg-type]
    return net.segment_priors(given, SampleConfig(), torch.zeros(2, SIDE, SIDE))


def test_untrained_it_draws_the_best_map_without_training() -> None:
    given = batch()
    found = segmented(given, base="evidence")
    told = evidence_logit(given.odds_BKSEhw, OBJECTNESS)[:, None].clamp(*torch.logit(torch.tensor([EDGE, 1 - EDGE])))
    expected = F.interpolate(told, size=(SIDE, SIDE), mode="bilinear")[:, 0]
    torch.testing.assert_close(found.logits, expected, atol=1e-4, rtol=1e-4)


def test_from_evidence_the_variance_is_that_of_the_masks_own_probability() -> None:
    given = batch(3)
    found = segmented(given, base="evidence")
    probability = torch.sigmoid(found.logits)
    torch.testing.assert_close(found.variance, probability * (1 - probability))
    stretched = segmented(given)
    probability = torch.sigmoid(stretched.logits)
    assert (stretched.variance - probability * (1 - probability)).abs().max() > 0.01
