"""Options that every command of the analysis takes, and warnings."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.results import launch_keys
from diffup.errors import UserError
from diffup.evaluation.stats import RESAMPLES
from diffup.usage import Parser

SHOWN = 10  # warnings
DIFFUP = ("paper", "report")


def warn(warnings: Sequence[str]) -> None:
    """Print warnings to stderr, the first few of many."""
    for warning in warnings[:SHOWN]:
        print(f"warning: {warning}", file=sys.stderr)
    if len(warnings) > SHOWN:
        print(f"warning: … and {len(warnings) - SHOWN} more", file=sys.stderr)


def parser(name: str, description: str, out: str = "DIR") -> argparse.ArgumentParser:
    """The command line of ``python -m analysis NAME --results DIR --out …``; `DIFFUP` are commands of diffup, too."""
    made = Parser(prog=f"{'diffup' if name in DIFFUP else 'python -m analysis'} {name}", description=description)
    made.add_argument("--results", type=Path, required=True, metavar="DIR", help="the results of a grid")
    made.add_argument("--out", type=Path, required=True, metavar=out, help="where to write")
    made.add_argument("--resamples", type=int, default=RESAMPLES, metavar="N", help="bootstrap resamples (%(default)s)")
    made.add_argument("--launch", metavar="NAME", help="only the cells of DIR/launches/NAME.json (default: all cells)")
    return made


def run(options: argparse.Namespace, write: Callable[..., list[Path]]) -> int:
    """Call ``write(results, out, keys=…, resamples=…)`` and print the files; returns 0, or 2 for a `UserError`.

    Files of one name and several formats are a line.
    """
    try:
        if options.resamples < 1:
            raise UserError(f"--resamples must be 1 or more, not {options.resamples}")
        keys = launch_keys(options.results, options.launch) if options.launch else None
        written = write(options.results, options.out, keys=keys, resamples=options.resamples)
        formats: dict[Path, list[str]] = {}
        for path in sorted(written):
            formats.setdefault(path.with_suffix(""), []).append(path.suffix)
        width = max(len(str(path)) for path in formats) + 2
        print(*(f"{path!s:{width}}{' '.join(kinds)}" for path, kinds in formats.items()), sep="\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
