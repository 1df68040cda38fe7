"""Regions of a query: a case by hand, averages that keep the total, and what they are for."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from diffup.models.regions import CUTS, averaged, labels_of, region_average, tree, with_regions

# Two pairs of positions, 1 - cosine 1 - cos 20° and 1 - cos 30° within and far apart between them.
ANGLES = torch.tensor([[0.0, 20.0], [100.0, 130.0]]).deg2rad()
PAIRS = torch.stack([ANGLES.cos(), ANGLES.sin()])


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_positions_join_as_by_hand() -> None:
    joined = tree([PAIRS])
    degrees = np.deg2rad
    between = np.mean([1 - np.cos(degrees(a - b)) for a in (100, 130) for b in (0, 20)])
    np.testing.assert_allclose(joined[:, 2], [1 - np.cos(degrees(20)), 1 - np.cos(degrees(30)), between], atol=1e-6)
    for labels in (labels_of(joined, regions=2), labels_of(joined, distance=0.5)):
        assert labels[0] == labels[1] != labels[2] == labels[3] and set(labels) == {0, 1}
    assert len(set(labels_of(joined, regions=3))) == 3
    assert len(set(labels_of(joined, regions=80))) == 4, "there are no more regions than positions"


def test_a_distance_is_the_mean_over_stages() -> None:
    """A stage in which all positions are equal halves every distance."""
    alone, beside = tree([PAIRS]), tree([PAIRS, torch.ones(1, 2, 2)])
    np.testing.assert_allclose(beside[:, 2], alone[:, 2] / 2, atol=1e-6)


def test_an_average_is_that_of_the_region_and_keeps_the_total() -> None:
    values = np.array([[1.0, 3.0], [10.0, -2.0]])
    np.testing.assert_array_equal(averaged(values, np.array([[0, 0], [2, 5]])), [[2.0, 2.0], [10.0, -2.0]])
    features = F.normalize(noise(8, 12, 12), dim=0)
    found = region_average(noise(12, 12, seed=1), [features])
    torch.testing.assert_close(found.mean(), noise(12, 12, seed=1).mean())
    assert found.std() < noise(12, 12, seed=1).std()


def test_half_of_a_logit_is_averaged() -> None:
    """With four positions each cut leaves all of them apart, so that nothing changes; with two kinds, they show."""
    logits = noise(1, 2, 2)
    torch.testing.assert_close(with_regions(logits, [[PAIRS]]), logits)
    side = max(CUTS)
    kinds = torch.zeros(2, side, 2)
    kinds[0, :, 0], kinds[1, :, 1] = 1, 1  # exactly two kinds: every cut finds these, as equal positions are at 0
    truth = torch.where(kinds[0] > 0, 1.0, -1.0)
    logits = truth + 3 * noise(side, 2)
    wrong = ((logits > 0) != (truth > 0)).float().mean()
    better = ((with_regions(logits[None], [[kinds]])[0] > 0) != (truth > 0)).float().mean()
    assert wrong > 0.3 and better < wrong
