"""``python -m diffup.data prepare NAME --root DIR`` makes a benchmark of the user's files, ``verify`` only looks.

    python -m diffup.data prepare pascal5i --root VOCdevkit/VOC2012
    python -m diffup.data verify coco20i --root coco
    python -m diffup.data verify birds/dataset.json

``verify`` writes nothing and lists every bad file; its exit code is 1 if there is one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from diffup.data import prepare as preparing
from diffup.data.dataset import diffup_home, open_dataset, resolve_dataset, scan_dataset
from diffup.data.report import describe, words
from diffup.errors import UserError, command_line

BAD_DATA, BAD_USAGE = 1, 2


def prepare(args: argparse.Namespace) -> int:
    """Make a benchmark, or index a ``dataset.json``; print the report."""
    if args.name not in preparing.SOURCES:
        dataset = open_dataset(args.name)
        print(words(describe(dataset, {}, []), str(dataset.root), "where it came from"))
        return 0
    if args.root is None:
        raise UserError(f"prepare {args.name} needs --root, the folder of its files; docs/data.md says what it holds")
    out = (args.out or diffup_home() / "datasets" / args.name).absolute()
    _, report = preparing.prepare(args.name, args.root, out, lists=args.lists)
    print(words(report, str(out), preparing.SOURCES[args.name]))
    return 0


def verify(args: argparse.Namespace) -> int:
    """Say what is wrong with a data set, all of it."""
    if args.root is None:
        path = resolve_dataset(args.name)
        seen = scan_dataset(path)
    else:
        path = args.root
        with tempfile.TemporaryDirectory() as folder:  # what `prepare` would make, thrown away
            seen = preparing.problems(args.name, args.root, Path(folder) / args.name, lists=args.lists)
    for note in seen.notes:
        print(f"note: {note}")
    for problem in seen.problems:
        print(problem)
    if seen.problems:
        print(f"{path}: {len(seen.problems)} bad; repair or remove what is named above", file=sys.stderr)
        return BAD_DATA
    look = f", but look at the {len(seen.notes)} notes above" if seen.notes else ""
    print(f"{path}: every image and mask was read; nothing is wrong{look}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 0, 1 for bad files, 2 for anything else wrong with what was asked."""
    parser = argparse.ArgumentParser(
        prog="python -m diffup.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function, text in (
        ("prepare", prepare, "make a benchmark from the files that you have"),
        ("verify", verify, "list every bad file; write nothing"),
    ):
        command = commands.add_parser(name, help=text)
        command.set_defaults(run=function)
        command.add_argument("name", help=f"{', '.join(preparing.SOURCES)}, or the path of a dataset.json")
        command.add_argument("--root", type=Path, default=None, metavar="DIR", help="where your files are")
        command.add_argument("--lists", type=Path, default=None, metavar="DIR", help="folder of FSS-1000's test.txt")
        if name == "prepare":
            command.add_argument(
                "--out", type=Path, default=None, metavar="DIR", help="default: $DIFFUP_HOME/datasets/NAME"
            )
    args = parser.parse_args(argv)
    try:
        return int(args.run(args))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_USAGE


if __name__ == "__main__":
    sys.exit(command_line(main))
