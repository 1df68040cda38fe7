"""UQDD: where it starts from, how far it may go, and what DQM's IoU is before it has learned anything."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffup.config import ModelConfig
from diffup.models.uapf import Fused, logit
from diffup.models.uqdd import QUERY_INFOS, UQDD, QualityHead, expected_iou

SIDE = 16


def inputs(batch: int = 3, context: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    return {
        "x_BHW": torch.randn(batch, SIDE, SIDE, generator=generator),
        "t_B": uniform(batch),
        "estimate_BHW": uniform(batch, SIDE, SIDE),
        "fused": Fused(
            uniform(batch, SIDE, SIDE), uniform(batch, SIDE, SIDE) + 0.01, uniform(batch, context, SIDE, SIDE)
        ),
        "infos_BXHW": torch.randn(batch, QUERY_INFOS, SIDE, SIDE, generator=generator),
    }


def decoder(**change: object) -> UQDD:
    torch.manual_seed(0)
    made = UQDD(ModelConfig(**{"decoder_grid": SIDE, "width": 8, **change}))  # type: ignore[arg-type]
    for layer in (made.out[-1], made.quality.iou[-1]):
        torch.nn.init.normal_(layer.weight, std=3.0)  # type: ignore[arg-type]
    return made.eval()


def test_untrained_decoder_leaves_the_mean_as_it_is() -> None:
    given = inputs()
    logits, _, _ = UQDD(ModelConfig(decoder_grid=SIDE, width=8))(**given)
    torch.testing.assert_close(logits, logit(given["fused"].mean))


def test_features_of_the_evidence_reach_the_mask() -> None:
    given, other = inputs(context=4), inputs(context=4)
    other["fused"].context[:, 2] += 1
    torch.manual_seed(0)
    made = UQDD(ModelConfig(decoder_grid=SIDE, width=8), context=4)
    torch.nn.init.normal_(made.out[-1].weight)  # type: ignore[arg-type]
    assert not torch.allclose(made(**given)[0], made(**other)[0])


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_bound_is_the_largest_correction_and_strength_scales_it(strength: float) -> None:
    given = inputs()
    mean = logit(given["fused"].mean)
    free = decoder()(**given, strength=strength)[0] - mean
    bounded = decoder(bound=0.75)(**given, strength=strength)[0] - mean
    assert free.abs().max() > strength
    torch.testing.assert_close(bounded, strength * 0.75 * torch.tanh(free / strength / 0.75), atol=1e-4, rtol=1e-4)


def expected(mask: Tensor, probability: Tensor) -> Tensor:
    """`expected_iou` of maps [B, H, W]."""
    inside, outside = (mask * probability).sum((1, 2)), ((1 - mask) * probability).sum((1, 2))
    return expected_iou(mask.sum((1, 2)), inside, outside)


def test_expected_iou_is_the_mean_iou_of_drawn_truths() -> None:
    probability = inputs(1)["estimate_BHW"]
    mask = (probability > 0.6).float()
    truth = (torch.rand(4000, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) < probability).float()
    drawn = (mask * truth).sum((1, 2)) / torch.maximum(mask, truth).sum((1, 2))
    assert expected(mask, probability).item() == pytest.approx(drawn.mean().item(), abs=0.002)


def test_expected_iou_of_a_sure_mask_is_one_and_of_an_empty_one_zero() -> None:
    mask = torch.zeros(2, SIDE, SIDE)
    mask[0, 2:9, 3:7] = 1
    torch.testing.assert_close(expected(mask, mask), torch.tensor([1.0, 0.0]))


def test_an_untrained_judge_expects_what_errors_and_probabilities_say() -> None:
    given = inputs()
    head, estimate = QualityHead(), given["estimate_BHW"]
    error, iou = head(given["x_BHW"], estimate, given["fused"].mean, given["fused"].variance)
    mask, wrong = (estimate > 0.5).float(), torch.sigmoid(error)
    by_error = logit(expected(mask, torch.where(mask > 0, 1 - wrong, wrong)))
    torch.testing.assert_close(iou, (by_error + logit(expected(mask, estimate))) / 2)


def test_judge_is_finite_on_an_empty_and_on_a_full_mask() -> None:
    given = inputs(2)
    estimate = torch.stack([torch.zeros(SIDE, SIDE), torch.ones(SIDE, SIDE)])
    error, iou = decoder().quality(given["x_BHW"], estimate, estimate, given["fused"].variance)
    assert torch.isfinite(error).all()
    assert torch.isfinite(iou).all()


def test_the_ious_loss_does_not_shape_the_error_map() -> None:
    given, head = inputs(), decoder().quality
    _, iou = head(given["x_BHW"], given["estimate_BHW"], given["fused"].mean, given["fused"].variance)
    iou.sum().backward()
    assert head.error.weight.grad is None
