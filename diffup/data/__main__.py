"""Make a benchmark of the files that you have, or check a data set.

    diffup data prepare pascal5i --root VOCdevkit/VOC2012
    diffup data verify coco20i --root coco
    diffup data verify birds/dataset.json

`import` makes a data set of annotations of labelme, CVAT and others (docs/import.md). `verify` writes nothing and lists
every bad file; its exit code is 1 if there is one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from diffup.data import prepare as preparing
from diffup.data.dataset import open_dataset, resolve_dataset, scan_dataset
from diffup.data.report import describe, words
from diffup.errors import UserError, command_line
from diffup.home import home
from diffup.usage import Parser

BAD_DATA, BAD_USAGE = 1, 2


def prepare(name: str, root: Path | None = None, lists: Path | None = None, out: Path | None = None) -> int:
    """Make a benchmark, or index the ``dataset.json`` at path `name`; print the report and return the exit code."""
    if name not in preparing.SOURCES:
        dataset = open_dataset(name)
        print(words(describe(dataset, {}, []), str(dataset.root), "where it came from"))
        return 0
    if root is None:
        raise UserError(f"prepare {name} needs --root, the folder of its files; docs/data.md says what it holds")
    out = (out or home() / "datasets" / name).absolute()
    _, report = preparing.prepare(name, root, out, lists=lists)
    print(words(report, str(out), preparing.SOURCES[name]))
    return 0


def verify(name: str, root: Path | None = None, lists: Path | None = None) -> int:
    """Print everything that is wrong with a data set and return the exit code; nothing is written."""
    if root is None:
        path = resolve_dataset(name)
        seen = scan_dataset(path)
    else:
        path = root
        with tempfile.TemporaryDirectory() as folder:  # what `prepare` would make, thrown away
            seen = preparing.problems(name, root, Path(folder) / name, lists=lists)
    for line in (*(f"note: {note}" for note in seen.notes), *seen.problems):
        print(line)
    if seen.problems:
        print(f"{path}: {len(seen.problems)} bad; repair or remove what is named above", file=sys.stderr)
        return BAD_DATA
    look = f", but look at the {len(seen.notes)} notes above" if seen.notes else ""
    print(f"{path}: every image and mask was read; nothing is wrong{look}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 0, 1 for bad files, 2 for anything else wrong with what was asked."""
    told = (__doc__ or "").replace("`", "")
    parser = Parser(prog="diffup data", description=told, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    commands.add_parser("import", help="make a data set of your annotations: diffup data import --help")
    for run, text in (
        (prepare, "make a benchmark from the files that you have"),
        (verify, "list every bad file; write nothing"),
    ):
        command = commands.add_parser(run.__name__, help=text)
        command.set_defaults(run=run)
        command.add_argument("name", help=f"{', '.join(preparing.SOURCES)}, or the path of a dataset.json")
        command.add_argument("--root", type=Path, metavar="DIR", help="where your files are")
        command.add_argument("--lists", type=Path, metavar="DIR", help="folder of FSS-1000's test.txt")
        if run is prepare:
            command.add_argument("--out", type=Path, metavar="DIR", help="default: $DIFFUP_HOME/datasets/NAME")
    options = vars(parser.parse_args(argv))
    if "run" not in options:
        parser.error("import is a part of the diffup command: diffup data import SOURCE OUT")
    try:
        return int(options.pop("run")(**options))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_USAGE


if __name__ == "__main__":
    sys.exit(command_line(main))
