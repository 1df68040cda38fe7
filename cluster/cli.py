"""Studies and their command line: a `Study` is a value; `run` builds its cells, launches them and prints tables.

Exit codes: 0 all cells finished, 1 some failed, 2 bad input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

from cluster.closing import failures, trained_models
from cluster.launch import SOME_FAILED, launch, open_results
from cluster.options import CountOrNone, Folder, Name, NumbersOrNone, Options, PathOrName, Seconds, Work, parse
from cluster.planning.forecast import steps_within
from cluster.planning.rates import read_rates
from cluster.storage.results import Store
from cluster.tracking.view import how_to_open
from diffup.errors import UserError, command_line
from diffup.grid.axes import Backbone, named_backbone, select, unique, with_steps
from diffup.grid.cell import AnyCell, Cell, TrainingCell
from diffup.grid.datasets import Data, open_data

Report = Callable[[Path, list[str]], None]  # prints tables of cells, by keys, from the results
Launch = Callable[..., int]  # brings cells to completion, with the arguments and the result of `cluster.launch.launch`
Grid = tuple[list[AnyCell], dict[str, Path]]  # cells, and the files that they read (`diffup.grid.datasets.Data.files`)


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """What the command line of every study asks; a study's own class adds to it, or has other defaults."""

    episodes: CountOrNone = None
    """per cell"""
    seed: int = 0
    """of training; the episodes stay the same"""
    steps: CountOrNone = None
    """of each training (default: the recipe's)"""
    time_budget: Seconds = None
    """of each training: as many steps as fit by --rates, at most those of the recipe or of --steps"""
    run: tyro.conf.OmitArgPrefixes[Options] = field(default_factory=Options)

    def find_backbones(self, names: Iterable[str], *, check: bool = True) -> dict[str, Backbone]:
        """Backbones by name, with local weights where there are some (`diffup.grid.axes.named_backbone`)."""
        local = self.run.weights_dir
        return {name: named_backbone(name, weights_dir=local, check=check) for name in dict.fromkeys(names)}

    def paced(self, cells: Sequence[AnyCell]) -> list[AnyCell]:
        """The cells, with trainings of the steps that are asked for, or of those that there is time for.

        Raises:
            UserError: nothing is trained, or there isn't time for a step.
        """
        if self.steps is None and self.time_budget is None:
            return list(cells)
        if not any(isinstance(cell, TrainingCell) for cell in cells):
            raise UserError("--steps, --time-budget: nothing is trained here")
        if (steps := self.steps) is not None:
            cells = with_steps(cells, lambda cell: steps)
        if (seconds := self.time_budget) is not None:
            rates = read_rates(self.run.rates)
            cells = with_steps(cells, lambda cell: steps_within(cell, seconds, rates))
        return list(cells)


@dataclass(frozen=True, kw_only=True)
class SeedsOptions(GridOptions):
    """Of studies with several training seeds."""

    seeds: NumbersOrNone = None
    """training seeds; overrides --seed"""

    @property
    def training_seeds(self) -> tuple[int, ...]:
        """`seeds`, else `seed`."""
        return self.seeds or (self.seed,)


@dataclass(frozen=True, kw_only=True)
class DatasetOptions(GridOptions):
    """Of studies on one data set."""

    dataset: PathOrName
    """a dataset.json, or a known name"""


WHERE = tyro.conf.create_mutex_group(required=True, title="data set")


@dataclass(frozen=True, kw_only=True)
class EmbeddedOptions(GridOptions):
    """Of studies that train by a recipe, on one data set or on what is shipped."""

    dataset: Annotated[PathOrName, WHERE] = ""
    """a dataset.json, or a known name"""
    embedded: Annotated[bool, WHERE] = False
    """shapes4i and embedded backbones, which are shipped"""

    def open(self, shots: int) -> Data:
        """The data set; see `diffup.grid.datasets.open_data`."""
        return open_data(self.dataset or "shapes4i", shots=shots)


