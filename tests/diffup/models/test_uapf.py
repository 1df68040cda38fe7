"""UAPF: any number and mix of cues to a mean and a variance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffup.config import BASES, CUES, EVIDENCE_MAPS, OBJECTNESS
from diffup.models.baft import EVIDENCE, MAPS, evidence_logit, min_max
from diffup.models.uapf import DOUBT, EDGE, SHIFT, UAPF, Fused

both_bases = pytest.mark.parametrize("base", BASES)


def trained_like(base: str = "prior", seed: int = 0) -> UAPF:
    torch.manual_seed(seed)
    fusion = UAPF(base=base)
    weights = [fusion.shift.weight, fusion.factor.weight]
    for weight in weights if fusion.absolute else [*weights, fusion.map_logits]:
        torch.nn.init.normal_(weight, std=0.3)
    return fusion.eval()


def cues(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    prior = min_max(torch.rand(2, count, 3, MAPS, 10, 10, generator=generator))
    return prior, torch.randint(0, 4, (2, count), generator=generator)


def odds(count: int) -> Tensor:
    """Log-odds for `cues`; the last map is the same at each stage."""
    made = torch.randn(2, count, 3, EVIDENCE, 10, 10, generator=torch.Generator().manual_seed(1))
    made[:, :, :, -1] = made[:, :, :1, -1]
    return made


def fuse(fusion: UAPF, prior: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance with base ``"prior"``."""
    found = fusion(prior, torch.zeros(0), kind)
    return found.mean, found.variance


def close(one: Fused, other: Fused) -> None:
    for name in ("mean", "variance", "context"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-5, rtol=1e-5)


@both_bases
def test_order_of_cues_does_not_matter(base: str) -> None:
    fusion, (prior, kind), told = trained_like(base), cues(4), odds(4)
    order = [3, 1, 0, 2]
    close(fusion(prior, told, kind), fusion(prior[:, order], told[:, order], kind[:, order]))


def test_order_of_stages_does_not_matter_to_stretched_maps() -> None:
    fusion, (prior, kind), none = trained_like(), cues(2), torch.zeros(0)
    close(fusion(prior, none, kind), fusion(prior[:, :, [2, 0, 1]], none, kind))


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_untrained_fusion_of_evidence_is_the_best_training_free_map(count: int, learned: bool) -> None:
    (prior, kind), told = cues(count), odds(count)
    found = UAPF(base="evidence", learned=learned)(prior, told, kind)
    torch.testing.assert_close(torch.logit(found.mean), evidence_logit(told, OBJECTNESS / count), atol=1e-4, rtol=1e-4)
    assert found.mean.amax() < 1 and found.mean.amin() > 0, "stretched: its level is lost"
    if count == 1 or not learned:
        torch.testing.assert_close(found.variance, found.mean * (1 - found.mean) + DOUBT, atol=1e-5, rtol=1e-5)


def test_fused_evidence_keeps_its_level() -> None:
    """The same maps with all log-odds lower: everywhere less foreground, by as much."""
    (prior, kind), told, fusion = cues(1), odds(1), UAPF(base="evidence")
    lower = told.clone()
    lower[:, :, :, EVIDENCE_MAPS.index("refined")] -= 2
    before, after = (torch.logit(fusion(prior, maps, kind).mean) for maps in (told, lower))
    torch.testing.assert_close(before - after, torch.full_like(before, 2.0), atol=1e-3, rtol=1e-3)


def test_a_learned_shift_of_evidence_is_bounded() -> None:
    (prior, kind), told = cues(1), odds(1)
    moved = torch.logit(trained_like("evidence")(prior, told, kind).mean) - evidence_logit(told, OBJECTNESS)
    assert 1e-3 < moved.abs().max() <= SHIFT + 1e-4


def test_cues_that_disagree_raise_the_variance_of_evidence() -> None:
    (prior, kind), told, fusion = cues(1), odds(1), UAPF(base="evidence")
    prior, kind = prior.repeat(1, 2, 1, 1, 1, 1), kind.repeat(1, 2)
    agreed, opposed = (fusion(prior, torch.cat([told, other], 1), kind).variance for other in (told, -told))
    assert (opposed - 0.25 - DOUBT > -1e-5).all() and opposed.mean() > agreed.mean()


