"""Keeps this machine's folder and an object store alike: brings what is missing, publishes what is finished.

The object store is the source of truth. A cell is uploaded file by file and ``result.json`` last, by one conditional
PUT: at any moment, whatever is killed, it is finished there, by one worker, or it isn't. Where the folder itself is
what machines share, every method does nothing.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.storage.atomic import one_at_a_time, read_json, to_json, write_atomically
from cluster.storage.backend import ADVICE, Backend, appears, check_access, open_backend, remove
from cluster.storage.layout import CELL, CHECKPOINT_FILES, ERROR, IDENTITY, LAUNCHES, PARTS, RESULT, WEIGHTS
from diffup.errors import UserError
from diffup.grid.cell import KEY_LENGTH
from diffup.home import cache

INDEX = ".mirror.json"


def copy_folder(uri: str) -> Path:
    """This machine's copy of results in an object store: in ``$DIFFUP_CACHE``, else ``~/.cache/diffup``."""
    return cache() / "results" / hashlib.sha256(uri.rstrip("/").encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Sync:
    """A folder of this machine and the storage that machines share.

    Attributes:
        root: the folder.
        remote: URI of the object store that the folder is a copy of, ``""`` if the folder itself is shared.

    Methods raise OSError where the object store can't be used.
    """

    root: Path
    remote: str = ""

    @property
    def backend(self) -> Backend:
        """What all machines see."""
        return open_backend(self.remote or self.root)

    @property
    def is_copy(self) -> bool:
        """Whether the folder is this machine's own copy."""
        return bool(self.remote)

    def below(self, name: str, root: Path | None = None) -> Sync:
        """The same for a folder within, which may be in another place (`root`) on this machine."""
        return Sync(root or self.root / name, self.remote and f"{self.remote.rstrip('/')}/{name}")

    def check_access(self) -> None:
        """Raise UserError if the object store can't be written to as results need it."""
        if self.remote:
            check_access(self.backend)

    def appears(self, name: str, patience: float) -> bool:
        """Whether the shared folder shows a file within so many seconds; an object store is the same everywhere."""
        return self.is_copy or appears(self.backend, name, patience=patience)

    def upload(self, *names: str) -> None:
        """Publish files, in this order; those that don't exist here are left out."""
        for name in names if self.remote else ():
            if (self.root / name).is_file():
                self.backend.write(name, (self.root / name).read_bytes())

    def download(self, prefix: str, *, last: str = "") -> None:
        """Bring what has this prefix and is missing here; names that end in `last` come last."""
        if self.remote:
            names = [name for name in self.backend.entries(prefix) if not (self.root / name).exists()]
            self.fetch(names, last=last)

    def fetch(self, names: Iterable[str], folder: Path | None = None, *, last: str = RESULT) -> None:
        """Download names, here or to another folder; those that end in `last` come last."""
        for name, content in self.backend.contents(sorted(names, key=lambda name: name.endswith(last))):
            write_atomically((folder or self.root) / name, content)

    def remove(self, prefix: str, *, first: str = "") -> None:
        """Delete from the object store what has this prefix, names that end in `first` first; not from the folder."""
        if self.remote:
            remove(self.backend, prefix, first=first)

    def pull(self, keys: Iterable[str] | None = None) -> int:
        """Bring some cells, or all results, up to date: what is new or changed comes, what was deleted goes.

        With all results, cells that are finished here alone are published.

        Returns:
            number of files that were downloaded.
        """
        if not self.remote:
            return 0
        index, prefixes = self._index(), ("",) if keys is None else tuple(f"{key}/" for key in keys)
        there = {n: e for prefix in prefixes for n, e in self.backend.entries(prefix).items() if _copied(n)}
        gone = [name for name in index if name.startswith(prefixes) and name not in there]
        for name in sorted(gone, key=lambda name: not name.endswith(RESULT)):  # without it, the cell is not finished
            (self.root / name).unlink(missing_ok=True)
        new = [n for n, entry in there.items() if index.get(n) != entry.tag or not (self.root / n).is_file()]
        self.fetch(new)
        if new or gone:
            self._remember({name: there[name].tag for name in new}, gone)
        if keys is None:  # finished here by a process that was killed before it published them
            for path in self.root.glob(f"*/{RESULT}"):
                if f"{path.parent.name}/{RESULT}" not in there:
                    self.publish(path.parent.name)
        return len(new)

    @contextmanager
    def preview(self) -> Iterator[Path]:
        """A folder that holds what `pull` would leave here, without panels; nothing else is written anywhere.

        Raises:
            UserError: the object store can't be read.
        """
        if not self.remote:
            yield self.root
            return
        with tempfile.TemporaryDirectory(prefix="diffup-dry-run-") as name:
            try:
                self._preview(Path(name))
            except OSError as error:
                raise UserError(f"results {self.remote} can't be read: {error}. {ADVICE}") from error
            yield Path(name)

    def _preview(self, folder: Path) -> None:
        index = self._index()
        there = {n: e for n, e in self.backend.entries().items() if _copied(n) and "/panels/" not in n}
        here = [n for n, entry in there.items() if index.get(n) == entry.tag and (self.root / n).is_file()]
        for path in self.root.glob(f"*/{RESULT}"):  # finished here by a process that was killed before it published it
            key = path.parent.name
            if f"{key}/{RESULT}" not in there and f"{key}/{RESULT}" not in index:
                here += [f"{key}/{file.name}" for file in path.parent.iterdir() if file.is_file()]
        self.fetch([name for name in there if name not in set(here)], folder)
        for name in here:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(self.root / name)

    def publish(self, key: str) -> None:
        """Publish a cell that was finished here or has failed; of several that finish it the first one stands."""
        if not self.remote:
            return
        if not (self.root / key / RESULT).is_file():
            self.upload(f"{key}/{CELL}", f"{key}/{ERROR}")
        elif not self.push(key):
            (self.root / key / RESULT).unlink()
            self.pull([key])

    def push(self, key: str) -> bool:
        """Upload a finished cell, ``result.json`` last.

        Returns:
            False if another machine had finished it before; then that result stays.
        """
        folder, backend = self.root / key, self.backend
        result = (folder / RESULT).read_bytes()
        before = backend.read(f"{key}/{RESULT}")
        if before is not None:
            return before == result
        panels = [f"panels/{path.name}" for path in sorted((folder / "panels").glob("*.jpg"))]
        names = [CELL, *_files(result), *panels]
        for name in names:
            backend.write(f"{key}/{name}", (folder / name).read_bytes())
        backend.delete(f"{key}/{ERROR}")
        won = backend.write(f"{key}/{RESULT}", result, exclusive=True) or self._settle(key, result)
        # Known to be there from now on: once it is deleted there, it is deleted here too, and not uploaded again.
        self._remember({f"{key}/{name}": "pushed" for name in (*names, RESULT) if _copied(f"{key}/{name}")})
        return won

    def _settle(self, key: str, result: bytes) -> bool:
        """After two finished a cell at once: whether the uploaded files are those of `result`, which then stands."""
        there = self.backend.read(f"{key}/{RESULT}") or b"{}"
        theirs = _files(there)
        if theirs == _files(result) or all(_same(self.backend.read(f"{key}/{n}"), f) for n, f in theirs.items()):
            return there == result
        self.backend.write(f"{key}/{RESULT}", result)
        return True

    def refetch(self, key: str) -> bool:
        """Download a cell anew, whatever is here of it but a training's state. Returns whether this is a copy."""
        if self.remote:
            self._remember({}, [name for name in self._index() if name.startswith(f"{key}/")])
            (self.root / key / RESULT).unlink(missing_ok=True)
            self.pull([key])
        return self.is_copy

    def fetch_checkpoint(self, key: str) -> None:
        """Download a training cell's checkpoint, unless the one here is the one that the cell's result names."""
        result = self.backend.read(f"{key}/{RESULT}") if self.remote else None
        if result is None:
            return  # it is not finished there, so what is here is not of a finished training either
        named = {name: facts for name, facts in _files(result).items() if name in CHECKPOINT_FILES}
        here = open_backend(self.root)
        lacking = [f"{key}/{name}" for name, facts in named.items() if not _same(here.read(f"{key}/{name}"), facts)]
        self.fetch(lacking, last="config.json")

    def _index(self) -> dict[str, str]:
        """The object store's tag of each file of the copy, as it was when the file was downloaded."""
        return read_json(self.root / INDEX)

    def _remember(self, new: dict[str, str], gone: Iterable[str] = ()) -> None:
        """Change the index, which several workers of a machine do."""
        with one_at_a_time(self.root / f"{INDEX}.lock"):
            index = {name: tag for name, tag in self._index().items() if name not in set(gone)}
            write_atomically(self.root / INDEX, to_json({**index, **new}))


def _copied(name: str) -> bool:
    """Whether a copy holds this object: cells without checkpoints and parts, launches, pinned weights, the id."""
    head, _, rest = name.partition("/")
    if head in (LAUNCHES, WEIGHTS, IDENTITY):
        return True
    return len(head) == KEY_LENGTH and not rest.startswith(("checkpoint/", f"{PARTS}/"))


def _files(result: bytes) -> dict[str, dict[str, Any]]:
    """The files that a ``result.json`` names, with their size and SHA-256."""
    files: dict[str, dict[str, Any]] = json.loads(result).get("files", {})
    return files


def _same(content: bytes | None, facts: dict[str, Any]) -> bool:
    return content is not None and hashlib.sha256(content).hexdigest() == facts["sha256"]
