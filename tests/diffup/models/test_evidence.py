"""Absolute evidence: the formulas, what a bank changes, and that no backbone's scale enters."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from diffup.config import EVIDENCE_MAPS
from diffup.models.baft import MAPS, evidence_logit, positions, self_affinities, visual_priors
from diffup.models.evidence import LIMIT, SHARP, SOFT, Bank, Negatives, log_odds, self_ratio, text_log_odds

GRID, IMAGES, EACH, CHANNELS = 6, 5, 4, 16
ODDS = {name: MAPS + place for place, name in enumerate(EVIDENCE_MAPS)}


def unit(*shape: int, seed: int) -> torch.Tensor:
    """Features with channels in place of the third last dimension."""
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-3)


def bank(seed: int = 0, stages: int = 1, objects: bool = True) -> Bank:
    rows = [F.normalize(unit(IMAGES, CHANNELS, 1, EACH, seed=seed + s)[:, :, 0].mT, dim=-1) for s in range(stages)]
    shown = torch.zeros(IMAGES, EACH, dtype=torch.bool)
    shown[:, :2] = objects
    return Bank.of(rows, shown)


def against(of: Bank, query: list[torch.Tensor], **more: object) -> Negatives:
    return Negatives(of, of.answers([positions(stage) for stage in query]), **more)  # type: ignore[arg-type]


def sides(seed: int, batch: int = 1, shots: int = 1) -> torch.Tensor:
    foreground = torch.rand(batch, shots, GRID, GRID, generator=torch.Generator().manual_seed(seed))
    return torch.stack([foreground, 1 - foreground], dim=2)


def mapped(
    query: list[torch.Tensor], supports: list[torch.Tensor], weights: torch.Tensor, how: Negatives | None
) -> torch.Tensor:
    return visual_priors(query, self_affinities(query), supports, [weights], how)[0]


def test_the_odds_are_those_of_the_formulas_in_double_precision() -> None:
    query, support, weights, of = (
        unit(1, CHANNELS, GRID, GRID, seed=1),
        unit(1, 1, CHANNELS, GRID, GRID, seed=2),
        sides(3),
        bank(),
    )
    made = visual_priors([query], self_affinities([query]), [support], [weights], against(of, [query]))[0][0, 0, 0]
    q, s = query[0].double().flatten(1).T, support[0, 0].double().flatten(1).T
    z = (q @ s.T - of.mean[0]) / of.deviation[0]
    z_bank = (q @ of.positions[0].double().flatten(0, 1).T - of.mean[0]) / of.deviation[0]
    f, b = (side / side.sum() for side in weights[0, 0].double().flatten(1))
    for name, temperature in (("odds_sharp", SHARP), ("odds_soft", SOFT)):
        fg, bg = (torch.exp(z / temperature) * side for side in (f, b))
        other = (bg.sum(1) + torch.exp(z_bank / temperature).mean(1)) / 2
        expected = (fg.sum(1).log() - other.log()).clamp(-LIMIT, LIMIT)
        torch.testing.assert_close(made[ODDS[name]].flatten().double(), expected, atol=1e-3, rtol=0)
    shown = of.object_NM.flatten()
    soft = torch.exp(z_bank / SOFT)
    expected = (soft[:, shown].mean(1).log() - soft[:, ~shown].mean(1).log()).clamp(-LIMIT, LIMIT)
    torch.testing.assert_close(made[ODDS["objectness"]].flatten().double(), expected, atol=1e-3, rtol=0)


def test_images_of_the_bank_that_are_not_allowed_have_no_say() -> None:
    query, support = [unit(2, CHANNELS, GRID, GRID, seed=1)], [unit(2, 1, CHANNELS, GRID, GRID, seed=2)]
    weights, of = sides(3, 2), bank()
    alike = self_affinities(query)
    allowed = torch.ones(2, IMAGES, dtype=torch.bool)
    allowed[0, 2:] = False
    found = visual_priors(query, alike, support, [weights], against(of, query, allowed_BN=allowed))[0]
    fewer = Bank((of.positions[0][:2],), of.object_NM[:2], of.mean, of.deviation)
    expected = visual_priors(query, alike, support, [weights], against(fewer, query))[0]
    torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=1e-4)
    whole = visual_priors(query, alike, support, [weights], against(of, query))[0]
    torch.testing.assert_close(found[1], whole[1], atol=1e-4, rtol=1e-4)


def test_the_images_that_are_dropped_are_those_that_show_the_object() -> None:
    support = [unit(1, 1, CHANNELS, GRID, GRID, seed=2)]
    weights = torch.zeros(1, 1, 2, GRID * GRID)
    weights[..., 0, 7], weights[..., 1, 9] = 1, 1
    of = bank()
    rows = of.positions[0].clone()
    rows[3, 1] = support[0][0, 0].flatten(1)[:, 7]  # image 3 shows it
    of = Bank((rows,), of.object_NM, of.mean, of.deviation)
    query = [unit(1, CHANNELS, GRID, GRID, seed=1)]
    assert against(of, query, drop=0.2).kept(support, weights)[0, 0].tolist() == [1, 1, 1, 0, 1]
    assert against(of, query).kept(support, weights)[0, 0].tolist() == [1] * 5
    barred = torch.tensor([[True, True, False, True, True]])
    assert against(of, query, drop=0.25, allowed_BN=barred).kept(support, weights)[0, 0].tolist() == [1, 1, 0, 0, 1]


def test_a_bank_takes_evidence_from_what_is_everywhere() -> None:
    """A query of nothing but what the bank shows has less odds with the bank than without one; the object keeps its."""
    generator = torch.Generator().manual_seed(0)
    thing, ground, other = F.normalize(torch.randn(3, CHANNELS, generator=generator), dim=1)

    def image(first: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        made = rest[:, None, None].repeat(1, GRID, GRID)
        made[:, :2] = first[:, None, None]
        return F.normalize(made + 0.1 * torch.randn(made.shape, generator=generator), dim=0)

    support, query = image(thing, ground), image(thing, other)
    weights = torch.zeros(1, 1, 2, GRID, GRID)
    weights[..., 0, :2, :], weights[..., 1, 2:, :] = 1, 1
    mixed = torch.stack([image(ground, other).flatten(1).T[::6] for _ in range(4)])
    of = Bank.of([mixed], torch.zeros(mixed.shape[:2], dtype=torch.bool))
    stage = [query[None]]
    alone, with_bank = (
        evidence_logit(mapped(stage, [support[None, None]], weights, how)[:, :, :, MAPS:])[0]
        for how in (None, against(of, stage))
    )
    assert with_bank[2:].mean() < alone[2:].mean()
    assert with_bank[:2].min() > 0 > with_bank[2:].max()


def test_objectness_of_a_bank_without_labels_is_nothing() -> None:
    query, support = [unit(1, CHANNELS, GRID, GRID, seed=1)], [unit(1, 1, CHANNELS, GRID, GRID, seed=2)]
    maps = visual_priors(query, self_affinities(query), support, [sides(3)], against(bank(objects=False), query))[0]
    assert not maps[0, 0, 0, ODDS["objectness"]].any()
    assert torch.equal(evidence_logit(maps[:, :, :, MAPS:], 0.2), evidence_logit(maps[:, :, :, MAPS:]))


def test_the_scale_of_a_backbones_cosines_does_not_enter() -> None:
    """Shrinking all cosines towards their mean, as a narrow backbone does, leaves a bank's z values."""
    narrow = bank()
    cosines = torch.linspace(-1, 1, 7)
    other = Bank(narrow.positions, narrow.object_NM, (narrow.mean[0] * 0.1 + 0.5,), (narrow.deviation[0] * 0.1,))
    torch.testing.assert_close(
        narrow.weights(cosines.clone(), 0), other.weights(cosines * 0.1 + 0.5, 0), rtol=1e-4, atol=0
    )


