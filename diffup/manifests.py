"""Manifests in and out: from list files, to JSON and Parquet, and back.

    python -m diffup.episodes --dataset NAME --protocol NAME --fold F --shots K [--lists DIR] [--out FILE]

prints a manifest as JSON, ``[[query, [support, …], class], …]`` with 0-based classes, or writes it to a file (as
Parquet where its name ends so). A paper can publish its episodes so, and `read_manifest` takes them in again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffup.episodes import Episode, Manifest, make_manifest
from diffup.errors import UserError

if TYPE_CHECKING:
    from diffup.data.lists import Pairs
    from diffup.protocols import Protocol

PARQUET = ".parquet"


def listed_pairs(dataset: str, protocol: Protocol, fold: int, split: str, lists: Path | None) -> Pairs:
    """The pairs of image and class in the list files of a protocol that draws from them.

    Args:
        dataset: ``pascal5i`` or ``coco20i``.
        protocol: whose `Protocol.needs_lists` says so.
        fold: 0-3.
        split: ``"trn"`` or ``"val"``.
        lists: HSNet's folder ``splits``.

    Raises:
        UserError: no folder given, or a file that is missing or can't be read.
    """
    from diffup.data.lists import hsnet_list

    if lists is None:
        raise UserError(
            f"protocol {protocol.name} draws from list files on {dataset} ({protocol.lists}); pass --lists DIR, a copy "
            "of the folder 'splits'"
        )
    return hsnet_list(lists, dataset, fold, split)


def listed_manifest(
    dataset: str, protocol: Protocol, fold: int, shots: int, episodes: int, seed: int, lists: Path | None
) -> Manifest:
    """The manifest that list files give; images are named as there, and need not be at hand.

    Raises:
        UserError: see `listed_pairs` and `diffup.hsnet.hsnet_episodes`.
    """
    from diffup.hsnet import hsnet_episodes

    pairs = listed_pairs(dataset, protocol, fold, "val", lists)
    drawn = hsnet_episodes(pairs, dataset, fold=fold, shots=shots, episodes=episodes, seed=seed)
    return Manifest(dataset, protocol.name, fold, seed, tuple(drawn))


def rows(manifest: Manifest) -> list[list[object]]:
    """What papers exchange: ``[query, [support, …], 0-based class]`` of each episode."""
    return [[e.query, list(e.supports), e.class_index] for e in manifest.episodes]


def from_rows(held: object, *, dataset: str, protocol: str, fold: int, seed: int = 0) -> Manifest:
    """The manifest of what `rows` gives, e.g. read from another project's JSON.

    Raises:
        UserError: an entry of another form; it is named.
    """
    if not isinstance(held, list) or not held:
        raise UserError("a manifest is a list of [query, [support, …], class], and has at least one")
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
            raise UserError(f"episode {index} is not [query, [support, …], class] with a 0-based class: {row!r:.120}")
        episodes.append(Episode(index, row[2], row[0], tuple(row[1])))
    return Manifest(dataset, protocol, fold, seed, tuple(episodes))


def read_manifest(path: Path, *, dataset: str, protocol: str, fold: int) -> Manifest:
    """A manifest from a file that `python -m diffup.episodes` wrote, or another project's JSON in that form.

    Args:
        path: JSON, or Parquet where its name ends so.
        dataset, protocol, fold: what JSON doesn't say; a Parquet file must agree with data set and fold.

    Raises:
        UserError: not such a file, or one of another data set or fold.
    """
    if path.suffix == PARQUET:
        manifest = Manifest.read(path)
        if (manifest.dataset, manifest.fold) != (dataset, fold):
            raise UserError(f"{path} is of {manifest.dataset} fold {manifest.fold}, not of {dataset} fold {fold}")
        return manifest
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return from_rows(held, dataset=dataset, protocol=protocol, fold=fold)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a manifest as JSON: {error}") from error


def _named(args: argparse.Namespace) -> Manifest:
    from diffup.data.dataset import open_dataset
    from diffup.protocols import get_protocol

    protocol = get_protocol(args.protocol)
    if protocol.needs_lists(args.dataset):  # the images themselves need not be at hand
        number = protocol.episode_count(args.dataset) if args.episodes is None else args.episodes
        return listed_manifest(args.dataset, protocol, args.fold, args.shots, number, args.seed, args.lists)
    if args.lists is not None and not protocol.lists:
        raise UserError(f"protocol {protocol.name} follows from the annotations; --lists goes with hsnet")
    dataset = open_dataset(args.dataset)
    number = protocol.episode_count(dataset.name) if args.episodes is None else args.episodes
    return make_manifest(dataset, protocol, args.fold, args.shots, number, args.seed, lists=args.lists)


def main(argv: Sequence[str] | None = None) -> int:
    """Print or write a manifest; returns the exit code, 2 for anything wrong with what was asked."""
    parser = argparse.ArgumentParser(prog="python -m diffup.episodes", description="Print or write a manifest.")
    parser.add_argument("--dataset", required=True, help="pascal5i, coco20i, shapes4i or a dataset.json")
    parser.add_argument("--protocol", default="paired", help="one of `python -m diffup.protocols list`")
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
    suffix = "parquet" if args.out is not None and args.out.suffix == PARQUET else "json"
    form = args.format or suffix
    try:
        if form == "parquet" and args.out is None:
            raise UserError("a Parquet manifest needs --out FILE")
        manifest = _named(args)
        text = json.dumps(rows(manifest), ensure_ascii=False)
        if args.out is None:
            print(text)
        elif form == "parquet":
            manifest.write(args.out)
        else:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(text + "\n", encoding="utf-8")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
