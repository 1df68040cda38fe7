"""``python -m diffup.episodes --dataset NAME --fold F --shots K`` prints a manifest, or writes it to a file.

As JSON, ``[[query, [support, …], class], …]`` with 0-based classes, or as Parquet where the file's name ends so.
Papers can publish their episodes so, and `diffup.episodes.manifest.read_manifest` reads them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from diffup.data.dataset import open_dataset
from diffup.episodes.episode import Manifest
from diffup.episodes.manifest import PARQUET, listed_manifest, read_manifest, rows
from diffup.episodes.protocols import get_protocol
from diffup.episodes.sampling import make_manifest
from diffup.errors import UserError, command_line
from diffup.usage import Parser


def _named(args: argparse.Namespace) -> Manifest:
    protocol = get_protocol(args.protocol)
    if protocol.needs_lists(args.dataset):  # the images themselves need not exist
        number = protocol.episode_count(args.dataset) if args.episodes is None else args.episodes
        return listed_manifest(args.dataset, protocol, args.fold, args.shots, number, args.seed, args.lists)
    if args.lists is not None and not protocol.lists:
        raise UserError(f"protocol {protocol.name} follows from the annotations; --lists goes with hsnet")
    dataset = open_dataset(args.dataset)
    number = protocol.episode_count(dataset.name) if args.episodes is None else args.episodes
    return make_manifest(dataset, protocol, args.fold, args.shots, number, args.seed, lists=args.lists)


def _replaceable(path: Path, manifest: Manifest) -> None:
    """Make sure that a file that is there is a manifest, too.

    Raises:
        UserError: it is something else.
    """
    try:
        read_manifest(path, dataset=manifest.dataset, protocol=manifest.protocol, fold=manifest.fold)
    except UserError as error:
        raise UserError(f"--out {path} is there and would be lost: {error}; choose another --out") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Print or write a manifest; returns the exit code, 2 for anything wrong with what was asked."""
    parser = Parser(prog="diffup episodes", description="Print or write a manifest.")
    parser.add_argument("--dataset", required=True, help="pascal5i, coco20i, shapes4i or a dataset.json")
    parser.add_argument("--protocol", default="paired", help="one of `diffup protocols list`")
    parser.add_argument("--fold", type=int, required=True)
    parser.add_argument("--shots", type=int, required=True)
    parser.add_argument("--episodes", type=int, default=None, help="default: as many as the protocol has")
    parser.add_argument("--seed", type=int, default=0, help="episode seed; default: 0")
    parser.add_argument("--lists", type=Path, default=None, metavar="DIR", help="HSNet's 'splits' folder")
    parser.add_argument(
        "--format", choices=("json", "parquet"), default=None, help="default: by --out's name, else json"
    )
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="default: standard output, JSON only")
    args = parser.parse_args(argv)
    suffix = "parquet" if args.out is not None and args.out.suffix == PARQUET else "json"
    form = args.format or suffix
    try:
        if form == "parquet" and args.out is None:
            raise UserError("a Parquet manifest needs --out FILE")
        manifest = _named(args)
        if args.out is not None and args.out.exists():
            _replaceable(args.out, manifest)
        text = json.dumps(rows(manifest), ensure_ascii=False)
        if args.out is None:
            print(text)
        elif form == "parquet":
            manifest.write(args.out)
        else:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(text + "\n", encoding="utf-8")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(command_line(main))
