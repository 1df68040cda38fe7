"""Storage that several machines share: a folder that all mount, or a prefix of an object store (``s3://bucket/prefix``).

A name is written in full or not at all. In an object store an exclusive write is one conditional PUT
(``If-None-Match: *``), which S3, Google Cloud Storage and most compatible servers honour. ``AWS_ENDPOINT_URL`` names a
server of your own; credentials come from the environment or the machine's role, never from a URI.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from cluster.storage.atomic import write_atomically
from diffup.errors import UserError

URI = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
EXCLUSIVE = ("s3", "s3a", "gs", "gcs", "memory")
AT_ONCE = 200  # objects that are downloaded together
ADVICE = (
    "Check the bucket's name, and the credentials in the environment (for a server of your own also AWS_ENDPOINT_URL)"
)


class RemoteError(OSError):
    """The object store can't be reached, or refuses."""


@dataclass(frozen=True)
class Entry:
    """A stored name: size in bytes, the server's tag of its content, and when it was written (seconds since 1970)."""

    bytes: int
    tag: str
    written: float


class Backend(Protocol):
    """Named contents that several machines see alike; ``str`` gives the folder or the URI.

    Every method raises OSError where the storage can't be used.
    """

    def below(self, name: str) -> Backend:
        """A folder or prefix within this one."""

    def read(self, name: str) -> bytes | None:
        """The content, None if there is none."""

    def contents(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Names with their contents, in order, without those that do not exist."""

    def write(self, name: str, content: bytes, *, exclusive: bool = False) -> bool:
        """Write atomically; with `exclusive` only if the name does not exist. Returns whether it was written."""

    def entries(self, prefix: str = "") -> dict[str, Entry]:
        """Everything whose name begins with `prefix`, in one listing."""

    def now(self) -> float:
        """The time by the storage's own clock, in seconds since 1970; a file is written to read it."""

    def delete(self, name: str) -> None:
        """Remove a name, if it exists."""


def is_uri(text: str) -> bool:
    """Whether this names an object store rather than a folder."""
    return bool(URI.match(text))


def open_backend(where: str | Path) -> Backend:
    """The storage at a path or a URI."""
    return ObjectStore(where) if isinstance(where, str) and is_uri(where) else Folder(Path(where))


@dataclass(frozen=True)
class Folder:
    """A folder that all machines mount, as a `Backend`."""

    root: Path

    def __str__(self) -> str:
        return str(self.root)

    def below(self, name: str) -> Folder:
        return Folder(self.root / name)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def contents(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        for name in names:
            if (content := self.read(name)) is not None:
                yield name, content

    def write(self, name: str, content: bytes, *, exclusive: bool = False) -> bool:
        return write_atomically(self.root / name, content, exclusive=exclusive)

    def entries(self, prefix: str = "") -> dict[str, Entry]:
        found = {}
        for folder, _, files in os.walk(self.root / prefix.rpartition("/")[0], onerror=_unless_gone):
            for path in (Path(folder, file) for file in files):
                if (name := path.relative_to(self.root).as_posix()).startswith(prefix):
                    with suppress(FileNotFoundError):
                        facts = path.stat()
                        found[name] = Entry(facts.st_size, str(facts.st_mtime_ns), facts.st_mtime)
        return found

    def now(self) -> float:
        probe = self.root / f".clock-{uuid.uuid4().hex[:8]}"
        try:
            probe.touch()
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)
        if "/" in name:
            with suppress(OSError):  # it has other files, or is gone
                (self.root / name).parent.rmdir()


@dataclass(frozen=True)
class ObjectStore:
    """A prefix of an object store, as a `Backend`.

    Raises:
        UserError: the URI is malformed, or names an object store that can't be used.
    """

    uri: str

    def __post_init__(self) -> None:
        if not is_uri(self.uri) or "@" in self.uri.partition("://")[2].partition("/")[0]:
            raise UserError("an object store is named scheme://bucket/prefix, without credentials in it")

    def __str__(self) -> str:
        return self.uri

    @property
    def _scheme(self) -> str:
        return self.uri.partition("://")[0]

    @property
    def _fs(self) -> Any:
        return _file_system(self._scheme)

    def _path(self, name: str) -> str:
        return f"{self.uri.partition('://')[2].rstrip('/')}/{name}"

    def below(self, name: str) -> ObjectStore:
        return ObjectStore(f"{self.uri.rstrip('/')}/{name}")

    def read(self, name: str) -> bytes | None:
        with self._errors(name):
            try:
                content: bytes = self._fs.cat_file(self._path(name))
                return content
            except FileNotFoundError:
                return None

    def contents(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        wanted = list(names)
        for part in (wanted[start : start + AT_ONCE] for start in range(0, len(wanted), AT_ONCE)):
            with self._errors(part[0]):
                content = self._fs.cat([self._path(name) for name in part], on_error="omit")
            found = content if isinstance(content, dict) else {self._path(part[0]): content}
            for name in part:
                if self._path(name) in found:
                    yield name, found[self._path(name)]

    def write(self, name: str, content: bytes, *, exclusive: bool = False) -> bool:
        if exclusive and self._scheme not in EXCLUSIVE:
            raise UserError(f"{self.uri}: results need exclusive writes, as s3:// and gs:// have them")
        with self._errors(name):
            try:
                self._fs.pipe_file(self._path(name), content, mode="create" if exclusive else "overwrite")
            except FileExistsError:
                return False
            except OSError as error:
                if exclusive and ("PreconditionFailed" in str(error) or "412" in str(error)):
                    return False
                raise
        return True

    def entries(self, prefix: str = "") -> dict[str, Entry]:
        root = self._path("")
        with self._errors(prefix):
            try:
                found = self._fs.find(root, prefix=prefix, detail=True, refresh=True)
            except FileNotFoundError:
                return {}
        entries = {}
        for path, info in found.items():
            if (name := path.removeprefix(root)).startswith(prefix):
                tag = str(info.get("ETag") or info.get("etag") or "")
                entries[name] = Entry(int(info["size"]), tag, _written(info))
        return entries

    def now(self) -> float:
        clock = f"clock-{uuid.uuid4().hex[:8]}"
        self.write(clock, b"")
        try:
            with self._errors(clock):
                return _written(self._fs.info(self._path(clock), refresh=True))
        finally:
            self.delete(clock)

    def delete(self, name: str) -> None:
        with self._errors(name), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except (RemoteError, ValueError, FileNotFoundError, AttributeError, NameError, TypeError, AssertionError):
            raise  # the caller's to handle, or a bug
        except Exception as error:  # each client library has exceptions of its own for the same few causes
            words = str(error).strip().splitlines() or [type(error).__name__]
            raise RemoteError(f"{self.uri}/{name}: {type(error).__name__}: {words[0][:200]}") from error


@lru_cache(maxsize=8)
def _file_system(scheme: str) -> Any:
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme.startswith("s3"):
        options["config_kwargs"] = {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 3}}
    try:
        return fsspec.filesystem(scheme, **options)
    except (ImportError, ValueError) as error:
        package = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}.get(scheme)
        hint = f"; pip install {package}" if package else ""
        raise UserError(f"{scheme}:// can't be used: {error}{hint}") from error


