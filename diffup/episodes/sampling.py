"""How episodes are drawn: pools of images, the drawing rules of the protocols, and held-out classes. No torch.

The `paired` rule: episode i is drawn by a generator of its own, seeded by (seed, fold, i). So an episode depends on
nothing else: not on workers, order, batch size, annotation, nor on how many episodes or supports are asked for. The
1-shot support is the first of the 5, and the first 100 episodes of 1000 are those of a manifest of 100: cells are
paired.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from diffup.data.dataset import Dataset
from diffup.data.lists import Pairs
from diffup.episodes.episode import Episode, Manifest
from diffup.episodes.hsnet import hsnet_episodes
from diffup.episodes.manifest import fitted, listed_manifest, listed_pairs
from diffup.episodes.protocols import Protocol
from diffup.errors import UserError

HOLD_OUT_STREAM = 2**32  # keeps the drawing of held-out classes apart from the episodes, whose index is below it


def paired_episodes(
    pools: Mapping[int, Sequence[str]], *, fold: int, shots: int, episodes: int, seed: int
) -> list[Episode]:
    """Draw episodes 0 … episodes-1 of (seed, fold).

    Classes take turns in the order of `pools`; query and supports are then the head of one uniform permutation of the
    class's pool.

    Args:
        pools: class index → ids of the images that may serve for it, sorted.
        fold, seed: non-negative; with the index they seed each episode.
        shots: K ≥ 0 supports per episode.
        episodes: how many.

    Raises:
        UserError: no class, a pool with fewer than K+1 images or with repeats, or a negative number.
    """
    for what, value in {"fold": fold, "shots": shots, "episodes": episodes, "seed": seed}.items():
        if value < 0:
            raise UserError(f"{what} must be 0 or more, not {value}")
    _check_pools(pools, fold, shots)
    for class_index, pool in pools.items():
        if len(set(pool)) != len(pool):
            raise UserError(f"fold {fold}, class {class_index}: the pool names an image twice")
    return [paired_episode(pools, index, fold=fold, shots=shots, seed=seed) for index in range(episodes)]


def paired_episode(pools: Mapping[int, Sequence[str]], index: int, *, fold: int, shots: int, seed: int) -> Episode:
    """Episode `index` of (seed, fold) alone; arguments as in `paired_episodes`, which checks them."""
    class_index = list(pools)[index % len(pools)]
    pool = pools[class_index]
    order = np.random.default_rng((seed, fold, index)).permutation(len(pool))
    query, *supports = (pool[position] for position in order[: shots + 1])
    return Episode(index, class_index, query, tuple(supports))


def list_order_episodes(
    pools: Mapping[int, Sequence[str]], *, fold: int, shots: int, episodes: int, seed: int
) -> list[Episode]:
    """PFENet's rule: the images of the fold in turn as queries, each with a class of its own and distinct supports.

    Episode i segments the image at position i (modulo their number) of the sorted images. Its class is drawn among
    those that the image may serve for, and its supports from that class's other images, by a generator seeded by
    (seed, fold, i). So the K supports are the first of the K+1 here too. Arguments as in `paired_episodes`.

    Raises:
        UserError: no class, or a pool with fewer than K+1 images.
    """
    _check_pools(pools, fold, shots)
    by_image: dict[str, list[int]] = {}
    for class_index, pool in pools.items():
        for image in pool:
            by_image.setdefault(image, []).append(class_index)
    images = sorted(by_image)
    drawn = []
    for index in range(episodes):
        query = images[index % len(images)]
        generator = np.random.default_rng((seed, fold, index))
        class_index = by_image[query][int(generator.integers(len(by_image[query])))]
        others = [image for image in pools[class_index] if image != query]
        supports = tuple(others[position] for position in generator.permutation(len(others))[:shots])
        drawn.append(Episode(index, class_index, query, supports))
    return drawn


def _check_pools(pools: Mapping[int, Sequence[str]], fold: int, shots: int) -> None:
    if not pools:
        raise UserError("no class to draw episodes from")
    for class_index, pool in pools.items():
        if len(pool) < shots + 1:
            raise UserError(
                f"fold {fold}, class {class_index}: {len(pool)} images, but {shots} shots need {shots + 1}; "
                "use fewer shots or add images"
            )


def held_out_classes(dataset: Dataset, fold: int, count: int, seed: int) -> tuple[int, ...]:
    """The base classes of a fold that a training of `seed` leaves out, ascending; a function of (seed, fold) alone.

    They are drawn from the base classes that are novel in some other fold: those have enough images to be evaluated.
    The first n drawn are among the first n + 1.

    Raises:
        UserError: `count` leaves no class to train on.
    """
    if not count:
        return ()
    novel = set(dataset.novel_classes(fold))
    candidates = sorted({c for classes in dataset.folds for c in classes} - novel)
    if not 0 < count < len(candidates):
        raise UserError(
            f"{dataset.name}, fold {fold}: {count} of {len(candidates)} base classes can't be held out; choose a "
            f"TrainConfig.hold_out from 1 to {len(candidates) - 1}"
        )
    order = np.random.default_rng((seed, fold, HOLD_OUT_STREAM)).permutation(len(candidates))
    return tuple(sorted(candidates[i] for i in order[:count]))


def training_pools(
    dataset: Dataset, fold: int, protocol: Protocol, lists: Path | None = None
) -> dict[int, tuple[str, ...]]:
    """Images to train each base class of a fold on, sorted: those of the protocol's list files, if it has some.

    Under a protocol with BAM's rule, without the images that have a single pixel of a novel class.

    Raises:
        UserError: see `diffup.episodes.manifest.listed_pairs`; or listed images that do not show their class.
    """
    if protocol.needs_lists(dataset.name):
        pairs = listed_pairs(dataset.name, protocol, fold, "trn", lists).named_as(dataset.image_ids, lists)
        hidden = [f"{i}, class {dataset.classes[c]!r}" for i, c in pairs.entries if c not in dataset.areas[i]]
        if hidden:
            raise UserError(
                f"{lists}: {len(hidden)} of {len(pairs.entries)} training images of fold {fold} do not show their "
                f"class, the first {'; '.join(hidden[:3])}. Take the lists that were made for this data set"
            )
        return {c: tuple(sorted(set(pairs.classes.get(c, ())))) for c in dataset.base_classes(fold)}
    return _pools(dataset, dataset.base_classes(fold), set(dataset.novel_classes(fold)), protocol)


def unseen_pools(dataset: Dataset, tested: Sequence[int], protocol: Protocol) -> dict[int, tuple[str, ...]]:
    """Images of each class that is not tested, where a checkpoint of another data set is: the folds don't matter.

    Under a protocol with BAM's rule, without the images that have a single pixel of a tested class.
    """
    rest = [c for c in range(len(dataset.classes)) if c not in tested]
    return _pools(dataset, rest, set(tested), protocol)


def _pools(
    dataset: Dataset, classes: Iterable[int], hidden: set[int], protocol: Protocol
) -> dict[int, tuple[str, ...]]:
    drop = protocol.training_images == "without novel classes"
    return {
        c: tuple(i for i in dataset.eligible(c, protocol, "train") if not (drop and hidden & dataset.areas[i].keys()))
        for c in classes
    }


def make_manifest(
    dataset: Dataset,
    protocol: Protocol,
    fold: int,
    shots: int,
    episodes: int,
    seed: int,
    classes: Sequence[int] | None = None,
    lists: Path | None = None,
) -> Manifest:
    """The manifest of a fold's novel classes, or of `classes`, from the images that are eligible under `protocol`.

    Args:
        shots: K ≥ 0; the supports of K are the first of those of K+1.
        episodes, seed: how many, and of which episode seed.
        classes: other classes than the novel ones, e.g. `held_out_classes`.
        lists: folder of list files, for a protocol that draws from them.

    Raises:
        UserError: a class with fewer than K+1 images, by name; see also `diffup.episodes.manifest.listed_pairs`.
    """
    chosen = dataset.novel_classes(fold) if classes is None else classes
    if protocol.needs_lists(dataset.name):
        if set(chosen) != set(dataset.novel_classes(fold)):
            raise UserError(f"protocol {protocol.name} has lists of the fold's classes only; take another protocol")
        listed = listed_manifest(dataset.name, protocol, fold, shots, episodes, seed, lists)
        return fitted(listed, dataset, protocol, lists)
    pools = {c: dataset.eligible(c, protocol) for c in chosen}
    for class_index, pool in pools.items():
        if len(pool) < shots + 1:
            raise UserError(
                f"{dataset.name}, fold {fold}, class {dataset.classes[class_index]!r}: {len(pool)} eligible images "
                f"under protocol {protocol.name!r}, but {shots} shots need {shots + 1}; use fewer shots or add images"
            )
    if protocol.draw == "HSNet's stream":
        pairs = Pairs(tuple(sorted((i, c) for c, pool in pools.items() for i in pool)))
        drawn = hsnet_episodes(
            pairs, dataset.name, fold=fold, shots=shots, episodes=episodes, seed=seed, classes=sorted(chosen)
        )
    else:
        draw = list_order_episodes if protocol.draw == "list order" else paired_episodes
        drawn = draw(pools, fold=fold, shots=shots, episodes=episodes, seed=seed)
    return Manifest(dataset.name, protocol.name, fold, seed, tuple(drawn))
