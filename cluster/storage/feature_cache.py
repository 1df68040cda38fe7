"""Which folder of shards holds what: features of one data set and backbone, prior maps of one way to annotate.

    python -m cluster.storage.feature_cache list DIR            what is there, its size, when it was last used
    python -m cluster.storage.feature_cache clean DIR --limit 50GB [--older-than DAYS]
    python -m cluster.storage.feature_cache check DIR           reads every shard and removes damaged ones

DIR is the folder ``features`` of a results directory; `list` and `clean` take one in an object store too
(``s3://bucket/results/features``).

A folder's name tells people what it holds; its `about.json` holds all that its content depends on. Deleting a folder
loses nothing but time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.storage.atomic import to_json, write_atomically
from diffup.errors import UserError, command_line

if TYPE_CHECKING:  # it loads torch, which a plan needs not
    from diffup.evaluation.shards import ShardStore

ABOUT, USED = "about.json", "used"
VISUAL, TEXT, PRIORS, TEXT_PRIORS = "features", "text", "priors", "text-priors"
KEPT_FREE = 0.2  # of the free disk: shards never take it
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Spec:
    """What a folder of shards holds.

    Attributes:
        kind: `VISUAL` or `TEXT` features by image, `PRIORS` or `TEXT_PRIORS` by triple.
        title: a few words for the folder's name.
        facts: all that the content depends on but the weights that a name on a hub stands for, as sorted JSON.
    """

    kind: str
    title: str
    facts: str

    @staticmethod
    def of(kind: str, title: Sequence[object], facts: dict[str, Any]) -> Spec:
        """A spec of plain JSON facts."""
        return Spec(kind, "-".join(str(part) for part in title), json.dumps({"kind": kind, **facts}, sort_keys=True))

    @cached_property
    def name(self) -> str:
        """Of the folder."""
        digest = hashlib.sha256(self.facts.encode()).hexdigest()[:10]
        return f"{self.kind}-{re.sub(r'[^A-Za-z0-9_.]+', '-', self.title)[:60]}-{digest}"

    def open(self, root: Path, identity: str) -> ShardStore | None:
        """The store, if it was made with the same weights.

        Args:
            root: of all stores.
            identity: of the encoder (`diffup.evaluation.encode.Encoder`), which names the weights that were loaded.
        """
        folder = root / self.name
        try:
            if json.loads((folder / ABOUT).read_bytes())["identity"] != identity:
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        store = _opened(folder)
        store.refresh()
        return store

    def make(self, root: Path, identity: str) -> ShardStore:
        """The store to write to; what other weights left there is removed.

        Raises:
            OSError: the folder can't be written.
        """
        if (store := self.open(root, identity)) is not None:
            return store
        folder = root / self.name
        document = {**json.loads(self.facts), "identity": identity}
        if not write_atomically(folder / ABOUT, to_json(document), exclusive=True):
            if (store := self.open(root, identity)) is not None:  # another worker was first
                return store
            shutil.rmtree(folder, ignore_errors=True)
            write_atomically(folder / ABOUT, to_json(document))
        return _opened(folder)


OPEN = 16  # stores that a process keeps: the list of a large one's rows takes hundreds of megabytes
_stores: OrderedDict[Path, ShardStore] = OrderedDict()


def _opened(folder: Path) -> ShardStore:
    """One store per folder and process: its maps and its list of shards are kept, of those used last."""
    from diffup.evaluation.shards import ShardStore

    store = _stores.setdefault(folder, ShardStore(folder))
    _stores.move_to_end(folder)
    while len(_stores) > OPEN:
        _stores.popitem(last=False)
    return store


def mark_used(root: Path, spec: Spec) -> None:
    """Remember that a launch needs the folder now, for `clean`."""
    if (root / spec.name).is_dir():
        (root / spec.name / USED).touch()


@dataclass(frozen=True)
class Listed:
    """One folder of shards: its size, and seconds since it was last used."""

    folder: Path
    bytes: int
    rows: int
    idle: float


def listed(root: Path) -> list[Listed]:
    """All folders of shards, the least recently used first."""
    from diffup.evaluation.shards import DATA, ShardStore

    found = []
    for about in sorted(root.glob(f"*/{ABOUT}")):
        folder = about.parent
        used = max(path.stat().st_mtime for path in (about, folder / USED) if path.exists())
        store = ShardStore(folder)
        store.refresh()
        size = sum(path.stat().st_size for path in folder.glob(f"*{DATA}"))
        found.append(Listed(folder, size, len(store), time.time() - used))
    return sorted(found, key=lambda each: -each.idle)


def clean(root: Path, *, limit_bytes: int | None = None, older_than: float | None = None) -> list[Listed]:
    """Delete the least recently used folders.

    Args:
        limit_bytes: until all that is left is at most this much.
        older_than: those that no launch has used for this many seconds.

    Returns:
        what was deleted.
    """
    gone = to_clean(listed(root), limit_bytes, older_than)
    for each in gone:
        shutil.rmtree(each.folder)
    return gone


def to_clean(there: Sequence[Listed], limit_bytes: int | None, older_than: float | None) -> list[Listed]:
    """Which of `there`, the least recently used first, `clean` deletes."""
    total, gone = sum(each.bytes for each in there), []
    for each in there:
        over = limit_bytes is not None and total > limit_bytes
        if over or (older_than is not None and each.idle > older_than):
            total -= each.bytes
            gone.append(each)
    return gone


def size(text: str) -> int:
    """``"50GB"`` as a number of bytes, for argparse (K, M, G, T are powers of 1000)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 500MB, 50GB or 2TB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def in_words(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit in ("B", "kB") else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def main(argv: Sequence[str] | None = None) -> int:
    """List, clean or check; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m cluster.storage.feature_cache", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("list", "clean", "check"):
        command = commands.add_parser(name)
        command.add_argument("root", metavar="DIR", help="the folder 'features' of a results directory")
        if name == "clean":
            command.add_argument("--limit", type=size, default=None, metavar="SIZE", help="keep at most this much")
            command.add_argument("--older-than", type=float, default=None, metavar="DAYS", help="not used for so long")
    args = parser.parse_args(argv)
    try:
        return _do(args)
    except (OSError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _do(args: argparse.Namespace) -> int:
    from cluster.storage import depot
    from cluster.storage.remote import RemotePlace, is_uri

    place, root = RemotePlace(args.root) if is_uri(args.root) else None, Path(args.root)
    if place is None and not root.is_dir():
        raise UserError(f"{root} is no folder")
    if args.command == "clean":
        if args.limit is None and args.older_than is None:
            raise UserError("say what to delete: --limit SIZE or --older-than DAYS")
        asked: dict[str, Any] = {
            "limit_bytes": args.limit,
            "older_than": None if args.older_than is None else 86400 * args.older_than,
        }
        gone = depot.clean(place, **asked) if place else clean(root, **asked)
        for each in gone:
            print(f"deleted {each.folder.name}: {in_words(each.bytes)}")
        left = depot.listed(place) if place else listed(root)
        print(f"{in_words(sum(each.bytes for each in gone))} freed, {_total(left)} left")
        return 0
    there = depot.listed(place) if place else listed(root)
    if args.command == "check":
        if place:
            raise UserError("only a machine's own folder can be checked; every row that is read is checked then")
        for each in there:
            store = _opened(each.folder)
            bad = store.check()
            store.remove(bad)
            print(f"{each.folder.name}: {each.rows} rows, {len(bad)} damaged shards removed")
        return 0
    for each in there:
        print(f"{each.folder.name}  {each.rows} rows  {in_words(each.bytes)}  used {each.idle / 86400:.1f} days ago")
    print(f"{_total(there)} in all; the least recently used first")
    return 0


def _total(there: Sequence[Listed]) -> str:
    return in_words(sum(each.bytes for each in there))


if __name__ == "__main__":
    sys.exit(command_line(main))
