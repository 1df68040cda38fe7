"""An object store as a place for results: ``s3://bucket/prefix``, ``gs://…``.

A name is written whole or not at all, by one PUT; an exclusive write is a conditional one (``If-None-Match: *``), which
S3, Google Cloud Storage and most of their kin honour. A server of one's own is named by ``AWS_ENDPOINT_URL``;
credentials come from the environment or the machine's role, and never from a URI. The server's clock tells ages.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from cluster.storage.atomic import write_atomically
from diffup.errors import UserError

URI = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
EXCLUSIVE = ("s3", "s3a", "gs", "gcs", "memory")
AT_ONCE = 200  # objects that are downloaded together


class RemoteError(OSError):
    """The object store can't be reached, or refuses."""


@dataclass(frozen=True)
class Facts:
    """Size in bytes and the server's tag of an object's content."""

    bytes: int
    tag: str


def is_uri(text: str) -> bool:
    """Whether this names an object store rather than a folder."""
    return bool(URI.match(text))


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


@dataclass(frozen=True)
class RemotePlace:
    """A prefix of an object store; see `cluster.storage.backend.Place`."""

    uri: str

    def __post_init__(self) -> None:
        if not is_uri(self.uri) or "@" in self.uri.partition("://")[2].partition("/")[0]:
            raise UserError("an object store is named scheme://bucket/prefix, without credentials in it")

    @property
    def _fs(self) -> Any:
        return _file_system(self.uri.partition("://")[0])

    def _path(self, name: str) -> str:
        return f"{self.uri.partition('://')[2].rstrip('/')}/{name}"

    def below(self, name: str) -> RemotePlace:
        """A prefix within this one."""
        return RemotePlace(f"{self.uri.rstrip('/')}/{name}")

    def read(self, name: str) -> bytes | None:
        """See `Place`."""
        with self._errors(name):
            try:
                content: bytes = self._fs.cat_file(self._path(name))
                return content
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes, *, exclusive: bool = False) -> bool:
        """See `Place`; an exclusive write is one conditional PUT.

        Raises:
            UserError: an exclusive write where the file system knows none.
        """
        if exclusive and self.uri.partition("://")[0] not in EXCLUSIVE:
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

    def names(self, prefix: str = "") -> dict[str, Facts]:
        """All objects whose names begin so, in one listing."""
        with self._errors(prefix):
            root = self._path("")
            try:
                found = self._fs.find(root, detail=True, refresh=True) if not prefix else self._below(prefix)
            except FileNotFoundError:
                return {}
            return {
                path.removeprefix(root): Facts(int(info["size"]), str(info.get("ETag") or info.get("etag") or ""))
                for path, info in found.items()
            }

    def _below(self, prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = self._fs.find(self._path(""), prefix=prefix, detail=True, refresh=True)
        return found

    def ages(self, prefix: str) -> dict[str, float]:
        """See `Place`."""
        with self._errors(prefix):
            try:
                found = self._below(prefix) if prefix else self._fs.find(self._path(""), detail=True, refresh=True)
            except FileNotFoundError:
                return {}
            if not found:
                return {}
            clock = self._path(f"clock-{uuid.uuid4().hex[:8]}")
            self._fs.pipe_file(clock, b"")
            try:
                now = _written(self._fs.info(clock, refresh=True))
            finally:
                self._fs.rm_file(clock)
            root = self._path("")
            return {path.removeprefix(root): (now - _written(info)).total_seconds() for path, info in found.items()}

    def delete(self, name: str) -> None:
        """See `Place`."""
        with self._errors(name):
            try:
                self._fs.rm_file(self._path(name))
            except FileNotFoundError:
                return

    def fetch(self, names: Iterable[str], folder: Path, *, last: str = "result.json") -> None:
        """Download objects to files of the same names, those called `last` after all others."""
        for name, content in self.contents(sorted(names, key=lambda name: name.endswith(last))):
            write_atomically(folder / name, content)

    def contents(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Objects in order, many asked for at a time; without those that are not there any more."""
        wanted = list(names)
        for part in (wanted[start : start + AT_ONCE] for start in range(0, len(wanted), AT_ONCE)):
            with self._errors(part[0]):
                content = self._fs.cat([self._path(name) for name in part], on_error="omit")
            found = content if isinstance(content, dict) else {self._path(part[0]): content}
            for name in part:
                if self._path(name) in found:
                    yield name, found[self._path(name)]

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except (RemoteError, ValueError, FileNotFoundError, AttributeError, NameError, TypeError, AssertionError):
            raise  # the caller's to handle, or a bug
        except Exception as error:  # boto and its kin have many, for what is one fact here
            words = str(error).strip().splitlines() or [type(error).__name__]
            raise RemoteError(f"{self.uri}/{name}: {type(error).__name__}: {words[0][:200]}") from error


def _written(info: dict[str, Any]) -> datetime:
    stamp = info.get("LastModified") or info.get("updated") or info.get("created") or info.get("mtime")
    if isinstance(stamp, str):
        return datetime.fromisoformat(stamp)
    assert isinstance(stamp, datetime), info
    return stamp


def check_access(place: RemotePlace) -> None:
    """Write, write exclusively, list and delete a small object, which is removed whatever fails.

    Raises:
        UserError: one of these fails; the message says which and what to do.
    """
    name = f".writable-{uuid.uuid4().hex[:8]}"
    gone = False
    try:
        if not place.write(name, b"1", exclusive=True) or place.write(name, b"2", exclusive=True):
            raise UserError(f"{place.uri} does not honour conditional writes (If-None-Match); results need them")
        if name not in place.names(name) or place.read(name) != b"1":
            raise UserError(f"{place.uri} does not list or return what was just written there")
        place.delete(name)
        gone = True
    except OSError as error:
        raise UserError(
            f"results {place.uri} can't be used: {error}. Check the bucket's name, and the credentials in the "
            f"environment (for a server of your own also AWS_ENDPOINT_URL)"
        ) from error
    finally:
        if not gone:
            with suppress(OSError):
                place.delete(name)
