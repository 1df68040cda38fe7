"""Prior maps by triple: those of the batched path, the same bytes in any company, and from shards as computed."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from diffup.config import InputConfig, SampleConfig
from diffup.episodes.cue_source import CueSource
from diffup.episodes.sampling import paired_episodes
from diffup.evaluation.encode import Encoder, FeatureCache, to_rows
from diffup.evaluation.evaluate import Evaluation, evaluate, gather, triples
from diffup.evaluation.priors import PRIOR, PriorSource, Triple
from diffup.evaluation.shards import ShardStore
from diffup.models.diffup import priors
from tests.helpers.toy import ToyBackbone, ToyDataset

pytestmark = pytest.mark.usefixtures("one_thread")
INPUT = InputConfig(input_size=48, feature_grid=8)
KINDS = ("mask", "box", "scribble")
FOLD = 1


def sources(*, text: bool = False) -> tuple[CueSource, FeatureCache]:
    dataset, backbone = ToyDataset(8), ToyBackbone()
    encoder = Encoder(backbone, INPUT, backbone if text else None)  # type: ignore[arg-type]
    return CueSource(dataset, INPUT), FeatureCache(encoder, dataset.image)  # type: ignore[arg-type]


def task(annotation: str, shots: int) -> Evaluation:
    return Evaluation(
        model=None, sample=SampleConfig(method="prior_mean"), annotation=annotation, shots=shots,
        class_indices=ToyDataset.folds[FOLD], fold=FOLD,
    )  # fmt: skip


def episodes(count: int = 12):  # type: ignore[no-untyped-def]
    dataset = ToyDataset(8)
    return paired_episodes(
        {c: dataset.pool(c) for c in dataset.folds[FOLD]}, fold=FOLD, shots=5, episodes=count, seed=0
    )


def wanted() -> list[Triple]:
    return [t for kind in KINDS for shots in (1, 5) for e in episodes() for t in triples(task(kind, shots), e)]


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_the_maps_of_a_batch(kind: str) -> None:
    cues, features = sources()
    what, asked = task(kind, 5), episodes(6)
    rows = [triples(what, episode) for episode in asked]
    batched = priors(gather(rows, cues, features))
    single = PriorSource(cues, features).batch(rows)
    torch.testing.assert_close(single.prior_BKSPhw, batched.prior_BKSPhw, rtol=0, atol=2e-4)
    assert torch.equal(single.kind_BK, batched.kind_BK) and torch.equal(single.rgb_B3RR, batched.rgb_B3RR)


def test_text_maps_are_those_of_a_batch() -> None:
    cues, features = sources(text=True)
    (episode,) = episodes(1)
    cue = triples(task("text", 0), episode)
    maps = PriorSource(cues, features).batch([cue])
    assert maps.kind_BK.tolist() == [[3]] and cue[0].support == ""
    table = evaluate(task("text", 0), [episode], cues, features, progress=False)
    assert table["inter_fg"][0] > 0


def test_many_pairs_at_a_time_are_the_maps_of_one_at_a_time() -> None:
    """As on a GPU."""
    asked = [*wanted(), *(t for e in episodes() for t in triples(task("text", 0), e))]
    one, many = PriorSource(*sources(text=True)), PriorSource(*sources(text=True), pairs=7)
    expected, found = one.get(asked), many.get(asked)
    assert found.keys() == expected.keys() and many.computed == one.computed == len(set(asked))
    for triple, maps in found.items():
        torch.testing.assert_close(maps, expected[triple], rtol=0, atol=2e-4)


@pytest.mark.parametrize("annotation", ["mask", "box", "mask+text"])
def test_a_batch_upsampled_and_counted_as_a_whole_has_the_counts_of_its_episodes(annotation: str) -> None:
    """As on a GPU."""
    cues, features = sources(text=True)
    tables = [
        evaluate(task(annotation, 2), episodes(), cues, features, priors=PriorSource(cues, features, pairs=pairs))
        for pairs in (1, 7)
    ]
    for name in ("inter_fg", "union_fg", "inter_bg", "union_bg"):
        away = (tables[0][name] - tables[1][name]).abs().sum()
        assert away <= 1e-4 * tables[0][name].sum(), name
    for name in ("prob_count", "prob_positive", "prob_sum"):
        one, many = ([sum(row) for row in table[name]] for table in tables)
        np.testing.assert_allclose(one, many, rtol=1e-4)


def test_a_triples_bytes_do_not_depend_on_its_company() -> None:
    every = dict(PriorSource(*sources()).compute(dict.fromkeys(wanted())))
    rng = random.Random(0)
    for _ in range(8):
        some = rng.sample(sorted(every), rng.choice([1, 2, 7, 30]))
        for triple, maps in PriorSource(*sources()).compute(some):
            assert torch.equal(maps, every[triple])


def test_nested_shots_share_and_nothing_is_computed_twice() -> None:
    asked = wanted()
    source = PriorSource(*sources())
    source.get(asked)
    assert source.computed == len(set(asked)) < len(asked)
    assert {t for t in asked if t in set(asked)} >= {t for e in episodes() for t in triples(task("mask", 1), e)}


def test_shards_give_what_would_be_computed_and_damage_is_computed(tmp_path: Path) -> None:
    every = dict(PriorSource(*sources()).compute(dict.fromkeys(wanted())))
    kept = sorted(every)[::2]
    ShardStore(tmp_path).write([t.key for t in kept], {PRIOR: torch.stack([every[t] for t in kept])})
    store = ShardStore(tmp_path)
    store.refresh()
    source = PriorSource(*sources(), store)
    found = source.get(every)
    assert source.computed == len(every) - len(kept)
    assert all(torch.equal(found[t], every[t]) for t in every)
    (path,) = tmp_path.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-7] ^= 4  # in the last row
    path.write_bytes(content)
    damaged = ShardStore(tmp_path)
    damaged.refresh()
    source = PriorSource(*sources(), damaged)
    found = source.get(every)
    assert source.computed == len(every) - len(kept) + 1
    assert all(torch.equal(found[t], every[t]) for t in every)


def test_features_from_shards_are_those_that_would_be_encoded(tmp_path: Path) -> None:
    cues, plain = sources(text=True)
    ids = cues.dataset.image_ids[:9]
    expected = plain.get(ids)
    visual, text = ShardStore(tmp_path / "v"), ShardStore(tmp_path / "t")
    visual.write(ids[:6], to_rows(expected[:6]))
    text.write(ids[3:], {"text": torch.stack([f.text for f in expected[3:] if f.text is not None])})
    for store in (visual, text):
        store.refresh()
    mapped = FeatureCache(plain.encoder, cues.dataset.image, visual=visual, text=text)
    for found, wish in zip(mapped.get(ids), expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found.stages, wish.stages, strict=True))
        assert found.text is not None and wish.text is not None and torch.equal(found.text, wish.text)
        assert torch.equal(found.rgb, wish.rgb) and (found.size, found.made_by) == (wish.size, wish.made_by)
    assert (mapped.encoded, mapped.texts_encoded) == (3, 3)
    assert plain.encoded == plain.texts_encoded == 9
