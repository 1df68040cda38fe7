"""Results in an object store, worked on through a folder: what is there comes down once, what is finished goes up once.

    python -m cluster.storage.mirror pull s3://bucket/results DIR        then: python -m analysis.paper DIR …
    python -m cluster.storage.mirror push DIR s3://bucket/results

The object store is the source of truth. A cell goes up file by file and ``result.json`` last, by one conditional PUT: a
cell is finished there or it isn't, and by one worker, whatever is killed and whenever.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cluster.storage.atomic import one_at_a_time, to_json, write_atomically
from cluster.storage.remote import RemotePlace
from cluster.storage.results import CELL, CHECKPOINT_FILES, ERROR, IDENTITY, LAUNCHES, PARTS, RESULT, WEIGHTS, Store
from diffup.errors import UserError, command_line
from diffup.grid.cell import KEY_LENGTH
from diffup.home import cache

INDEX = ".mirror.json"


def mirror_folder(uri: str) -> Path:
    """This machine's folder for results in an object store: in ``$DIFFUP_CACHE``, else ``~/.cache/diffup``."""
    return cache() / "results" / hashlib.sha256(uri.rstrip("/").encode()).hexdigest()[:12]


def _kept(name: str) -> bool:
    """Whether a mirror holds this object: cells without checkpoints and parts, launches, pinned weights, the id."""
    head, _, rest = name.partition("/")
    if head in (LAUNCHES, WEIGHTS, IDENTITY):
        return True
    return len(head) == KEY_LENGTH and not rest.startswith(("checkpoint/", f"{PARTS}/"))


def pull(place: RemotePlace, root: Path, keys: Iterable[str] | None = None) -> int:
    """Bring a mirror up to date: what is new or changed comes down, what is gone goes.

    Args:
        place: the results.
        root: the mirror.
        keys: of some cells alone; None: all, by one listing.

    Returns:
        number of files that came down. With all cells, those that are finished here alone go up.
    """
    index = _index(root)
    if keys is None:
        there = {name: facts for name, facts in place.names().items() if _kept(name)}
        gone = [name for name in index if name not in there]
    else:
        there, gone = {}, []
        for key in keys:
            found = {name: facts for name, facts in place.names(f"{key}/").items() if _kept(name)}
            there |= found
            gone += [name for name in index if name.startswith(f"{key}/") and name not in found]
    for name in sorted(gone, key=lambda name: not name.endswith(RESULT)):  # without its result a cell is not finished
        (root / name).unlink(missing_ok=True)
    new = [name for name, facts in there.items() if index.get(name) != facts.tag or not (root / name).is_file()]
    place.fetch(new, root)
    if new or gone:
        _remember(root, {name: there[name].tag for name in new}, gone)
    if keys is None:  # finished here by a process that was killed before it could say so
        for path in root.glob(f"*/{RESULT}"):
            if f"{path.parent.name}/{RESULT}" not in there and not push(place, root, path.parent.name):
                pull(place, root, [path.parent.name])
    return len(new)


def preview(place: RemotePlace, root: Path, folder: Path) -> None:
    """Make in `folder`, which is empty, what `pull` would make of a mirror, and write nothing else anywhere.

    Files that the mirror has are linked, others come down; panels, which no plan reads, are left out.

    Args:
        place: the results.
        root: the mirror, which need not be there.
        folder: a temporary one.
    """
    index = _index(root)
    there = {name: facts for name, facts in place.names().items() if _kept(name) and "/panels/" not in name}
    here = [name for name, facts in there.items() if index.get(name) == facts.tag and (root / name).is_file()]
    for path in root.glob(f"*/{RESULT}"):  # finished here by a process that was killed before it could say so
        name = f"{path.parent.name}/{RESULT}"
        if name not in there and name not in index:
            here += [f"{path.parent.name}/{file.name}" for file in path.parent.iterdir() if file.is_file()]
    place.fetch([name for name in there if name not in set(here)], folder)
    for name in here:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(root / name)


def push(place: RemotePlace, root: Path, key: str) -> bool:
    """Upload a finished cell, ``result.json`` last.

    Returns:
        False if another had finished it before; then its result stays.
    """
    folder = root / key
    result = (folder / RESULT).read_bytes()
    before = place.read(f"{key}/{RESULT}")
    if before is not None:
        return before == result
    names = [CELL, *_files(result)]
    names += [f"panels/{path.name}" for path in sorted((folder / "panels").glob("*.jpg"))]
    for name in names:
        place.write(f"{key}/{name}", (folder / name).read_bytes())
    place.delete(f"{key}/{ERROR}")
    won = place.write(f"{key}/{RESULT}", result, exclusive=True) or _settled(place, key, result)
    # Known to be up there from now on: when it is gone one day, it is gone here too, and does not go up again.
    _remember(root, {f"{key}/{name}": "pushed" for name in (*names, RESULT) if _kept(f"{key}/{name}")})
    return won