@dataclass(frozen=True, kw_only=True)
class ProtocolOptions(GridOptions):
    """Of studies under any protocol, which has a number of episodes of its own."""

    protocol: Name = "paired"
    """see diffup protocols list"""
    lists: Folder = None
    """HSNet's splits, for hsnet"""
    manifests: Folder = None
    """of episodes: fold{F}_shots{K}.json or .parquet"""

    def open(self, path: str | Path, shots: int) -> Data:
        """A data set under the protocol; see `diffup.grid.datasets.open_data`."""
        return open_data(path, shots=shots, protocol=self.protocol, lists=self.lists, manifests=self.manifests)

    def episodes_of(self, dataset: str, default: int) -> int:
        """Episodes per cell: as asked, else `default`, or what a protocol other than paired has."""
        from diffup.episodes.protocols import get_protocol

        if self.episodes is not None:
            return self.episodes
        return default if self.protocol == "paired" else get_protocol(self.protocol).episode_count(dataset)


Asked = TypeVar("Asked", bound=GridOptions)


@dataclass(frozen=True, kw_only=True)
class Study(Generic[Asked]):
    """A grid that answers a question.

    Attributes:
        name: of the script, of the default results folder and of the MLflow experiment.
        description: what it asks, the command, the cost, what to expect: the text of ``--help``.
        options: dataclass of its command line.
        build: its cells from these options; raises a `UserError` for what can't be used.
        report: prints tables when the launch has ended; None: nothing.
        work: what a worker does with a cell; None: `cluster.execution.run_cell`.
        launch: what brings the cells to completion; None: `cluster.launch.launch`.
    """

    name: str
    description: str | None
    options: type[Asked]
    build: Callable[[Asked], Grid]
    report: Report | None = None
    work: Work | None = None
    launch: Launch | None = None

    def parse(self, argv: Sequence[str] | None = None) -> Asked:
        """Options from a command line; a usage error exits with 2."""
        return parse(self.options, argv, prog=f"diffup run {self.name}", description=self.description or "")

    def grid(self, asked: Asked) -> Grid:
        """The cells that a command line asks for, and the files that they read; see `build` and `GridOptions.paced`."""
        cells, files = self.build(asked)
        return asked.paced(cells), files


def run(study: Study[Any], argv: Sequence[str] | None = None) -> int:
    """Run a study from its command line; returns the exit code."""
    return command_line(lambda: run_study(study, study.parse(argv)))


def run_study(study: Study[Asked], asked: Asked) -> int:
    """Build a study's cells, launch them and print its tables; returns the exit code.

    Raises:
        UserError: a user's mistake.
    """
    options = asked.run
    store = open_results(options, study.name)
    try:
        cells, files = study.grid(asked)
        code = (study.launch or launch)(study.name, cells, options, store=store, datasets=files, work=study.work)
    except OSError as error:  # such as a full disk
        what = str(error) if error.filename is not None else f"{store.remote or store.root}: {error}"
        print(f"error: {what}; finished cells are kept, re-run to resume", file=sys.stderr)
        return SOME_FAILED
    if options.dry_run:
        return code
    chosen = select(cells, options.select)
    if study.report is not None:
        code = _report(study.report, store, cells, chosen, code, options)
    if code:
        for line in failures(store, unique(chosen)):
            print(line, flush=True)
    return code


def _report(
    report: Report, store: Store, cells: list[AnyCell], chosen: list[AnyCell], code: int, options: Options
) -> int:
    """Print tables, where there is something to put into them; returns the exit code."""
    tested = [cell.key() for cell in chosen if isinstance(cell, Cell)]
    if not tested:
        print("no tables: there are no evaluation cells among these, only training", flush=True)
        return code
    if code and not any(store.read(key, verify=False).status == "finished" for key in tested):  # such as Ctrl-C
        print("no tables: no cell has finished", flush=True)
        return code
    try:
        report(store.root, [cell.key() for cell in cells])
    except UserError as error:  # such as: no cell has finished
        if code:
            print(f"no tables: {error}", flush=True)
            return code
        print(f"error: no tables: {error}", file=sys.stderr)
        return SOME_FAILED
    for line in trained_models(store, unique(chosen), options.weights_dir):
        print(line)
    print(f"results  {store.root}")
    for name, line in zip(("runs", ""), how_to_open(store.root, options.tracking_uri)):
        print(f"{name:9}{line}", flush=True)
    return code
