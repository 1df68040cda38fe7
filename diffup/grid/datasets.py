"""Data sets as cells name them: which files, under which protocol, and where episodes come from."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from diffup.errors import UserError

if TYPE_CHECKING:
    from diffup.data.dataset import Dataset
    from diffup.episodes.protocols import Protocol

SHOWN = 10  # problems that a message names
GIVEN = re.compile(r"fold(?P<fold>\d+)_shots(?P<shots>\d+)\.(json|parquet)")


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data set as cells name it.

    Attributes:
        name: name in tables.
        path: its ``dataset.json``; None for a named benchmark that need not be available to plan.
        fingerprint: of the files, ``""`` where `path` is None.
        folds: number of folds.
        protocol, protocol_hash: how episodes are drawn.
        lists: folder of list files, for a protocol that draws from them.
        manifests: episodes that are given, by fold and shots; where there are any, none are drawn.
    """

    name: str
    path: Path | None = None
    fingerprint: str = ""
    folds: int = 4
    protocol: str = "paired"
    protocol_hash: str = ""
    lists: Path | None = None
    manifests: Mapping[tuple[int, int], Given] = field(default_factory=dict)

    def files(self) -> dict[str, Path]:
        """What cells on it read, by the name that a worker asks for."""
        found = {} if self.path is None else {self.name: self.path}
        if self.lists is not None:
            found[lists_of(self.name)] = self.lists
        return found | {manifest_of(given.hash): given.path for given in self.manifests.values()}

    def chosen_folds(self, folds: Sequence[int] | None) -> Sequence[int]:
        """The folds that ``--folds`` names; None: all.

        Raises:
            UserError: there is no such fold.
        """
        absent = [fold for fold in folds or () if fold not in range(self.folds)]
        if absent:
            raise UserError(f"--folds: {self.name} has folds 0 to {self.folds - 1}, not {absent[0]}")
        return range(self.folds) if folds is None else folds


@dataclass(frozen=True)
class Given:
    """A manifest in a file: where, its hash, and how many episodes it has."""

    path: Path
    hash: str
    episodes: int


def lists_of(dataset: str) -> str:
    """The name under which a worker finds the list files of a data set."""
    return f"lists of {dataset}"


def manifest_of(manifest: str) -> str:
    """The name under which a worker finds the manifest of this hash."""
    return f"manifest {manifest}"


def open_data(
    path: str | Path,
    *,
    shots: int,
    protocol: str = "paired",
    lists: Path | None = None,
    manifests: Path | None = None,
    dataset: Dataset | None = None,
) -> Data:
    """Read a ``dataset.json`` and check that every fold can give episodes of one support, if there are to be any.

    Whether there are images enough for more is checked for the cells that are run (`cluster.planning.preflight`).

    Args:
        path: of the ``dataset.json``, or a known name.
        shots: the most that the grid has; list files are checked for it.
        protocol: name.
        lists: folder of list files, for a protocol that draws from them.
        manifests: folder with a manifest for each fold and number of shots that the grid has, called
            ``fold{F}_shots{K}.json`` or ``.parquet``; none: episodes are drawn.
        dataset: what `path` opens to, where that has been done: a large index takes seconds.

    Raises:
        UserError: the data set is damaged or too small, or lists or manifests don't fit it; the message names files
            and remedy.
    """
    from diffup.data.dataset import open_dataset, resolve_dataset
    from diffup.episodes.protocols import get_protocol

    rules, path = get_protocol(protocol), resolve_dataset(str(path))
    dataset = dataset or open_dataset(path)
    given = {} if manifests is None else _given(dataset, rules, manifests)
    if rules.needs_lists(dataset.name):  # for training too, wherever the episodes come from
        _check_lists(dataset, rules, lists, shots)
    elif manifests is None:
        dataset.check(min(shots, 1), rules)
    return Data(
        name=dataset.name,
        path=path.resolve(),
        fingerprint=dataset.fingerprint,
        folds=len(dataset.folds),
        protocol=protocol,
        protocol_hash=rules.hash(),
        lists=None if lists is None else lists.absolute(),
        manifests=given,
    )


def _check_lists(dataset: Dataset, protocol: Protocol, lists: Path | None, shots: int) -> None:
    """Make sure that the list files name images of the data set, and that the episodes drawn from them can be used."""
    from diffup.episodes.manifest import fitted, listed_manifest, listed_pairs

    for fold in range(len(dataset.folds)):
        listed_pairs(dataset.name, protocol, fold, "val", lists).named_as(dataset.image_ids, lists)
        number, seed = protocol.episode_count(dataset.name), protocol.seeds[0]
        for most in sorted({1, max(shots, 1)}):  # other numbers of shots draw other images
            drawn = listed_manifest(dataset.name, protocol, fold, most, number, seed, lists)
            fitted(drawn, dataset, protocol, f"{lists}, fold {fold}, {most} shots")


