"""INSID3's decision rule on made-up features: what is found, what is not, and the steps that decide."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from diffup.models.insid3 import ACCEPTED, LINKED, insid3_mask

SIDE, CHANNELS = 10, 24
BASIS = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(0))).Q


def features(kinds: torch.Tensor, seed: int, spread: float = 0.04) -> torch.Tensor:
    """Each position's kind is a direction, beside noise, [C, h, w]."""
    generator = torch.Generator().manual_seed(seed)
    noise = spread * torch.randn(CHANNELS, *kinds.shape, generator=generator)
    return F.normalize(BASIS[kinds].movedim(-1, 0) + noise, dim=0)


def layout(kind: int, rows: slice, columns: slice, ground: int = 1) -> torch.Tensor:
    kinds = torch.full((SIDE, SIDE), ground)
    kinds[rows, columns] = kind
    return kinds


def weights(mask: torch.Tensor) -> torch.Tensor:
    return torch.stack([mask.float(), 1 - mask.float()])[None]


QUERY = layout(0, slice(1, 5), slice(2, 9))
SUPPORT = layout(0, slice(4, 8), slice(3, 7), ground=2)


def test_the_object_is_found_on_another_ground() -> None:
    found = insid3_mask([features(QUERY, 1)] * 3, [features(SUPPORT, 2)[None]] * 3, weights(SUPPORT == 0))
    assert found.dtype == torch.bool and torch.equal(found, QUERY == 0)


def test_of_several_supports_half_must_agree() -> None:
    good, bad = features(SUPPORT, 2), features(layout(5, slice(4, 8), slice(3, 7), ground=0), 3)
    sides = weights(SUPPORT == 0)
    query = [features(QUERY, 1)]
    for supports, expected in (([good, good, bad], True), ([good, bad, bad], False)):
        found = insid3_mask(query, [torch.stack(supports)], sides.expand(3, -1, -1, -1))
        assert bool(found[QUERY == 0].all()) == expected


def test_an_object_that_is_not_there_gives_nothing() -> None:
    query = features(layout(3, slice(1, 5), slice(2, 9), ground=2), 1)
    support = SUPPORT.clone()
    support[0] = 3  # what the query shows is background of the support
    assert not insid3_mask([query], [features(support, 2)[None]], weights(SUPPORT == 0)).any()


def test_a_region_counts_by_its_likeness_to_prototype_and_seed_and_its_share_of_candidates() -> None:
    """A part that looks half like the object: taken where half of a half is above the bound, by its own cosines."""
    mixed = F.normalize(BASIS[0] + BASIS[4] * 1.4, dim=0)
    cosine = float(mixed @ BASIS[0])
    assert cosine < LINKED and cosine**2 > ACCEPTED, "a region of its own that is like enough"
    kinds = layout(0, slice(1, 5), slice(2, 9))
    query = features(kinds, 1, spread=0.0)
    query[:, 7:9, 2:9] = mixed[:, None, None]
    support = features(SUPPORT, 2, spread=0.0)
    found = insid3_mask([query], [support[None]], weights(SUPPORT == 0))
    assert found[kinds == 0].all() and found[7:9, 2:9].all() and not found[9].any()
    rival = support.clone()
    rival[:, 0] = F.normalize(mixed + 0.3 * BASIS[2], dim=0)[:, None]  # now its nearest position is background
    assert not insid3_mask([query], [rival[None]], weights(SUPPORT == 0))[7:9, 2:9].any()


@pytest.mark.parametrize("half", [0.2, 0.02])
def test_a_tiny_object_is_where_it_is_most(half: float) -> None:
    """Its position has less foreground than background, as the object is smaller than a position."""
    sides = weights(torch.zeros(SIDE, SIDE))
    sides[0, :, 5, 5] = torch.tensor([half, 1 - half])
    found = insid3_mask([features(QUERY, 1)], [features(SUPPORT, 2)[None]], sides)
    assert not found[QUERY != 0].any(), "kind 0 is at the place"


def test_unknown_positions_of_a_scribble_match_nothing() -> None:
    """The rest of the object is not scribbled, neither foreground nor background: it must not vote against."""
    sides = torch.zeros(1, 2, SIDE, SIDE)
    sides[0, 0, 5, 4] = 1
    sides[0, 1] = (SUPPORT != 0).float()
    found = insid3_mask([features(QUERY, 1)], [features(SUPPORT, 2)[None]], sides)
    assert torch.equal(found, QUERY == 0)
