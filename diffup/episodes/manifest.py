"""Manifests from outside: read from list files, JSON and Parquet, and checked against a data set and a protocol."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diffup.data.dataset import Dataset
from diffup.data.lists import Pairs, hsnet_list
from diffup.episodes.episode import Episode, Manifest
from diffup.episodes.hsnet import hsnet_episodes
from diffup.episodes.protocols import Protocol
from diffup.errors import UserError

PARQUET = ".parquet"
SHOWN = 3  # bad episodes that a message names
REMEDY = "Correct these episodes, or take the data set and the protocol that they were made for"


def listed_pairs(dataset: str, protocol: Protocol, fold: int, split: str, lists: Path | None) -> Pairs:
    """The pairs of image and class in the list files of a protocol that draws from them (`Protocol.needs_lists`).

    Args:
        dataset: ``pascal5i`` or ``coco20i``.
        split: ``"trn"`` or ``"val"``.
        lists: HSNet's folder ``splits``.

    Raises:
        UserError: no folder given, or a file that is missing or can't be read.
    """
    if lists is None:
        raise UserError(
            f"protocol {protocol.name} draws from list files on {dataset} ({protocol.lists}); pass --lists DIR, a copy "
            "of the folder 'splits'"
        )
    return hsnet_list(lists, dataset, fold, split)


def listed_manifest(
    dataset: str, protocol: Protocol, fold: int, shots: int, episodes: int, seed: int, lists: Path | None
) -> Manifest:
    """The manifest that list files give; images are named as there, and need not exist.

    Raises:
        UserError: see `listed_pairs` and `diffup.episodes.hsnet.hsnet_episodes`.
    """
    pairs = listed_pairs(dataset, protocol, fold, "val", lists)
    drawn = hsnet_episodes(pairs, dataset, fold=fold, shots=shots, episodes=episodes, seed=seed)
    return Manifest(dataset, protocol.name, fold, seed, tuple(drawn))


def rows(manifest: Manifest) -> list[list[object]]:
    """The form that papers exchange: ``[query, [support, …], 0-based class]`` of each episode."""
    return [[e.query, list(e.supports), e.class_index] for e in manifest.episodes]


def from_rows(held: object, *, dataset: str, protocol: str, fold: int, seed: int = 0) -> Manifest:
    """The manifest of what `rows` gives, e.g. read from another project's JSON.

    Raises:
        UserError: entries of another form: how many, and what is wrong with the first three.
    """
    if not isinstance(held, list) or not held:
        raise UserError("a manifest is a list of [query, [support, …], class], and has at least one")
    bad = [f"episode {i}: {wrong}" for i, row in enumerate(held) if (wrong := _wrong_row(row))]
    if bad:
        raise UserError(
            f"{len(bad)} of {len(held)} episodes are not [query, [support, …], class] with a 0-based class: "
            f"{_first(bad)}. Correct the file"
        )
    episodes = tuple(Episode(i, class_index, query, tuple(s)) for i, (query, s, class_index) in enumerate(held))
    return Manifest(dataset, protocol, fold, seed, episodes)


def _wrong_row(row: object) -> str:
    """Why a row is not an episode, ``""`` if it is one."""
    if not isinstance(row, list) or len(row) != 3:
        return f"it is {_shown(row)}"
    query, supports, class_index = row
    if not isinstance(query, str):
        return f"its query is {_shown(query)}, not an image id in quotes"
    if not isinstance(supports, list):
        return f"its supports are {_shown(supports)}, not a list"
    for support in supports:
        if not isinstance(support, str):
            return f"its support is {_shown(support)}, not an image id in quotes"
    if type(class_index) is not int or class_index < 0:
        return f"its class is {_shown(class_index)}, not a whole number from 0"
    return ""


def _shown(value: object) -> str:
    return f"{value!r:.60} ({type(value).__name__})"


def _first(items: Sequence[str]) -> str:
    return "; ".join(items[:SHOWN]) + (f"; and {len(items) - SHOWN} more" if len(items) > SHOWN else "")


def read_manifest(path: Path, *, dataset: str, protocol: str, fold: int) -> Manifest:
    """A manifest from a file that `python -m diffup.episodes` wrote, or another project's JSON in that form.

    Whether its episodes can be used with a data set is checked by `fitted`.

    Args:
        path: JSON (UTF-8, UTF-16 or UTF-32, with a byte order mark or without), or Parquet where its name ends so.
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
        held = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a manifest as JSON: {error}") from error
    try:
        return from_rows(held, dataset=dataset, protocol=protocol, fold=fold)
    except UserError as error:
        raise UserError(f"{path} is not a manifest as JSON: {error}") from error