@given(st.lists(st.floats(0, 2.0**100), min_size=2, max_size=2))
def test_log_odds_are_finite_and_within_their_limits(both: list[float]) -> None:
    found = log_odds(*torch.tensor(both))
    assert torch.isfinite(found) and abs(float(found)) <= LIMIT + 1e-6


def test_the_self_ratio_is_odd_and_keeps_certainty() -> None:
    affinity = self_affinities([unit(1, CHANNELS, GRID, GRID, seed=1)])[0]
    logits = torch.randn(1, 1, GRID * GRID, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(self_ratio(affinity, -logits), -self_ratio(affinity, logits), atol=1e-5, rtol=0)
    certain = self_ratio(torch.eye(GRID * GRID)[None], torch.full((1, 1, GRID * GRID), 3.0))
    torch.testing.assert_close(certain, torch.full_like(certain, 0.75 * 3.0))


@pytest.mark.parametrize("names", [1, 2, 4])
def test_text_odds_are_log_odds_against_the_mean_of_the_other_names(names: int) -> None:
    similarity = torch.rand(1, names, 9, generator=torch.Generator().manual_seed(0))
    found = text_log_odds(similarity, torch.tensor([0]), 0.5)
    if names == 1:
        assert not found.any()
        return
    others = torch.exp(similarity[:, 1:] / 0.5).mean(1)
    torch.testing.assert_close(found, (torch.exp(similarity[:, 0] / 0.5) / others).log(), atol=1e-5, rtol=0)
    assert math.isclose(float(text_log_odds(similarity * 0, torch.tensor([0]), 0.5).abs().max()), 0, abs_tol=1e-6)
