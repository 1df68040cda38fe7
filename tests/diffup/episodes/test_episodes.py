"""Paired episodes and manifests."""

from __future__ import annotations

import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffup.data.dataset import open_dataset
from diffup.episodes.episode import Episode, Manifest
from diffup.episodes.protocols import get_protocol
from diffup.episodes.sampling import list_order_episodes, make_manifest, paired_episode, paired_episodes, training_pools
from tests.helpers.folders import write_voc

Pools = dict[int, list[str]]
POOLS: Pools = {7: [f"a{i}" for i in range(9)], 2: [f"b{i}" for i in range(6)], 5: [f"c{i}" for i in range(30)]}


@st.composite
def drawn(draw: st.DrawFn) -> tuple[Pools, int, int]:
    """Pools, seed and fold."""
    sizes = draw(st.lists(st.integers(7, 20), min_size=1, max_size=4))
    pools = {c: [f"{c}_{i}" for i in range(size)] for c, size in enumerate(sizes)}
    return pools, draw(st.integers(0, 2**32)), draw(st.integers(0, 3))


@given(drawn(), st.integers(0, 5), st.integers(0, 6))
@settings(max_examples=50)
def test_supports_are_nested_and_queries_shared_whatever_k(
    setting: tuple[Pools, int, int], fewer: int, more: int
) -> None:
    pools, seed, fold = setting
    fewer, more = sorted((fewer, more))
    small = paired_episodes(pools, fold=fold, shots=fewer, episodes=12, seed=seed)
    large = paired_episodes(pools, fold=fold, shots=more, episodes=12, seed=seed)
    for a, b in zip(small, large):
        assert (a.index, a.class_index, a.query) == (b.index, b.class_index, b.query)
        assert a.supports == b.supports[:fewer] and len(b.supports) == more
        assert len({b.query, *b.supports}) == more + 1
        assert {b.query, *b.supports} <= set(pools[b.class_index])


@given(drawn(), st.integers(1, 10), st.integers(10, 30))
@settings(max_examples=50)
def test_a_longer_list_begins_with_the_shorter_one(setting: tuple[Pools, int, int], few: int, many: int) -> None:
    pools, seed, fold = setting
    short = paired_episodes(pools, fold=fold, shots=2, episodes=few, seed=seed)
    assert paired_episodes(pools, fold=fold, shots=2, episodes=many, seed=seed)[:few] == short


def one(asked: tuple[Pools, int, int, int]) -> bytes:
    """An episode as bytes, drawn alone."""
    pools, seed, fold, index = asked
    return repr(paired_episode(pools, index, fold=fold, shots=3, seed=seed)).encode()


@given(drawn(), st.permutations(range(40)), st.integers(1, 40))
@settings(max_examples=100)
def test_any_subset_in_any_order_is_the_same_episodes(
    setting: tuple[Pools, int, int], order: list[int], count: int
) -> None:
    pools, seed, fold = setting
    whole = [repr(e).encode() for e in paired_episodes(pools, fold=fold, shots=3, episodes=40, seed=seed)]
    assert [one((pools, seed, fold, index)) for index in order[:count]] == [whole[index] for index in order[:count]]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_draws_the_same_episodes(workers: int) -> None:
    expected = [repr(e).encode() for e in paired_episodes(POOLS, fold=1, shots=3, episodes=60, seed=5)]
    asked = [(POOLS, 5, 1, index) for index in reversed(range(60))]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(one, asked, chunksize=7))[::-1] == expected


@given(drawn())
@settings(max_examples=30)
def test_an_episode_depends_on_its_own_class_only(setting: tuple[Pools, int, int]) -> None:
    """Changing the pool of one class leaves the episodes of the others as they were."""
    pools, seed, fold = setting
    changed = {**pools, 0: [*pools[0], "another"]}
    before = paired_episodes(pools, fold=fold, shots=3, episodes=20, seed=seed)
    after = paired_episodes(changed, fold=fold, shots=3, episodes=20, seed=seed)
    assert [e for e in before if e.class_index] == [e for e in after if e.class_index]


def test_classes_take_turns() -> None:
    order = [e.class_index for e in paired_episodes(POOLS, fold=0, shots=1, episodes=7, seed=0)]
    assert order == [7, 2, 5, 7, 2, 5, 7]


def test_seeds_and_folds_give_other_episodes() -> None:
    def queries(seed: int, fold: int) -> list[str]:
        return [e.query for e in paired_episodes(POOLS, fold=fold, shots=1, episodes=60, seed=seed)]

    assert queries(0, 0) == queries(0, 0)
    assert len({tuple(queries(seed, fold)) for seed in range(3) for fold in range(3)}) == 9


def test_queries_and_supports_are_uniform() -> None:
    """10 000 draws from 10 images: each is query, and first support, about 1000 times (σ = 30)."""
    pool = [f"i{i}" for i in range(10)]
    episodes = paired_episodes({0: pool}, fold=0, shots=1, episodes=10_000, seed=1)
    for picked in ([e.query for e in episodes], [e.supports[0] for e in episodes]):
        assert all(850 < picked.count(name) < 1150 for name in pool)


def test_these_episodes_are_frozen() -> None:
    """A change here changes every manifest ever reported: give a new rule a new protocol."""
    assert paired_episodes(POOLS, fold=1, shots=2, episodes=3, seed=4) == [
        Episode(0, 7, "a6", ("a4", "a7")),
        Episode(1, 2, "b2", ("b1", "b4")),
        Episode(2, 5, "c8", ("c23", "c1")),
    ]


@pytest.mark.parametrize("name", ["fold", "shots", "episodes", "seed"])
def test_negative_numbers_are_refused(name: str) -> None:
    arguments = {"fold": 0, "shots": 1, "episodes": 3, "seed": 0, name: -1}
    with pytest.raises(ValueError, match=name):
        paired_episodes(POOLS, **arguments)