def _settled(place: RemotePlace, key: str, result: bytes) -> bool:
    """After two finished a cell at once: whether the files up there are of this `result`, which then stands."""
    there = place.read(f"{key}/{RESULT}") or b"{}"
    theirs, ours = _files(there), _files(result)
    if theirs == ours or all(_same(place.read(f"{key}/{name}"), facts) for name, facts in theirs.items()):
        return there == result
    place.write(f"{key}/{RESULT}", result)
    return True


def _files(result: bytes) -> dict[str, dict[str, Any]]:
    """The files that a ``result.json`` names, with their size and SHA-256."""
    files: dict[str, dict[str, Any]] = json.loads(result).get("files", {})
    return files


def _same(content: bytes | None, facts: dict[str, Any]) -> bool:
    return content is not None and hashlib.sha256(content).hexdigest() == facts["sha256"]


def _index(root: Path) -> dict[str, str]:
    """The object store's tag of each file of a mirror, as it was when the file came down."""
    try:
        index: dict[str, str] = json.loads((root / INDEX).read_bytes())
    except (OSError, ValueError):
        return {}
    return index


def _remember(root: Path, new: dict[str, str], gone: Iterable[str] = ()) -> None:
    """Change the index; several workers of a machine do."""
    with one_at_a_time(root / f"{INDEX}.lock"):
        index = {name: tag for name, tag in _index(root).items() if name not in set(gone)}
        write_atomically(root / INDEX, to_json({**index, **new}))


def refetch(place: RemotePlace, root: Path, key: str) -> None:
    """Bring a cell down again, whatever is here of it; a training's state stays."""
    _remember(root, {}, [name for name in _index(root) if name.startswith(f"{key}/")])
    (root / key / RESULT).unlink(missing_ok=True)
    pull(place, root, [key])


def push_file(place: RemotePlace, root: Path, name: str) -> None:
    """Upload one file, such as an error or the note of a launch."""
    if (root / name).is_file():
        place.write(name, (root / name).read_bytes())


def fetch_checkpoint(place: RemotePlace, root: Path, key: str) -> None:
    """Download a training cell's checkpoint, unless the one here is the one that its result up there names."""
    content = place.read(f"{key}/{RESULT}")
    if content is None:
        return  # it is not finished there; what is here is not of a finished training either
    named = {name: facts for name, facts in _files(content).items() if name in CHECKPOINT_FILES}
    lacking = [name for name, facts in named.items() if not _same(_read(root / key / name), facts)]
    place.fetch([f"{key}/{name}" for name in lacking], root, last="config.json")


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def drop(place: RemotePlace, key: str) -> None:
    """Delete a cell's result, so that it is not finished, then the rest of it."""
    place.delete(f"{key}/{RESULT}")
    for name in place.names(f"{key}/"):
        place.delete(name)


def main(argv: Sequence[str] | None = None) -> int:
    """Pull or push all cells; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m cluster.storage.mirror", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, places in (("pull", ("uri", "folder")), ("push", ("folder", "uri"))):
        command = commands.add_parser(name)
        for each in places:
            command.add_argument(each, type=Path if each == "folder" else str)
    args = parser.parse_args(argv)
    try:
        place, store = RemotePlace(args.uri), Store(args.folder.absolute())
        if args.command == "pull":
            count = pull(place, args.folder)
            for key in store.cell_keys():
                if store.read_cell(key).get("kind") == "train":
                    fetch_checkpoint(place, args.folder, key)
            print(f"{count} files came down to {args.folder}")
            return 0
        records = [store.read(key) for key in store.cell_keys()]
        keys = [record.key for record in records if record.status == "finished"]
        damaged = [record.why for record in records if record.status == "damaged"]
        done = sum(push(place, args.folder, key) for key in keys)
        for folder in (LAUNCHES, WEIGHTS):
            for path in sorted((args.folder / folder).glob("*.json")):
                push_file(place, args.folder, f"{folder}/{path.name}")
        if (args.folder / IDENTITY).is_file():
            place.write(IDENTITY, (args.folder / IDENTITY).read_bytes(), exclusive=True)
        print(f"{done} of {len(keys)} finished cells went up, the others were there")
        if damaged:
            print(f"warning: {len(damaged)} damaged results were left out: {damaged[0]}", file=sys.stderr)
        return 1 if damaged else 0
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(command_line(main))