def test_untrained_fusion_of_one_cue_is_the_prior_mean() -> None:
    prior, kind = cues(1)
    mean, variance = fuse(UAPF(), prior, kind)
    value = min_max(prior.mean((1, 2, 3))).clamp(EDGE, 1 - EDGE)
    torch.testing.assert_close(mean, min_max(value), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(variance, value * (1 - value) + DOUBT, atol=1e-5, rtol=1e-5)


def test_untrained_fusion_weighs_each_cue_by_its_own_certainty() -> None:
    prior, kind = cues(3)
    mean, variance = fuse(UAPF(), prior, kind)
    value = min_max(prior.mean((2, 3))).clamp(EDGE, 1 - EDGE)
    precision = 1 / (value * (1 - value) + DOUBT)
    fused = (precision * value).sum(1) / precision.sum(1)
    disagreement = (precision * (value - fused[:, None]) ** 2).sum(1) / precision.sum(1)
    torch.testing.assert_close(mean, min_max(fused), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(variance, 1 / precision.sum(1) + disagreement, atol=1e-5, rtol=1e-5)


def test_each_kind_of_cue_weighs_the_maps_for_itself() -> None:
    prior, _ = cues(1)
    fusion = UAPF()
    box = CUES.index("box")
    with torch.no_grad():
        fusion.map_logits[box, 3] = 2.0
    torch.testing.assert_close(fusion.map_weights().sum(-1), torch.ones(len(CUES)))
    mean, _ = fuse(fusion, prior, torch.full((2, 1), box))
    torch.testing.assert_close(mean, min_max(min_max(prior[:, 0, :, 3].mean(1)).clamp(EDGE, 1 - EDGE)))
    untouched, _ = fuse(fusion, prior, torch.full((2, 1), CUES.index("mask")))
    assert not torch.allclose(untouched, mean, atol=0.05)


def test_the_variances_features_are_not_shaped_by_the_variance() -> None:
    fusion, (prior, kind) = trained_like(), cues(1)
    _, variance = fuse(fusion, prior, kind)
    variance.sum().backward()
    assert fusion.factor.weight.grad is not None
    assert fusion.factor.weight.grad.abs().sum() > 0
    assert all(p.grad is None or not p.grad.any() for p in fusion.mix.parameters())


def test_mean_is_a_probability_and_variance_positive_for_any_number_of_cues() -> None:
    for count in (1, 2, 7):
        mean, variance = fuse(trained_like(), *cues(count))
        assert mean.shape == variance.shape == (2, 10, 10)
        assert 0 <= mean.min() <= mean.max() <= 1
        assert variance.min() > 0


def test_more_agreeing_cues_lower_the_variance_and_disagreement_raises_it() -> None:
    prior, kind = cues(1)
    fusion = UAPF()
    _, one = fuse(fusion, prior, kind)
    _, same = fuse(fusion, prior.repeat(1, 4, 1, 1, 1, 1), kind.repeat(1, 4))
    _, opposed = fuse(fusion, torch.cat([prior, 1 - prior], 1), kind.repeat(1, 2))
    _, pair = fuse(fusion, prior.repeat(1, 2, 1, 1, 1, 1), kind.repeat(1, 2))
    assert (same < one).all()
    assert opposed.mean() > pair.mean()


def test_plain_variant_needs_no_weights() -> None:
    fusion = UAPF(learned=False)
    assert not list(fusion.parameters())
    mean, variance = fuse(fusion, *cues(2))
    assert mean.shape == (2, 10, 10)
    assert variance.min() > 0


def test_the_variance_is_around_the_mean_before_it_is_stretched() -> None:
    """A map of little contrast: the mean is stretched to [0, 1], the variance stays that of the cues themselves."""
    fusion = UAPF()
    flat = min_max(torch.rand(1, 2, 3, MAPS, 10, 10, generator=torch.Generator().manual_seed(3)))
    value = min_max(flat.mean((2, 3))).clamp(EDGE, 1 - EDGE)
    precision = 1 / (value * (1 - value) + DOUBT)
    weight = precision / precision.sum(1, keepdim=True)
    before = (weight * value).sum(1)
    with torch.no_grad():
        mean, variance = fuse(fusion, flat, torch.zeros(1, 2, dtype=torch.long))
    assert float(mean.min()) == 0 and float(mean.max()) == 1
    assert (mean - before).abs().max() > 0.05, "this test needs a mean that stretching changes"
    around = {name: 1 / precision.sum(1) + (weight * (value - m[:, None]) ** 2).sum(1) for name, m in
              (("before", before), ("after", mean))}  # fmt: skip
    torch.testing.assert_close(variance, around["before"], atol=1e-6, rtol=1e-6)
    assert (variance - around["after"]).abs().max() > 1e-3


def test_the_plain_variants_variance_is_that_of_all_maps() -> None:
    prior, kind = cues(2)
    _, variance = fuse(UAPF(learned=False), prior, kind)
    torch.testing.assert_close(variance, prior.flatten(1, 3).var(dim=1, unbiased=False) + 1e-3)
