"""Caches in memory have a limit in bytes, and what they hold is what would be made."""

from __future__ import annotations

from collections import OrderedDict

import torch
from hypothesis import given
from hypothesis import strategies as st

from diffup.config import InputConfig
from diffup.episodes.cue_source import CueSource
from diffup.evaluation.encode import Encoder, FeatureCache
from diffup.evaluation.priors import PriorSource, Triple
from diffup.lru import ByteLRU, nbytes
from tests.helpers.toy import ToyBackbone, ToyDataset

GRID = 8
INPUT = InputConfig(input_size=48, feature_grid=GRID)


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 6), st.integers(1, 20), st.booleans()), max_size=60))
def test_the_limit_holds_and_the_least_recently_used_leaves(limit: int, asked: list[tuple[int, int, bool]]) -> None:
    cache: ByteLRU[int, bytes] = ByteLRU(limit, len)
    model: OrderedDict[int, bytes] = OrderedDict()
    for key, size, reads in asked:
        if reads:
            assert cache.get(key) == model.get(key)
            if key in model:
                model.move_to_end(key)
            continue
        value = bytes([key]) * size
        assert cache.put(key, value) is value
        model.pop(key, None)
        model[key] = value
        while sum(map(len, model.values())) > limit and len(model) > 1:
            model.popitem(last=False)
        assert cache.bytes == sum(map(len, model.values())) and len(cache) == len(model)
        assert cache.bytes <= limit or len(cache) == 1


def test_a_view_counts_all_that_it_keeps() -> None:
    whole = torch.zeros(1000)
    assert nbytes([whole[:1]]) == 4000 and nbytes([whole[:1].clone()]) == 4


def test_weights_and_truths_are_bounded_and_the_same() -> None:
    dataset = ToyDataset()
    plain, small = CueSource(dataset, INPUT), CueSource(dataset, INPUT, limit_bytes=2000)  # type: ignore[arg-type]
    asked = [(image, int(image.split("_")[0])) for image in dataset.image_ids] * 2
    for image, class_index in asked:
        for kind in ("mask", "box", "scribble"):
            expected = plain.weights(image, class_index, kind, GRID)
            assert torch.equal(small.weights(image, class_index, kind, GRID), expected)
        for one, two in zip(small.truth(image, class_index, 16), plain.truth(image, class_index, 16), strict=True):
            assert torch.equal(one, two)
        for kept in (small._weights, small._truths):
            assert 0 < kept.bytes <= max(2000, 2 * 16 * 16 * 4) and len(kept) < 5
    assert len(plain._weights) == 3 * len(dataset.image_ids) and len(plain._truths) == len(dataset.image_ids)
    foreground, valid = plain.truth(*asked[0], 16)
    assert nbytes([foreground, valid]) == 2 * 16 * 16 * 4, "nothing is kept but the two maps"


def test_what_is_remembered_is_not_made_again() -> None:
    dataset = ToyDataset()
    cues = CueSource(dataset, INPUT)  # type: ignore[arg-type]
    for _ in range(3):
        cues.weights("0_0", 0, "mask", GRID)
        cues.truth("0_0", 0, 16)
    assert dataset.asked_pairs.count(("0_0", 0)) == 2


def test_settled_boxes_and_embedded_names_are_bounded() -> None:
    dataset, backbone = ToyDataset(), ToyBackbone()
    encoder = Encoder(backbone, INPUT, backbone)  # type: ignore[arg-type]
    encoder._names.limit = 3000
    first = encoder.embed_names(["a red disc"])
    for i in range(200):
        encoder.embed_names([f"a red disc {i}"])
    assert encoder._names.bytes <= 3000
    assert torch.equal(encoder.embed_names(["a red disc"]), first)
    cues = CueSource(dataset, INPUT)  # type: ignore[arg-type]
    plain, small = (PriorSource(cues, FeatureCache(encoder, dataset.image)) for _ in range(2))
    small._boxes.limit = 1
    triples = [Triple("0_5", f"0_{i}", 0, "box") for i in (0, 1, 0, 2, 1)]
    for triple in triples:
        assert torch.equal(small.get([triple])[triple], plain.get([triple])[triple])
    assert len(small._boxes) == 1 and len(plain._boxes) == 3
