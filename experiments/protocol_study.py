"""What a protocol alone does to a figure: one checkpoint a fold, evaluated under several protocols.

    python experiments/protocol_study.py --dataset DIR/dataset.json --weights-dir DIR --results DIR
    python -m analysis spread --results DIR --out DIR

With the defaults, a fold: 1 training cell (under ``paired``), and for each protocol its own number of episodes and all
of its episode seeds: 1 and 5 masks, DiffUp and the prior mean, tested on the backbone of the training. On a data set of
the user's own that is 1000 episodes each, 52 evaluation cells a fold. ``hsnet`` needs ``--lists`` on the benchmarks.
The table says for each protocol what it gives, and how far that is from ``paired``; for protocols with several seeds
also what the best of them gives, which some papers report.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster import cli
from diffup.errors import UserError, command_line
from diffup.grid.axes import PRIOR_MEAN, Backbone, evaluation_cells, named_backbone, tasks, training_cell
from diffup.grid.cell import AnyCell
from diffup.grid.datasets import Data, open_data
from diffup.training import recipes

NAME = "protocol_study"
PROTOCOLS = ("paired", "hsnet", "pfenet", "bam", "panet")
SHOTS = (1, 5)
BACKBONE = "resnet50"
RECIPES = {"pascal5i": recipes.pascal5i, "coco20i": recipes.coco20i}
OTHER = recipes.msrc15


def grid(
    data: Sequence[Data], backbone: Backbone, *, folds: Sequence[int], episodes: int = 0, seed: int = 0
) -> list[AnyCell]:
    """One training cell a fold under the first protocol, evaluated under all of them.

    Args:
        data: the same data set under each protocol.
        backbone: of training and tests.
        folds: which.
        episodes: per evaluation cell; 0: as many as the protocol has.
        seed: of training.
    """
    from diffup.episodes.protocols import get_protocol

    recipe = RECIPES.get(data[0].name, OTHER)()
    cells: list[AnyCell] = []
    for fold in folds:
        trained = training_cell(
            data[0], fold, backbone, config=recipe.input, model=recipe.model, train=recipe.train, seed=seed
        )
        cells.append(trained)
        for part in data:
            protocol = get_protocol(part.protocol)
            number = episodes or protocol.episode_count(part.name)
            for episode_seed in protocol.seeds:
                for what in ({"trained": trained}, {"sample": PRIOR_MEAN}):
                    cells += evaluation_cells(
                        part, fold, [backbone], tasks(SHOTS, ("mask",)), config=recipe.input, episodes=number,
                        episode_seed=episode_seed, **what,
                    )  # fmt: skip
    return cells


def options() -> argparse.ArgumentParser:
    """The script's command line."""
    made = cli.parser(NAME, __doc__ or "", episodes=None)
    cli.add_data(made)
    made.add_argument("--protocols", type=cli.names, default=PROTOCOLS, metavar="A,B,…", help="the first one trains")
    made.add_argument("--lists", type=cli.folder, default=None, metavar="DIR", help="HSNet's 'splits', for hsnet")
    made.add_argument("--backbone", default=BACKBONE, metavar="NAME")
    made.add_argument("--folds", type=cli.numbers, default=None, metavar="0,1,…", help="default: all")
    return made


def build(args: argparse.Namespace) -> tuple[list[AnyCell], dict[str, Path]]:
    """Check data set, protocols and backbone, and describe the grid.

    Raises:
        UserError: an unknown protocol or backbone, a damaged data set, missing lists, no such fold.
    """
    from diffup.data.dataset import open_dataset, resolve_dataset

    path = resolve_dataset(args.dataset)
    dataset = open_dataset(path)
    how = {"shots": max(SHOTS), "lists": args.lists, "dataset": dataset}
    data = [open_data(path, protocol=name, **how) for name in dict.fromkeys(args.protocols)]
    folds = range(data[0].folds) if args.folds is None else args.folds
    if absent := [fold for fold in folds if fold not in range(data[0].folds)]:
        raise UserError(f"--folds: {data[0].name} has folds 0 to {data[0].folds - 1}, not {absent[0]}")
    backbone = named_backbone(args.backbone, weights_dir=args.weights_dir)
    cells = grid(data, backbone, folds=folds, episodes=args.episodes or 0, seed=args.seed)
    return cells, {name: path for part in data for name, path in part.files().items()}


def report(results: Path, keys: list[str]) -> None:
    """Write and print the table of the protocols."""
    from analysis.tables.protocol_spread import spread_tables
    from analysis.tables.table import to_markdown

    for table in spread_tables(results, keys=keys):
        print(f"\n{to_markdown(table)}")
    print(f"results  {results}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the grid; returns the exit code."""
    return cli.script(NAME, options(), build, argv, report)


if __name__ == "__main__":
    sys.exit(command_line(main))
