"""From a result store to files: the command line that ``paper``, ``quality``, ``study`` and ``spread`` share."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from analysis.results import Results, launch_keys, load_results, only
from analysis.stats import RESAMPLES
from analysis.tables.html import to_html
from analysis.tables.latex import to_latex
from analysis.tables.table import Table, to_csv, to_markdown
from diffup.errors import UserError

SHOWN = 10  # warnings
WRITTEN = "files.json"
RENDERERS: dict[str, Callable[[Table], str]] = {"tex": to_latex, "md": to_markdown, "html": to_html, "csv": to_csv}


class Write(Protocol):
    """Writes files made from a result store.

    Args:
        results: the result store.
        out: folder for the files, made if need be.
        keys: only these cells, e.g. those of one grid; None: all in the store.
        resamples: of the bootstrap.

    Returns:
        the files written.

    Raises:
        UserError: there is no such store, nothing in it to write, or `out` can't be written.
    """

    def __call__(
        self, results: Path, out: Path, *, keys: Iterable[str] | None = None, resamples: int = RESAMPLES
    ) -> list[Path]: ...


def load(results: Path, keys: Iterable[str] | None) -> Results:
    """A store, or only the cells `keys` of it; errors of `analysis.results.load_results` pass through."""
    store = load_results(results)
    return store if keys is None else only(store, keys)


def warn(warnings: Sequence[str]) -> None:
    """Print warnings to stderr, the first few of many."""
    for warning in warnings[:SHOWN]:
        print(f"warning: {warning}", file=sys.stderr)
    if len(warnings) > SHOWN:
        print(f"warning: … and {len(warnings) - SHOWN} more", file=sys.stderr)


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """Makes the folder `out`; an OSError while files are written to it becomes a UserError that names it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"can't write tables to {out} ({error.strerror or error}); choose another --out") from error


def write_texts(out: Path, texts: dict[str, str]) -> list[Path]:
    """Write texts by file name; see `writing_to`."""
    with writing_to(out):
        for name, text in texts.items():
            (out / name).write_text(text, encoding="utf-8")
    return [out / name for name in texts]


def replace_files(out: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """Write files by name, and remove those that the last call wrote to the folder and that are not among them.

    `WRITTEN` names what was written, with hashes: files of other origin, or edited since, stay. It is written before
    them too, so that what a killed process wrote is known. See `writing_to` for errors.
    """
    with writing_to(out):
        before = _written(out)
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        _note(out, {**before, **hashes})
        for name in before.keys() - hashes.keys():
            path = out / name
            if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == before[name]:
                path.unlink()
        for name, content in contents.items():
            (out / name).write_bytes(content)
        _note(out, hashes)
    return [*(out / name for name in contents), out / WRITTEN]


def add_file(path: Path) -> None:
    """Count a file in a folder of `replace_files` among those that it wrote."""
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


def texts_of(table: Table) -> dict[str, str]:
    """A table in every format, by file name."""
    return {f"{table.name}.{suffix}": render(table) for suffix, render in RENDERERS.items()}


def command(module: str, description: str, write: Write, arguments: Sequence[str] | None) -> int:
    """Run ``python -m MODULE --results DIR --out DIR``; returns 0, or 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--results", type=Path, required=True, metavar="DIR", help="what a grid script wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the files go")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, metavar="N", help="of the bootstrap (%(default)s)")
    parser.add_argument("--launch", metavar="NAME", help="only the cells of DIR/launches/NAME.json (all cells)")
    options = parser.parse_args(arguments)
    try:
        if options.resamples < 1:
            raise UserError(f"--resamples must be 1 or more, not {options.resamples}")
        keys = launch_keys(options.results, options.launch) if options.launch else None
        paths = write(options.results, options.out, keys=keys, resamples=options.resamples)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in paths:
        print(path)
    return 0
