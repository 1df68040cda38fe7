"""HSNet's test episodes, exactly, from its own lists (arXiv 2104.01538; the rule is that of its public code).

HSNet draws from numpy's legacy global stream, seeded once with 0, without workers. Each draw is
``choice(names, 1, replace=False)``, which consumes the stream as a permutation of the whole list. Supports are drawn
independently: a draw that is the query is thrown away, repeats stay. So the episodes depend on the order of the lists
and cannot be drawn one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from diffup.data.lists import COCO, Pairs, fold_classes
from diffup.episodes.episode import Episode
from diffup.errors import UserError

EPISODES = 1000


def hsnet_episodes(
    pairs: Pairs,
    dataset: str,
    *,
    fold: int,
    shots: int,
    episodes: int = EPISODES,
    seed: int = 0,
    classes: Sequence[int] | None = None,
) -> list[Episode]:
    """Draw HSNet's test episodes.

    On ``coco20i`` first the class is drawn from the fold's classes in ascending order, then the query from its images;
    anywhere else the query is entry i (modulo their number) of the validation list.

    Args:
        pairs: HSNet's validation list of the fold (`diffup.data.lists.hsnet_list`); it names the episodes' images.
        dataset: ``pascal5i`` or ``coco20i``, or any other data set with `classes`.
        fold: 0-3.
        shots: K supports, which may repeat; 0 (text alone, which HSNet lacks): the 1-shot episodes without supports.
        episodes, seed: HSNet has 1000 and 0.
        classes: those to draw from, ascending; by default the fold's.

    Raises:
        UserError: a class of the fold without a second image (the drawing would never end), or fewer than 0 shots.
    """
    if shots < 0:
        raise ValueError(f"episodes have 0 shots or more, not {shots}")
    classes = fold_classes(dataset, fold) if classes is None else tuple(classes)
    pools = pairs.classes
    lonely = [c for c in classes if len(set(pools.get(c, ()))) < 2]
    if lonely:
        raise UserError(f"{dataset} fold {fold}: the list has fewer than two images of classes {lonely}")
    stream = np.random.RandomState(seed)
    drawn = []
    for index in range(episodes):
        if dataset == COCO:
            class_index = classes[_draw(stream, len(classes))]
            query = pools[class_index][_draw(stream, len(pools[class_index]))]
        else:
            query, class_index = pairs.entries[index % len(pairs.entries)]
        supports = _supports(stream, pools, class_index, query, max(shots, 1))
        drawn.append(Episode(index, class_index, query, supports[:shots]))
    return drawn


def _draw(stream: np.random.RandomState, size: int) -> int:
    return int(stream.choice(size, 1, replace=False)[0])


def _supports(
    stream: np.random.RandomState, pools: Mapping[int, Sequence[str]], class_index: int, query: str, shots: int
) -> tuple[str, ...]:
    pool = pools[class_index]
    found: list[str] = []
    while len(found) < shots:
        support = pool[_draw(stream, len(pool))]
        if support != query:
            found.append(support)
    return tuple(found)