def _written(info: dict[str, Any]) -> float:
    """When an object was written; not a number where its file system does not say."""
    stamp = info.get("LastModified") or info.get("updated") or info.get("created") or info.get("mtime")
    if isinstance(stamp, str):
        stamp = datetime.fromisoformat(stamp)
    return stamp.timestamp() if isinstance(stamp, datetime) else float("nan")


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def ages(backend: Backend, prefix: str = "") -> dict[str, float]:
    """Seconds since each name with this prefix was last written, by the storage's own clock."""
    found = backend.entries(prefix)
    now = backend.now() if found else 0.0
    return {name: now - entry.written for name, entry in found.items()}


def remove(backend: Backend, prefix: str, *, first: str = "") -> None:
    """Delete everything with this prefix, names that end in `first` before all others."""
    for name in sorted(backend.entries(prefix), key=lambda name: not name.endswith(first)):
        backend.delete(name)


def appears(backend: Backend, name: str, content: bytes | None = None, *, patience: float) -> bool:
    """Whether a name appears within `patience` seconds, with this content if one is given."""
    deadline = time.monotonic() + patience
    while (found := backend.read(name)) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return content is None or found == content


def check_access(backend: Backend) -> None:
    """Write, write exclusively, list and delete a small object, which is removed whatever fails.

    Raises:
        UserError: one of these fails; the message says which and what to do.
    """
    name = f".writable-{uuid.uuid4().hex[:8]}"
    gone = False
    try:
        if not backend.write(name, b"1", exclusive=True) or backend.write(name, b"2", exclusive=True):
            raise UserError(f"{backend} does not honour conditional writes (If-None-Match); results need them")
        if name not in backend.entries(name) or backend.read(name) != b"1":
            raise UserError(f"{backend} does not list or return what was just written there")
        backend.delete(name)
        gone = True
    except OSError as error:
        raise UserError(f"results {backend} can't be used: {error}. {ADVICE}") from error
    finally:
        if not gone:
            with suppress(OSError):
                backend.delete(name)