def test_small_empty_and_repeating_pools_are_refused() -> None:
    assert paired_episodes(POOLS, fold=0, shots=5, episodes=3, seed=0)
    with pytest.raises(ValueError, match="class 2: 6 images, but 6 shots need 7"):
        paired_episodes(POOLS, fold=0, shots=6, episodes=3, seed=0)
    with pytest.raises(ValueError, match="twice"):
        paired_episodes({0: ["a", "b", "a"]}, fold=0, shots=1, episodes=1, seed=0)
    with pytest.raises(ValueError, match="no class"):
        paired_episodes({}, fold=0, shots=1, episodes=1, seed=0)


def manifest() -> Manifest:
    """A manifest with umlauts and zero shots in it."""
    episodes = (*paired_episodes(POOLS, fold=1, shots=2, episodes=5, seed=3), Episode(5, 2, "größe/1", ()))
    return Manifest("toy", "paired", 1, 3, episodes)


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "manifest.parquet"
    manifest().write(path)
    assert Manifest.read(path) == manifest()
    assert [p.name for p in path.parent.iterdir()] == ["manifest.parquet"]
    assert pq.read_table(path).column_names == manifest().frame().columns.tolist()


def test_everything_in_a_manifest_changes_its_hash() -> None:
    original = manifest()
    other = [
        dataclasses.replace(original, dataset="x"),
        dataclasses.replace(original, protocol="x"),
        dataclasses.replace(original, fold=0),
        dataclasses.replace(original, seed=0),
        dataclasses.replace(original, episodes=original.episodes[::-1]),
        dataclasses.replace(original, episodes=original.episodes[:-1]),
    ]
    assert len({m.hash() for m in [original, *other]}) == len(other) + 1
    assert original.hash() == manifest().hash()


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    manifest().write(path)
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0]["query"] = "another"
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(ValueError, match=r"manifest\.parquet does not give the hash"):
        Manifest.read(path)
    for content in (b"", b"no parquet"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a manifest"):
            Manifest.read(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(ValueError, match="is not a manifest"):
        Manifest.read(path)


def test_make_manifest_draws_from_the_novel_classes(tmp_path: Path) -> None:
    dataset = open_dataset(write_voc(tmp_path / "toy", per_class=4), cache_dir=tmp_path / "cache")
    made = make_manifest(dataset, get_protocol("paired"), fold=1, shots=3, episodes=6, seed=0)
    assert (made.dataset, made.protocol, made.fold, made.seed) == ("toy", "paired", 1, 0)
    assert {e.class_index for e in made.episodes} == set(dataset.novel_classes(1))
    for episode in made.episodes:
        for image_id in (episode.query, *episode.supports):
            assert (dataset.mask(image_id, episode.class_index) == 1).any()
    with pytest.raises(ValueError, match=r"fold 1, class 'cat': 4 eligible images .* 4 shots need 5"):
        make_manifest(dataset, get_protocol("paired"), fold=1, shots=4, episodes=6, seed=0)


def test_paired_episodes_of_photographs(shared_data: Path, tmp_path: Path) -> None:
    dataset = open_dataset(shared_data / "msrc15" / "dataset.json", cache_dir=tmp_path)
    protocol = get_protocol("paired")
    for fold in range(len(dataset.folds)):
        one = make_manifest(dataset, protocol, fold, shots=1, episodes=100, seed=0).episodes
        five = make_manifest(dataset, protocol, fold, shots=5, episodes=100, seed=0).episodes
        assert [(e.class_index, e.query, *e.supports) for e in one] == [
            (e.class_index, e.query, e.supports[0]) for e in five
        ]


def test_list_order_takes_every_image_in_turn_with_distinct_nested_supports() -> None:
    pools = {3: ["a", "b", "c"], 5: ["b", "c", "d", "e"]}
    one, two = (list_order_episodes(pools, fold=0, shots=k, episodes=50, seed=1) for k in (1, 2))
    assert [e.query for e in one] == (["a", "b", "c", "d", "e"] * 10)
    assert {e.class_index for e in one if e.query == "b"} == {3, 5}
    for short, long in zip(one, two, strict=True):
        assert (short.query, short.class_index) == (long.query, long.class_index)
        assert long.supports[:1] == short.supports
        assert len({long.query, *long.supports}) == 3
        assert {long.query, *long.supports} <= set(pools[long.class_index])
    assert list_order_episodes(pools, fold=0, shots=2, episodes=10, seed=1) == two[:10]
    assert list_order_episodes(pools, fold=0, shots=2, episodes=50, seed=2) != two
    with pytest.raises(ValueError, match="class 3: 3 images, but 3 shots need 4"):
        list_order_episodes(pools, fold=0, shots=3, episodes=1, seed=0)


def test_bams_rule_trains_on_no_image_with_a_novel_pixel() -> None:
    areas = {"a": {0: 900, 2: 900}, "b": {2: 900}, "c": {0: 900, 3: 1}, "d": {3: 900, 2: 900}}
    dataset = SimpleNamespace(
        name="birds",
        areas=areas,
        novel_classes=lambda fold: (0, 1),
        base_classes=lambda fold: (2, 3),
        eligible=lambda c, protocol, split: tuple(sorted(i for i, area in areas.items() if area.get(c, 0) > 1)),
    )
    every = training_pools(dataset, 0, get_protocol("paired"))  # type: ignore[arg-type]
    assert every == {2: ("a", "b", "d"), 3: ("d",)}
    assert training_pools(dataset, 0, get_protocol("bam")) == {2: ("b", "d"), 3: ("d",)}  # type: ignore[arg-type]
