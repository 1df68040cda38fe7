"""Files of the analysis: a table in every format, and output folders without files of earlier calls."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from analysis.tables.html import to_html
from analysis.tables.latex import to_latex
from analysis.tables.table import Table, to_csv, to_markdown
from diffup.errors import UserError

WRITTEN = "files.json"
RENDERERS: dict[str, Callable[[Table], str]] = {"tex": to_latex, "md": to_markdown, "html": to_html, "csv": to_csv}


def texts_of(table: Table) -> dict[str, str]:
    """A table in every format, by file name."""
    return {f"{table.name}.{suffix}": render(table) for suffix, render in RENDERERS.items()}


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """Make the folder `out`; an OSError while files are written to it becomes a UserError that names it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"can't write tables to {out} ({error.strerror or error}); choose another --out") from error


def write_files(out: Path, contents: Mapping[str, str | bytes]) -> list[Path]:
    """Write files by name; see `writing_to` for errors."""
    with writing_to(out):
        for name, content in contents.items():
            (out / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return [out / name for name in contents]


def replace_files(out: Path, contents: Mapping[str, str | bytes]) -> list[Path]:
    """Write files by name, and remove those that the last call wrote to the folder and that are not among them.

    `WRITTEN` names what was written, with hashes: files of other origin, or edited since, stay. It is written before
    them too, so that what a killed process wrote is known. See `writing_to` for errors.
    """
    with writing_to(out):
        before = _written(out)
        encoded = {name: text.encode() if isinstance(text, str) else text for name, text in contents.items()}
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in encoded.items()}
        _note(out, {**before, **hashes})
        for name in before.keys() - hashes.keys():
            path = out / name
            if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == before[name]:
                path.unlink()
        paths = write_files(out, encoded)
        _note(out, hashes)
    return [*paths, out / WRITTEN]


def add_file(path: Path) -> None:
    """Add a file in a folder of `replace_files` to those that it wrote."""
    with writing_to(path.parent):
        _note(path.parent, {**_written(path.parent), path.name: hashlib.sha256(path.read_bytes()).hexdigest()})


def _written(out: Path) -> dict[str, str]:
    try:
        files = json.loads((out / WRITTEN).read_bytes())["files"]
        return {str(name): str(sha256) for name, sha256 in files.items() if Path(name).name == name}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _note(out: Path, files: dict[str, str]) -> None:
    (out / WRITTEN).write_text(json.dumps({"files": files}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