def fitted(manifest: Manifest, dataset: Dataset, protocol: Protocol, where: object) -> Manifest:
    """A manifest from a file or list files with the data set's image ids, after `episode_problems` found none.

    Raises:
        UserError: missing images or other problems; the message calls the manifest `where`.
    """
    named = manifest.named_as(dataset.image_ids, where)
    if problems := episode_problems(named, dataset, protocol):
        raise UserError(f"{where}: {'; '.join(problems)}. {REMEDY}")
    return named


def episode_problems(manifest: Manifest, dataset: Dataset, protocol: Protocol) -> list[str]:
    """Why episodes from outside can't be used: an entry per kind, with the number of episodes and the first three.

    An image shows a class if at least one pixel of it has the class; whether that is enough for the protocol is
    another question (`small_images`). A data set with splits tests on images of its test split only.
    """
    found: dict[str, list[str]] = {}
    any_pixel = replace(protocol, min_pixels=1, pixel_datasets=(dataset.name,))
    tested = [set(dataset.eligible(c, any_pixel)) for c in range(len(dataset.classes))]
    for episode in manifest.episodes:
        number, query, supports = episode.index, episode.query, episode.supports
        if not 0 <= episode.class_index < len(tested):
            what = f"a class that {dataset.name} does not have (it has 0-{len(tested) - 1})"
            found.setdefault(what, []).append(f"episode {number}: {episode.class_index}")
            continue

        def note(what: str, image: str, episode: Episode = episode) -> None:
            name = dataset.classes[episode.class_index]
            found.setdefault(what, []).append(f"episode {episode.index}: {image}, class {name!r}")

        if query in supports:
            note("their query among the supports", query)
        repeated = [image for image in dict.fromkeys(supports) if supports.count(image) > 1]
        if repeated and not protocol.repeats:
            note(f"a support twice, which protocol {protocol.name} does not allow", repeated[0])
        for role, images in (("query", (query,)), ("support", supports)):
            hidden = [image for image in images if episode.class_index not in dataset.areas[image]]
            if hidden:
                note(f"a {role} that does not show the class", hidden[0])
            shown = [image for image in images if image not in hidden]
            training = [image for image in shown if image not in tested[episode.class_index]]
            if training:
                note(f"a {role} of the training split", training[0])
    total = len(manifest.episodes)
    return [f"{len(bad)} of {total} episodes have {what} ({_first(bad)})" for what, bad in found.items()]


def small_images(manifest: Manifest, dataset: Dataset, protocol: Protocol) -> str:
    """How many images of sound episodes show less of their class than the protocol asks for, and the first three.

    ``""`` where there are none, and where list files take the place of that rule.
    """
    if protocol.needs_lists(dataset.name):
        return ""
    used = dict.fromkeys((image, e.class_index) for e in manifest.episodes for image in (e.query, *e.supports))
    large = {c: set(dataset.eligible(c, protocol)) for c in {c for _, c in used}}
    small = [f"{image}, class {dataset.classes[c]!r}" for image, c in used if image not in large[c]]
    return f"{len(small)} of {len(used)} images ({_first(small)})" if small else ""
