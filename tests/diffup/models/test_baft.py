"""BAFT: maps of fixed number and meaning, whatever backbone made the features."""

import pytest
import torch
import torch.nn.functional as F

from diffup.config import EVIDENCE_MAPS, PRIOR_MAPS
from diffup.episodes.cues import cue_weights
from diffup.models.baft import (
    EVIDENCE,
    MAPS,
    min_max,
    prior_mean,
    prototype_contrast,
    self_affinities,
    text_priors,
    visual_priors,
)
from diffup.models.evidence import LIMIT

GRID = 12


def features(channels: int, *lead: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*lead, channels, GRID, GRID, generator=generator), dim=-3)


def mapped(query: list[torch.Tensor], supports: list[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """The maps of one annotation, whose weights are [B, K, 2, h, w]."""
    return visual_priors(query, self_affinities(query), supports, [weights])[0]


def sides(foreground: torch.Tensor) -> torch.Tensor:
    """Foreground weights [B, K, h, w] and the rest as background."""
    return torch.stack([foreground, 1 - foreground], dim=2)


def planted(channels: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A query and a support that share an object's feature: query, support, support mask, query mask."""
    generator = torch.Generator().manual_seed(seed)
    obj, ground = torch.randn(2, channels, generator=generator)
    masks = torch.zeros(2, GRID, GRID)
    masks[0, 2:7, 3:8] = 1
    masks[1, 5:10, 1:6] = 1
    images = []
    for mask in masks:
        clean = mask * obj[:, None, None] + (1 - mask) * ground[:, None, None]
        images.append(F.normalize(clean + 0.5 * torch.randn(clean.shape, generator=generator), dim=0))
    return images[0][None], images[1][None, None], masks[1][None, None], masks[0]


@pytest.mark.parametrize("channels", [(8, 16, 32), (64, 64, 64), (3, 700, 5)])
def test_number_and_range_of_maps_do_not_depend_on_the_backbone(channels: tuple[int, ...]) -> None:
    query = [features(c, 2) for c in channels]
    supports = [features(c, 2, 3, seed=1) for c in channels]
    weights = torch.rand(2, 3, 2, GRID, GRID)
    maps = mapped(query, supports, weights)
    assert maps.shape == (2, 3, 3, MAPS + EVIDENCE, GRID, GRID)
    assert maps[:, :, :, :MAPS].min() >= 0
    assert maps[:, :, :, :MAPS].max() <= 1
    assert maps[:, :, :, MAPS:].abs().max() <= LIMIT


def test_rotating_the_feature_space_changes_nothing() -> None:
    query, support, weight = [features(16, 2)], [features(16, 2, 1, seed=1)], torch.rand(2, 1, GRID, GRID)
    rotation = torch.linalg.qr(torch.randn(16, 16))[0]
    turned = [torch.einsum("bchw,cd->bdhw", query[0], rotation)]
    turned_support = [torch.einsum("bkchw,cd->bkdhw", support[0], rotation)]
    torch.testing.assert_close(
        mapped(query, support, sides(weight)),
        mapped(turned, turned_support, sides(weight)),
        atol=1e-3,
        rtol=0,
    )


def test_every_map_finds_a_planted_object() -> None:
    query, support, weight, truth = planted(32)
    maps = mapped([query], [support], sides(weight))[0, 0, 0]
    for name, found in zip((*PRIOR_MAPS, *EVIDENCE_MAPS), maps, strict=True):
        if name in ("bank_over_background", "objectness"):  # without a bank they say nothing
            assert not found.any()
            continue
        assert found[truth == 1].mean() > found[truth == 0].mean() + 0.3
    assert ((prior_mean(maps[None, None, None, :MAPS])[0] > 0.5) == (truth == 1)).float().mean() > 0.95
    probability = prototype_contrast(query, support, sides(weight))[0]
    assert ((probability > 0.5) == (truth == 1)).float().mean() > 0.95


def test_cues_are_independent_and_ordered() -> None:
    query, supports, weight = [features(8, 1)], [features(8, 1, 3, seed=1)], torch.rand(1, 3, GRID, GRID)
    together = mapped(query, supports, sides(weight))
    order = [2, 0, 1]
    shuffled = mapped(query, [supports[0][:, order]], sides(weight[:, order]))
    torch.testing.assert_close(together[:, order], shuffled)
    alone = mapped(query, [supports[0][:, 1:2]], sides(weight[:, 1:2]))
    torch.testing.assert_close(together[:, 1:2], alone, atol=1e-4, rtol=0)


def test_annotations_of_the_same_supports_give_the_bytes_of_each_alone() -> None:
    query, supports = [features(8, 2), features(16, 2)], [features(8, 2, 3, seed=1), features(16, 2, 3, seed=2)]
    annotations = [sides(torch.rand(2, 3, GRID, GRID)) for _ in range(3)]
    together = visual_priors(query, self_affinities(query), supports, annotations)
    for weights, maps in zip(annotations, together, strict=True):
        assert torch.equal(maps, mapped(query, supports, weights))


def test_balanced_sides_make_a_thin_stroke_count() -> None:
    """A scribble of few positions must not be outvoted by a large background."""
    query, support, weight, truth = planted(32)
    stroke = torch.zeros_like(weight)
    stroke[..., 7, 3] = 1
    maps = mapped([query], [support], torch.stack([stroke, 1 - weight], dim=2))[0, 0, 0]
    assert ((prior_mean(maps[None, None, None, :MAPS])[0] > 0.5) == (truth == 1)).float().mean() > 0.9


def test_text_maps_peak_where_the_named_class_is() -> None:
    similarity = torch.full((1, 3, GRID, GRID), 0.2)
    similarity[0, 1, 3:6, 3:6] = 0.4
    query = [torch.ones(1, 4, GRID, GRID) / 2]
    right = text_priors(self_affinities(query), similarity, torch.tensor([1]))
    wrong = text_priors(self_affinities(query), similarity, torch.tensor([0]))
    assert right.shape == (1, 1, 1, MAPS + EVIDENCE, GRID, GRID)
    assert right[0, 0, 0, :4, 4, 4].min() == 1.0
    assert wrong[0, 0, 0, :4, 4, 4].max() == 0.0


def test_a_single_class_name_still_gives_finite_maps() -> None:
    maps = text_priors(self_affinities([features(8, 1)]), torch.rand(1, 1, GRID, GRID), torch.tensor([0]))
    assert torch.isfinite(maps).all()


def test_constant_map_is_half() -> None:
    assert torch.equal(min_max(torch.full((2, 3, 3), 7.0)), torch.full((2, 3, 3), 0.5))


def test_unscribbled_is_unknown_near_the_stroke_and_background_far_from_it() -> None:
    annotation = torch.full((60, 80), 2, dtype=torch.uint8).numpy()
    annotation[10:14, 10:20] = 1
    foreground, background = cue_weights(annotation, "scribble", GRID)
    assert foreground.sum() > 0
    assert background[3, 3] == 0  # beside the stroke: unknown
    assert background[-1, -1] == 1  # the far corner


def test_a_stroke_across_the_image_still_has_some_background() -> None:
    annotation = torch.full((60, 60), 2, dtype=torch.uint8).numpy()
    annotation[::6, :] = 1
    _, background = cue_weights(annotation, "scribble", GRID)
    assert background.sum() >= 1


def test_a_cue_without_foreground_is_refused() -> None:
    with pytest.raises(ValueError, match="no foreground pixel"):
        cue_weights(torch.zeros(10, 10, dtype=torch.uint8).numpy(), "mask", GRID)
