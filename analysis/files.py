"""Files of the analysis: a table in every format, and output folders without files of earlier calls."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from analysis.tables.html import to_html
from analysis.tables.latex import to_latex
from analysis.tables.table import Table, to_csv, to_markdown
from diffup.errors import UserError

LOG = logging.getLogger(__name__)
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

    `WRITTEN` names what was written, with hashes: files of other origin, or edited since, stay; one whose name is
    needed is renamed to ``NAME.kept.SUFFIX``, with a warning. It is written before them too, with the hashes of before,
    so that what a killed process wrote is known. See `writing_to` for errors.
    """
    with writing_to(out):
        before = _written(out)
        encoded = {name: text.encode() if isinstance(text, str) else text for name, text in contents.items()}
        hashes = {name: {_hash(content)} for name, content in encoded.items()}
        both = {name: before.get(name, set()) | hashes.get(name, set()) for name in (*before, *hashes)}
        _note(out, both)
        for name in both:
            path = out / name
            ours = path.is_file() and _hash(path.read_bytes()) in both[name]
            if ours and name not in hashes:
                path.unlink()
            elif path.is_file() and not ours and name in hashes:
                LOG.warning("%s was not written by this command, or edited since: it is now %s", path, _keep(path).name)
        paths = write_files(out, encoded)
        _note(out, hashes)
    return [*paths, out / WRITTEN]


def _keep(path: Path) -> Path:
    """Rename a file to the first free name."""
    names = (path.with_name(f"{path.stem}.kept{number}{path.suffix}") for number in ("", *range(2, 10**6)))
    kept = next(name for name in names if not name.exists())
    return path.rename(kept)


def add_file(path: Path) -> None:
    """Add a file in a folder of `replace_files` to those that it wrote."""
    with writing_to(path.parent):
        _note(path.parent, {**_written(path.parent), path.name: {_hash(path.read_bytes())}})


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _written(out: Path) -> dict[str, set[str]]:
    """Hashes that a file may have, by name."""
    try:
        files = json.loads((out / WRITTEN).read_bytes())["files"]
        return {str(name): set(str(hashes).split()) for name, hashes in files.items() if Path(name).name == name}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _note(out: Path, files: Mapping[str, set[str]]) -> None:
    document = {"files": {name: " ".join(sorted(hashes)) for name, hashes in files.items()}}
    (out / WRITTEN).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