def _given(dataset: Dataset, protocol: Protocol, folder: Path) -> dict[tuple[int, int], Given]:
    """The manifests of a folder by fold and shots; what is wrong with any of them is collected."""
    from diffup.episodes.manifest import REMEDY, episode_problems, read_manifest, small_images

    found: dict[tuple[int, int], Given] = {}
    problems: list[str] = []
    for path in sorted(folder.glob("fold*_shots*")) if folder.is_dir() else []:
        match = GIVEN.fullmatch(path.name)
        if match is None or int(match["fold"]) >= len(dataset.folds):
            problems.append(f"{path}: expected is fold{{F}}_shots{{K}}.json or .parquet, F below {len(dataset.folds)}")
            continue
        fold, shots = int(match["fold"]), int(match["shots"])
        if (fold, shots) in found:
            problems.append(f"{path}: there is {found[fold, shots].path.name} for the same fold and shots; keep one")
            continue
        try:
            manifest = read_manifest(path, dataset=dataset.name, protocol=protocol.name, fold=fold)
            named = manifest.named_as(dataset.image_ids, path)
        except UserError as error:
            problems.append(str(error))
            continue
        wrong = episode_problems(named, dataset, protocol)
        strange = sorted({e.class_index for e in named.episodes} - set(dataset.novel_classes(fold)))
        if strange:
            wrong.append(f"classes {strange[:5]} are not novel in fold {fold} of {dataset.name}")
        if few := [e.index for e in named.episodes if len(e.supports) < shots]:
            wrong.append(f"{len(few)} episodes have fewer than {shots} supports, the first is episode {few[0]}")
        problems += [f"{path}: {what}" for what in wrong]
        if not wrong and (small := small_images(named, dataset, protocol)):
            warnings.warn(
                f"{path}: protocol {protocol.name} would not draw {small}, where the class is too small for it",
                stacklevel=4,
            )
        found[fold, shots] = Given(path.absolute(), manifest.hash(), len(manifest.episodes))
    if problems:
        rest = f"\n  … and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        listed = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
        raise UserError(f"{folder}: {len(problems)} problems with the episodes:{listed}{rest}\n{REMEDY}")
    if not found:
        raise UserError(
            f"{folder} holds no fold{{F}}_shots{{K}}.json or .parquet; python -m diffup.episodes writes such"
        )
    return found


def named_data(name: str, *, protocol: str = "paired", lists: Path | None = None) -> Data:
    """A benchmark by name, whether or not its files are available.

    Raises:
        UserError: no such protocol, or it needs list files and they are not given.
    """
    from diffup.episodes.manifest import listed_pairs
    from diffup.episodes.protocols import get_protocol

    rules = get_protocol(protocol)
    if rules.needs_lists(name):
        listed_pairs(name, rules, 0, "val", lists)
    lists = None if lists is None else lists.absolute()
    return Data(name=name, protocol=protocol, protocol_hash=rules.hash(), lists=lists)


@cache
def _listed(lists: Path, dataset: str, protocol: str, fold: int, shots: int, episodes: int, seed: int) -> str:
    from diffup.episodes.manifest import listed_manifest
    from diffup.episodes.protocols import get_protocol

    return listed_manifest(dataset, get_protocol(protocol), fold, shots, episodes, seed, lists).hash()


def training_lists(data: Data, fold: int) -> str:
    """Hash of the list files that name the training images of a fold, ``""`` where none do."""
    from diffup.episodes.protocols import get_protocol

    if not get_protocol(data.protocol).needs_lists(data.name):
        return ""
    assert data.lists is not None, data.name
    return _training(data.lists, data.name, data.protocol, fold)


@cache
def _training(lists: Path, dataset: str, protocol: str, fold: int) -> str:
    from diffup.episodes.manifest import listed_pairs
    from diffup.episodes.protocols import get_protocol

    return listed_pairs(dataset, get_protocol(protocol), fold, "trn", lists).hash()


def manifest_for(data: Data, fold: int, shots: int, episodes: int, seed: int) -> tuple[str, int]:
    """Hash of a cell's manifest, where it does not follow from the data, and its number of episodes.

    Raises:
        UserError: manifests are given, but none for this fold and number of shots.
    """
    from diffup.episodes.protocols import get_protocol

    if data.manifests:
        if (fold, shots) not in data.manifests:
            raise UserError(
                f"--manifests has none for fold {fold} with {shots} shots; add fold{fold}_shots{shots}.json"
            )
        given = data.manifests[fold, shots]
        return given.hash, min(episodes, given.episodes)
    if not get_protocol(data.protocol).needs_lists(data.name):
        return "", episodes
    assert data.lists is not None, data.name
    return _listed(data.lists, data.name, data.protocol, fold, shots, episodes, seed), episodes
