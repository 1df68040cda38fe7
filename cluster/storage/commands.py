"""The subcommands ``sync`` and ``cache`` of ``python -m cluster``, each from its arguments to an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.storage.backend import ObjectStore, is_uri, open_backend
from cluster.storage.layout import IDENTITY, LAUNCHES, WEIGHTS
from cluster.storage.results import Store
from cluster.storage.sizes import format_size, parse_size
from cluster.storage.sync import Sync
from diffup.errors import UserError
from diffup.usage import Parser


def sync(argv: Sequence[str]) -> int:
    """Download results from an object store, or upload them to one."""
    parser = Parser(prog="diffup sync", description=sync.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, arguments in (("pull", ("uri", "folder")), ("push", ("folder", "uri"))):
        command = commands.add_parser(name)
        for each in arguments:
            if each == "uri":
                command.add_argument("uri", metavar="URI", help="of the results: s3://bucket/prefix, gs://…")
            else:
                command.add_argument("folder", metavar="DIR", type=Path, help="a results directory of this machine")
    args = parser.parse_args(argv)
    store, copy = Store(args.folder.absolute()), Sync(args.folder.absolute(), ObjectStore(args.uri).uri)
    return _pull(store, copy) if args.command == "pull" else _push(store, copy)


def _pull(store: Store, copy: Sync) -> int:
    count = copy.pull()
    for key in store.cell_keys():
        if store.read_cell(key).get("kind") == "train":
            copy.fetch_checkpoint(key)
    print(f"{count} files downloaded to {store.root}")
    return 0


def _push(store: Store, copy: Sync) -> int:
    records = [store.read(key) for key in store.cell_keys()]
    finished = [record.key for record in records if record.status == "finished"]
    damaged = [record.why for record in records if record.status == "damaged"]
    done = sum(copy.push(key) for key in finished)
    for folder in (LAUNCHES, WEIGHTS):
        copy.upload(*(f"{folder}/{path.name}" for path in sorted((store.root / folder).glob("*.json"))))
    if (store.root / IDENTITY).is_file():
        copy.backend.write(IDENTITY, (store.root / IDENTITY).read_bytes(), exclusive=True)
    print(f"{done} of {len(finished)} finished cells uploaded, the others were there")
    if damaged:
        print(f"warning: {len(damaged)} damaged results were left out: {damaged[0]}", file=sys.stderr)
    return 1 if damaged else 0


def cache(argv: Sequence[str]) -> int:
    """List, clean or check the feature cache. Deleting from it loses nothing but time."""
    parser = Parser(prog="diffup cache", description=cache.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (
        ("list", "folders of shards, their sizes, and when they were last used"),
        ("clean", "delete the least recently used folders"),
        ("check", "read every shard and remove the damaged ones"),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("root", metavar="DIR", help="'features' in a results directory, or in s3://bucket/results")
        if name == "clean":
            command.add_argument("--limit", metavar="SIZE", help="keep at most this much (50GB)")
            command.add_argument("--older-than", type=float, metavar="DAYS", help="not used for so long")
    args = parser.parse_args(argv)
    if not is_uri(args.root) and not Path(args.root).is_dir():
        raise UserError(f"{args.root} is no folder")
    from cluster.storage import feature_cache  # it loads torch, which --help needs not

    backend = open_backend(args.root)
    if args.command == "clean":
        if args.limit is None and args.older_than is None:
            raise UserError("say what to delete: --limit SIZE or --older-than DAYS")
        limit = None if args.limit is None else parse_size(args.limit)
        idle = None if args.older_than is None else 86400 * args.older_than
        gone = feature_cache.clean(backend, limit_bytes=limit, older_than=idle)
        for each in gone:
            print(f"deleted {each.name}: {format_size(each.bytes)}")
        left = sum(each.bytes for each in feature_cache.listed(backend))
        print(f"{format_size(sum(each.bytes for each in gone))} freed, {format_size(left)} left")
        return 0
    if args.command == "check" and is_uri(args.root):
        raise UserError("only a machine's own folder can be checked; every row that is read is checked then")
    there = feature_cache.listed(backend)
    for each in there:
        if args.command == "check":
            count = feature_cache.check(Path(args.root), each.name)
            print(f"{each.name}: {each.rows} rows, {count} damaged shards removed")
        else:
            idle = each.idle / 86400
            print(f"{each.name}  {each.rows} rows  {format_size(each.bytes)}  used {idle:.1f} days ago")
    if args.command == "list":
        print(f"{format_size(sum(each.bytes for each in there))} in all; the least recently used first")
    return 0
