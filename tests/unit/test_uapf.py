"""UAPF: any number and mix of cues to a mean and a variance."""

import torch

from diffup.baft import MAPS, min_max
from diffup.uapf import UAPF


def trained_like(seed: int = 0) -> UAPF:
    torch.manual_seed(seed)
    fusion = UAPF()
    torch.nn.init.normal_(fusion.out.weight, std=0.3)
    return fusion.eval()


def cues(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    prior = min_max(torch.rand(2, count, 3, MAPS, 10, 10, generator=generator))
    return prior, torch.randint(0, 4, (2, count), generator=generator)


def test_order_of_cues_does_not_matter() -> None:
    fusion, (prior, kind) = trained_like(), cues(4)
    order = [3, 1, 0, 2]
    torch.testing.assert_close(fusion(prior, kind), fusion(prior[:, order], kind[:, order]), atol=1e-5, rtol=1e-5)


def test_order_of_stages_does_not_matter() -> None:
    fusion, (prior, kind) = trained_like(), cues(2)
    torch.testing.assert_close(fusion(prior, kind), fusion(prior[:, :, [2, 0, 1]], kind), atol=1e-5, rtol=1e-5)


def test_untrained_fusion_is_the_mean_of_the_cues_priors() -> None:
    prior, kind = cues(3)
    mean, _ = UAPF()(prior, kind)
    torch.testing.assert_close(
        mean, min_max(min_max(prior.mean((2, 3))).clamp(0.02, 0.98).mean(1)), atol=1e-5, rtol=1e-5
    )


def test_mean_is_a_probability_and_variance_positive_for_any_number_of_cues() -> None:
    for count in (1, 2, 7):
        mean, variance = trained_like()(*cues(count))
        assert mean.shape == variance.shape == (2, 10, 10)
        assert 0 <= mean.min() <= mean.max() <= 1
        assert variance.min() > 0


def test_more_agreeing_cues_lower_the_variance_and_disagreement_raises_it() -> None:
    prior, kind = cues(1)
    fusion = UAPF()
    _, one = fusion(prior, kind)
    _, same = fusion(prior.repeat(1, 4, 1, 1, 1, 1), kind.repeat(1, 4))
    _, opposed = fusion(torch.cat([prior, 1 - prior], 1), kind.repeat(1, 2))
    _, pair = fusion(prior.repeat(1, 2, 1, 1, 1, 1), kind.repeat(1, 2))
    assert (same < one).all()
    assert opposed.mean() > pair.mean()


def test_plain_variant_needs_no_weights() -> None:
    fusion = UAPF(learned=False)
    assert not list(fusion.parameters())
    mean, variance = fusion(*cues(2))
    assert mean.shape == (2, 10, 10)
    assert variance.min() > 0
