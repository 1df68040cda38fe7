"""Episodes and manifests: which images are segmented, and with which supports.

The `paired` rule: episode i is drawn by a generator of its own, seeded by (seed, fold, i). So an episode depends on
nothing else: not on workers, order, batch size, annotation, nor on how many episodes or supports are asked for. The
1-shot support is the first of the 5, and the first 100 episodes of 1000 are those of a manifest of 100: cells are
paired. No torch.

    python -m diffup.episodes --dataset NAME --protocol NAME --fold F --shots K [--lists DIR] [--out FILE]

prints a manifest as JSON, ``[[query, [support, …], class], …]`` with 0-based classes, or writes it to a file (as
Parquet where its name ends so).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from diffup.data.dataset import Dataset
    from diffup.protocols import Protocol

MANIFEST_KEY = b"diffup.manifest"
HOLD_OUT_STREAM = 2**32  # keeps the drawing of held-out classes apart from the episodes, whose index is below it


@dataclass(frozen=True)
class Episode:
    """Segment `class_index` in `query`, given `supports`.

    Attributes:
        index: number of the episode in its manifest, from 0.
        class_index: 0-based class of the data set.
        query: image id.
        supports: image ids, distinct and without the query; empty for 0 shots.
    """

    index: int
    class_index: int
    query: str
    supports: tuple[str, ...]


def paired_episodes(
    pools: Mapping[int, Sequence[str]], *, fold: int, shots: int, episodes: int, seed: int
) -> list[Episode]:
    """Draw episodes 0 … episodes-1 of (seed, fold).

    Classes take turns in the order of `pools`; query and supports are then the head of one uniform permutation of the
    class's pool.

    Args:
        pools: class index → ids of the images that may serve for it, sorted.
        fold, seed: non-negative; with the index they seed each episode.
        shots: K ≥ 0 supports an episode.
        episodes: how many.

    Raises:
        ValueError: no class, a pool with fewer than K+1 images or with repeats, or a negative number.
    """
    for what, value in {"fold": fold, "shots": shots, "episodes": episodes, "seed": seed}.items():
        if value < 0:
            raise ValueError(f"{what} must be 0 or more, not {value}")
    if not pools:
        raise ValueError("no class to draw episodes from")
    for class_index, pool in pools.items():
        if len(pool) < shots + 1:
            raise ValueError(
                f"fold {fold}, class {class_index}: {len(pool)} images, but {shots} shots need {shots + 1}; "
                "use fewer shots or add images"
            )
        if len(set(pool)) != len(pool):
            raise ValueError(f"fold {fold}, class {class_index}: the pool names an image twice")
    classes = list(pools)
    drawn = []
    for index in range(episodes):
        class_index = classes[index % len(classes)]
        pool = pools[class_index]
        order = np.random.default_rng((seed, fold, index)).permutation(len(pool))
        query, *supports = (pool[position] for position in order[: shots + 1])
        drawn.append(Episode(index, class_index, query, tuple(supports)))
    return drawn


def list_order_episodes(
    pools: Mapping[int, Sequence[str]], *, fold: int, shots: int, episodes: int, seed: int
) -> list[Episode]:
    """PFENet's rule: the images of the fold in turn as queries, each with a class of its own and distinct supports.

    Episode i segments the image at position i (modulo their number) of the sorted images; its class is drawn among
    those that the image may serve for, and its supports from that class's other images, by a generator seeded by
    (seed, fold, i). So the K supports are the first of the K+1 here too.

    Args:
        pools: class index → ids of the images that may serve for it.
        fold, seed, shots, episodes: as in `paired_episodes`.

    Raises:
        ValueError: no class, or a pool with fewer than K+1 images.
    """
    by_image: dict[str, list[int]] = {}
    for class_index, pool in pools.items():
        if len(pool) < shots + 1:
            raise ValueError(
                f"fold {fold}, class {class_index}: {len(pool)} images, but {shots} shots need {shots + 1}"
            )
        for image in pool:
            by_image.setdefault(image, []).append(class_index)
    if not by_image:
        raise ValueError("no class to draw episodes from")
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


@dataclass(frozen=True)
class Manifest:
    """A fixed list of episodes.

    Attributes:
        dataset, protocol: names.
        fold, seed: what the episodes were drawn for.
        episodes: in order of their index.
    """

    dataset: str
    protocol: str
    fold: int
    seed: int
    episodes: tuple[Episode, ...]

    def _head(self) -> dict[str, str | int]:
        return {"dataset": self.dataset, "protocol": self.protocol, "fold": self.fold, "seed": self.seed}

    def hash(self) -> str:
        """First 12 hex digits of the sha256 of everything in it."""
        rows = [[e.index, e.class_index, e.query, list(e.supports)] for e in self.episodes]
        canonical = json.dumps([self._head(), rows], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def write(self, path: Path) -> None:
        """Write as Parquet, one row an episode (``episode, class_id, query, supports``), whole or not at all.

        Raises:
            OSError: the place can't be written.
        """
        table = pa.table(
            {
                "episode": pa.array([e.index for e in self.episodes], pa.int64()),
                "class_id": pa.array([e.class_index for e in self.episodes], pa.int64()),
                "query": pa.array([e.query for e in self.episodes], pa.string()),
                "supports": pa.array([list(e.supports) for e in self.episodes], pa.list_(pa.string())),
            },
            metadata={MANIFEST_KEY: json.dumps({**self._head(), "hash": self.hash()}).encode()},
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            pq.write_table(table, temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def frame(self) -> pd.DataFrame:
        """One row an episode: ``episode, class_id, query, supports``."""
        rows = [(e.index, e.class_index, e.query, list(e.supports)) for e in self.episodes]
        return pd.DataFrame(rows, columns=["episode", "class_id", "query", "supports"])

    @staticmethod
    def read(path: Path) -> Manifest:
        """Read what `write` wrote.

        Raises:
            ValueError: no Parquet file, not a manifest, or its content does not give the hash it carries.
        """
        try:
            table = pq.read_table(path)
            head = json.loads((table.schema.metadata or {})[MANIFEST_KEY])
            rows = table.to_pylist()
            episodes = tuple(Episode(r["episode"], r["class_id"], r["query"], tuple(r["supports"])) for r in rows)
            manifest = Manifest(head["dataset"], head["protocol"], head["fold"], head["seed"], episodes)
            intact = head["hash"] == manifest.hash()
        except (KeyError, TypeError, OSError, pa.ArrowException, ValueError) as error:
            raise ValueError(
                f"{path} is not a manifest of episodes ({error}); delete it and let it be drawn again"
            ) from error
        if not intact:
            raise ValueError(f"{path} does not give the hash it carries; delete it and let it be drawn again")
        return manifest


def held_out_classes(dataset: Dataset, fold: int, count: int, seed: int) -> tuple[int, ...]:
    """The base classes of a fold that a training of `seed` leaves out, ascending; a function of (seed, fold) alone.

    They are drawn from the base classes that are novel in some other fold: those have enough images to be evaluated.
    The first n drawn are among the first n + 1.

    Args:
        dataset: gives the classes.
        fold: whose novel classes are left out anyway.
        count: how many, 0 or more.
        seed: of the training.

    Raises:
        ValueError: `count` leaves no class to train on.
    """
    if not count:
        return ()
    novel = set(dataset.novel_classes(fold))
    candidates = sorted({c for classes in dataset.folds for c in classes} - novel)
    if not 0 < count < len(candidates):
        raise ValueError(
            f"{dataset.name}, fold {fold}: {count} of {len(candidates)} base classes can't be held out; choose a "
            f"TrainConfig.hold_out from 1 to {len(candidates) - 1}"
        )
    order = np.random.default_rng((seed, fold, HOLD_OUT_STREAM)).permutation(len(candidates))
    return tuple(sorted(candidates[i] for i in order[:count]))


def training_pools(dataset: Dataset, fold: int, protocol: Protocol) -> dict[int, tuple[str, ...]]:
    """Images to train each base class of a fold on, sorted.

    Where the protocol has it so, without those that show a novel class, be it a single pixel (BAM's rule).
    """
    novel = set(dataset.novel_classes(fold))
    drop = protocol.training_images == "without novel classes"
    return {
        c: tuple(i for i in dataset.eligible(c, protocol) if not (drop and novel & dataset.areas[i].keys()))
        for c in dataset.base_classes(fold)
    }


def make_manifest(
    dataset: Dataset,
    protocol: Protocol,
    fold: int,
    shots: int,
    episodes: int,
    seed: int,
    classes: Sequence[int] | None = None,
) -> Manifest:
    """The manifest of a fold's novel classes, or of `classes`.

    Args:
        dataset: gives the pools: `Dataset.eligible` under `protocol`.
        fold: whose novel classes are segmented.
        shots: K ≥ 0; the supports of K are the first of those of K+1.
        episodes, seed: how many, and of which episode seed.
        classes: other classes than the novel ones, e.g. `held_out_classes`.

    Raises:
        ValueError: a class with fewer than K+1 images, by name.
    """
    chosen = dataset.novel_classes(fold) if classes is None else classes
    pools = {c: dataset.eligible(c, protocol) for c in chosen}
    for class_index, pool in pools.items():
        if len(pool) < shots + 1:
            raise ValueError(
                f"{dataset.name}, fold {fold}, class {dataset.classes[class_index]!r}: {len(pool)} eligible images "
                f"under protocol {protocol.name!r}, but {shots} shots need {shots + 1}; use fewer shots or add images"
            )
    draw = list_order_episodes if protocol.draw == "list order" else paired_episodes
    drawn = draw(pools, fold=fold, shots=shots, episodes=episodes, seed=seed)
    return Manifest(dataset.name, protocol.name, fold, seed, tuple(drawn))


def rows(manifest: Manifest) -> list[list[object]]:
    """What papers exchange: ``[query, [support, …], 0-based class]`` of each episode."""
    return [[e.query, list(e.supports), e.class_index] for e in manifest.episodes]


def from_rows(held: object, *, dataset: str, protocol: str, fold: int, seed: int = 0) -> Manifest:
    """The manifest of what `rows` gives, e.g. read from another project's JSON.

    Raises:
        ValueError: an entry of another form; it is named.
    """
    if not isinstance(held, list) or not held:
        raise ValueError("a manifest is a list of [query, [support, …], class], and has at least one")
    episodes = []
    for index, row in enumerate(held):
        fits = (
            isinstance(row, list)
            and len(row) == 3
            and isinstance(row[0], str)
            and isinstance(row[1], list)
            and all(isinstance(support, str) for support in row[1])
            and type(row[2]) is int
            and row[2] >= 0
        )
        if not fits:
            raise ValueError(f"episode {index} is not [query, [support, …], class] with a 0-based class: {row!r:.120}")
        episodes.append(Episode(index, row[2], row[0], tuple(row[1])))
    return Manifest(dataset, protocol, fold, seed, tuple(episodes))


def _named(args: argparse.Namespace) -> Manifest:
    if args.protocol == "hsnet":
        from diffup.data.lists import hsnet_list
        from diffup.hsnet import EPISODES, hsnet_episodes

        if args.lists is None:
            raise ValueError("protocol hsnet draws from HSNet's list files; pass --lists DIR, a copy of its 'splits'")
        pairs = hsnet_list(args.lists, args.dataset, args.fold)
        number = EPISODES if args.episodes is None else args.episodes
        drawn = hsnet_episodes(pairs, args.dataset, fold=args.fold, shots=args.shots, episodes=number, seed=args.seed)
        return Manifest(args.dataset, "hsnet", args.fold, args.seed, tuple(drawn))
    from diffup.data.dataset import open_dataset
    from diffup.protocols import get_protocol

    if args.lists is not None:
        raise ValueError(f"protocol {args.protocol} follows from the annotations; --lists goes with hsnet")
    protocol = get_protocol(args.protocol)
    dataset = open_dataset(args.dataset)
    number = protocol.episode_count(dataset.name) if args.episodes is None else args.episodes
    return make_manifest(dataset, protocol, args.fold, args.shots, number, args.seed)


def main(argv: Sequence[str] | None = None) -> int:
    """Print or write a manifest; returns the exit code, 2 for anything wrong with what was asked."""
    parser = argparse.ArgumentParser(prog="python -m diffup.episodes", description="Print or write a manifest.")
    parser.add_argument("--dataset", required=True, help="pascal5i, coco20i, shapes4i or a dataset.json")
    parser.add_argument("--protocol", default="paired", help="hsnet, or one of `python -m diffup.protocols list`")
    parser.add_argument("--fold", type=int, required=True)
    parser.add_argument("--shots", type=int, required=True)
    parser.add_argument("--episodes", type=int, default=None, help="default: as many as the protocol has")
    parser.add_argument("--seed", type=int, default=0, help="episode seed; default: 0")
    parser.add_argument("--lists", type=Path, default=None, metavar="DIR", help="HSNet's 'splits' folder")
    parser.add_argument(
        "--format", choices=("json", "parquet"), default=None, help="default: by --out's name, else json"
    )
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="default: standard output, JSON only")
    args = parser.parse_args(argv)
    suffix = "parquet" if args.out is not None and args.out.suffix == ".parquet" else "json"
    form = args.format or suffix
    try:
        if form == "parquet" and args.out is None:
            raise ValueError("a Parquet manifest needs --out FILE")
        manifest = _named(args)
        text = json.dumps(rows(manifest), ensure_ascii=False)
        if args.out is None:
            print(text)
        elif form == "parquet":
            manifest.write(args.out)
        else:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(text + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
