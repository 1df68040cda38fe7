"""What ``diffup predict`` writes: names that stay the same, what is finished, and what must not be overwritten.

A folder holds the results of one request. Its ``request.json`` says which, and which query each name belongs to; it is
written before the first result, so that a run that was stopped can be continued.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffup.commands.predict_inputs import Query
from diffup.errors import UserError
from diffup.files import write_in_full
from diffup.result import saved_files

REQUEST = "request.json"
DIGITS = 12  # of a hash in a file
SHORT = 6  # of one in a name
FORMAT = 1
# Entries of a request that hold checksums, in words.
HASHED = {"checkpoint": "checkpoint", "encoder": "weights", "supports": "supports", "bank": "bank"}


@dataclass(frozen=True)
class Output:
    """Where a query's results go.

    Attributes:
        query: the picture.
        files: mask, overlay and json.
    """

    query: Query
    files: Mapping[str, Path]

    def finished(self, key: str, checksum: str) -> dict[str, Any] | None:
        """The JSON, if all files are there and were made by request `key` of a picture with `checksum`."""
        document = read_json(self.files["json"])
        same = document is not None and (document.get("request_key"), document.get("query_sha256")) == (key, checksum)
        return document if same and all(path.is_file() for path in self.files.values()) else None


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is none, or a damaged one."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def checksum(content: bytes) -> str:
    """First hex digits of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def key_of(request: Mapping[str, Any]) -> str:
    """What identifies a request: equal requests give equal results."""
    return checksum(json.dumps(request, sort_keys=True).encode())


def claim(
    out: Path, queries: Sequence[Query], request: Mapping[str, Any], inputs: Sequence[Path], overwrite: bool
) -> list[Output]:
    """Take the folder for this request; nothing else has been written when it fails.

    Args:
        out: the folder, made where it is missing.
        queries: whose results go there; those that are results themselves are left out.
        request: all that decides a result beside the query.
        inputs: files that are read and never written to.
        overwrite: take it although it holds results of another request, or files of other origin.

    Raises:
        UserError: it holds something else and `overwrite` is off, an output would replace an input, or it can't be
            written.
    """
    held = read_json(out / REQUEST) or {}
    if held.get("format") != FORMAT or not isinstance(held.get("outputs"), dict):
        if (out / REQUEST).exists() and not overwrite:
            raise UserError(f"{out / REQUEST} was not made by diffup predict; choose another -o, or --overwrite")
        held = {}
    owners = {str(name): str(query) for name, query in held.get("outputs", {}).items()}
    before = held.get("request")
    if before is not None and before != request and not overwrite:
        raise UserError(
            f"{out} holds results of another request ({_difference(before, request)}); choose another -o, or pass "
            f"--overwrite to make them again"
        )
    made = {path for name in owners for path in saved_files(out.resolve(), name).values()}
    queries = [query for query in queries if query.path.resolve() not in made]  # a folder's, on the next call
    outputs = [Output(query, saved_files(out, name)) for query, name in _named(queries, owners, out)]
    read = {path.resolve() for path in (*inputs, *(query.path for query in queries))}
    for output in outputs:
        name = _name_of(output, out)
        for path in output.files.values():
            if path.resolve() in read:
                raise UserError(
                    f"{path} is one of the files that are read, and would be overwritten; choose another -o"
                )
            if path.exists() and name not in owners and not overwrite:
                raise UserError(f"{path} was not made by diffup predict; choose another -o, or --overwrite")
    owners |= {_name_of(output, out): _owner(output.query.path.resolve(), out.resolve()) for output in outputs}
    document = {"format": FORMAT, "request": request, "outputs": dict(sorted(owners.items()))}
    try:
        write_in_full(out / REQUEST, json.dumps(document, indent=1).encode() + b"\n")
    except OSError as error:
        raise UserError(f"{out} can't be written ({error}); choose another -o or make room") from error
    return outputs


def _owner(query: Path, out: Path) -> str:
    """A query's path, relative to the results if it is beside or below them: a folder that holds both may be moved."""
    near = query.is_relative_to(out.parent)
    return os.path.relpath(query, out) if near else str(query)


def _named(queries: Sequence[Query], owners: Mapping[str, str], out: Path) -> list[tuple[Query, str]]:
    """A name for each query: its own, or with a few digits of its path's hash where another query has that one."""
    names = {str((out / query).resolve()): name for name, query in owners.items()}
    taken = {name.casefold() for name in owners} | {Path(REQUEST).stem}
    named = []
    for query in queries:
        path = str(query.path.resolve())
        name = names.get(path, query.name)
        if path not in names and name.casefold() in taken:
            name = f"{name}-{hashlib.sha256(path.encode(errors='surrogateescape')).hexdigest()[:SHORT]}"
        taken.add(name.casefold())
        named.append((query, name))
    return named


def _name_of(output: Output, out: Path) -> str:
    return output.files["json"].relative_to(out).with_suffix("").as_posix()


def _difference(before: Any, now: Mapping[str, Any]) -> str:
    """In which entries two requests differ, in words; those that are checksums are named alone."""
    if not isinstance(before, dict):
        return "in an unknown format"
    parts = []
    for name in (name for name in now if before.get(name) != now[name]):
        one, two = (_brief(name, each.get(name)) for each in (before, now))
        parts.append(f"other {HASHED[name]}" if name in HASHED and one == two else f"{name} {one} → {two}")
    return "; ".join(parts) or "of another version"


def _brief(name: str, value: Any) -> str:
    """An entry of a request without its checksums."""
    if name == "supports" and isinstance(value, list):
        value = [str(each).partition(" ")[0] for each in value]
    elif name in HASHED:
        return str(value).partition(" [")[0] if name == "encoder" else ""
    return f"[{', '.join(f'{each!s:.60}' for each in value)}]" if isinstance(value, list) else f"{value!s:.60}"
