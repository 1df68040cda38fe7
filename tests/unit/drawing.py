"""What worker processes of a test draw: a module of its own, since spawned processes import it without torch."""

from __future__ import annotations

import dataclasses
import json
import os
import random
from collections.abc import Sequence

import numpy as np

from diffup.episodes import Episode, paired_episodes

Pools = dict[int, list[str]]


def as_bytes(episodes: Sequence[Episode]) -> list[bytes]:
    """Each episode to the last byte, as manifests hash it."""
    return [json.dumps(dataclasses.astuple(e)).encode() for e in episodes]


def one_of(task: tuple[Pools, int, int, int, int]) -> bytes:
    """Episode `index`, drawn for its own sake in a worker whose global streams are elsewhere."""
    pools, seed, fold, shots, index = task
    random.seed(os.getpid())
    np.random.seed(os.getpid() % 2**32)
    return as_bytes(paired_episodes(pools, fold=fold, shots=shots, episodes=index + 1, seed=seed))[index]
