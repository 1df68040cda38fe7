"""Search training hyper-parameters on held-out base classes, with early stopping, and never on a novel class.

    python experiments/search.py --dataset DIR/dataset.json --weights-dir DIR --results DIR --trials 16
    python experiments/search.py --embedded --trials 8

The first configuration is the recipe itself, the others are drawn from `FACTORS` by ``--seed``. Each is a training cell
that holds out 3 base classes. At 1/8, 1/4, 1/2 and all of its steps its averaged weights are scored on these classes,
by the mean mIoU over the training backbone at two input sizes that it was not trained at (as in
`experiments/selection.py`: features then differ as another backbone's would, and to work on other backbones is what
the method is for) and over 3 tasks. Ray Tune's ASHA lets the better half of those seen so far go on.

Costs at most a training of each configuration. What changes the episodes that are drawn (``max_shots``,
``cue_weights``) also needs prior maps of its own, most of a training's cost; the rest shares them. Measured with
``--embedded --trials 8 --steps 120 --episodes 24``: 4 minutes on 2 cores, 585 of 960 steps; the four configurations
that were trained to the end scored 53.5 to 57.7 %.
``--embedded`` takes shapes4i and tiny_resnet, which are shipped. Options that make sense for grids alone, such as
``--select``, are refused.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from cluster.cli import GridOptions
from cluster.hpo.trials import Candidate, Record, Search, best, halvings, validation_classes
from cluster.launch import open_results
from cluster.options import Count, CountOrAuto, Numbers, option, parse
from diffup.errors import UserError, command_line
from diffup.grid.axes import Backbone, evaluation_cells, training_cell
from diffup.grid.datasets import Data, open_data
from diffup.training import recipes
from diffup.training.recipes import Recipe

if TYPE_CHECKING:
    from analysis.tables.table import Table
    from cluster.options import Work

NAME = "search"
HOLD_OUT = 3
TASKS = ((1, "mask"), (1, "scribble"), (5, "mask"))
EPISODES = 60
TRIALS = 16
REDUCTION, MILESTONES = 2, 4
STREAM = 5  # keeps the drawing of configurations apart from that of episodes
TRAINED_ON, EMBEDDED_ON = "resnet50", "tiny_resnet"


@dataclass(frozen=True)
class LogUniform:
    """A number between two others, its logarithm uniform; three digits, so that it can be written down."""

    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        """One value."""
        return float(f"{np.exp(rng.uniform(np.log(self.low), np.log(self.high))):.3g}")


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    def draw(self, rng: np.random.Generator) -> Any:
        """One value."""
        return self.values[int(rng.integers(len(self.values)))]


Searches = tuple[list[Search], dict[str, Path]]  # and the files that they read
Factors = Mapping[str, Mapping[str, LogUniform | Choice]]

# Over the recipe; steps are those of the recipe, since configurations compete at equal steps.
FACTORS: Factors = {
    "train": {
        "learning_rate": LogUniform(2e-4, 2e-2),
        "weight_decay": LogUniform(1e-4, 1e-1),
        "max_shots": Choice((1, 5, 10)),
        "cue_weights": Choice(((0.5, 0.2, 0.2, 0.1), (0.34, 0.33, 0.33, 0.1), (0.8, 0.1, 0.1, 0.1))),
    },
    "model": {"bound": Choice((0.0, 1.5, 3.0))},
}


def draw(factors: Factors, recipe: Recipe, *, trials: int, seed: int) -> list[Recipe]:
    """The recipe, and trials - 1 others that differ from it and from each other by the factors.

    The first n of more are those of n: a search can be extended.

    Raises:
        UserError: `trials` is below 1, or the factors don't have so many combinations.
    """
    if trials < 1:
        raise UserError(f"--trials must be 1 or more, not {trials}")
    made, rng = [recipe], np.random.default_rng((seed, STREAM))
    for _ in range(100 * trials):
        if len(made) == trials:
            break
        drawn: dict[str, dict[str, Any]] = {
            part: {name: factor.draw(rng) for name, factor in own.items()} for part, own in factors.items()
        }
        found = dataclasses.replace(
            recipe,
            model=dataclasses.replace(recipe.model, **drawn.get("model", {})),
            train=dataclasses.replace(recipe.train, **drawn.get("train", {})),
        )
        if found not in made:
            made.append(found)
    if len(made) < trials:
        raise UserError(f"--trials {trials}: the factors have only about {len(made)} combinations")
    return made


def changes(base: Recipe, other: Recipe, factors: Factors) -> dict[str, Any]:
    """The values of `other` for all factors; none for the base itself."""
    if other == base:
        return {}
    return {name: getattr(getattr(other, part), name) for part, own in factors.items() for name in own}


def candidates(
    data: Data, fold: int, source: Backbone, base: Recipe, *, factors: Factors = FACTORS, trials: int, seed: int,
    hold_out: int = HOLD_OUT, sizes: Sequence[int], episodes: int = EPISODES,
) -> list[Candidate]:  # fmt: skip
    """The configurations of a search on one fold, with the cells that score them.

    Args:
        data: a data set of at least `hold_out` + 2 classes outside of the fold.
        fold: whose novel classes are left alone.
        source: training backbone.
        base: the recipe to start from.
        factors: what is searched.
        trials: how many configurations.
        seed: of the configurations, of training, and of which classes are held out.
        hold_out: how many.
        sizes: of the input in validation, in pixels.
        episodes: of each validation cell.
    """
    made = []
    for recipe in draw(factors, base, trials=trials, seed=seed):
        train = dataclasses.replace(recipe.train, hold_out=hold_out)
        cell = training_cell(data, fold, source, config=recipe.input, model=recipe.model, train=train, seed=seed)
        validation = [
            found
            for size in sizes
            for found in evaluation_cells(
                data, fold, [source], TASKS, config=dataclasses.replace(recipe.input, input_size=size),
                episodes=episodes, trained=cell, held_out=hold_out,
            )
        ]  # fmt: skip
        values = changes(base, recipe, factors)
        made.append(Candidate(cell=cell, values=values, validation=tuple(validation)))
    return made


def virtual_sizes(size: int) -> tuple[int, int]:
    """Two input sizes about 0.7 and 1.4 times the one trained at, multiples of 32 pixels."""
    return round(size * 0.7 / 32) * 32, round(size * 1.4 / 32) * 32


def table(search: Search, record: Record) -> Table:
    """Configurations with their scores at each milestone, the best first, and how they ended."""
    from analysis.tables.table import Column, Number, Row, Table

    names = list(dict.fromkeys(name for candidate in search.candidates for name in candidate.values))
    winner = best(record)
    rows = []
    for number, candidate in enumerate(search.candidates):
        cell, entry, won = candidate.cell, record.entries[candidate.cell.key()], candidate.cell.key() == winner
        scores = {score["steps"]: Number(value=float(score["miou"]), best=won) for score in entry["scores"]}
        values = [_short(getattr(cell.train, name, getattr(cell.model, name, ""))) for name in names]
        how = (entry["ended"] or "not ended") + (" (best)" if won else "")
        row = Row((str(number),), (*values, *(scores.get(steps) for steps in search.milestones), how))
        rows.append((len(scores), entry["scores"][-1]["miou"] if scores else 0.0, row))
    rows.sort(key=lambda row: row[:2], reverse=True)
    heads = [*names, *(f"{steps} steps" for steps in search.milestones), "ended"]
    return Table(
        name="search",
        caption=f"mIoU in % on held-out base classes: {', '.join(search.classes)}.",
        labels=("No.",),
        columns=tuple(Column((head,)) for head in heads),
        rows=tuple(row for *_, row in rows),
    )


def _short(value: Any) -> str:
    return " ".join(f"{part:g}" for part in value) if isinstance(value, tuple) else f"{value:g}"


def report(search: Search, record: Record) -> str:
    """The table, what was saved, the best configuration to paste into a recipe, and what its score is worth."""
    from analysis.tables.table import to_markdown

    full = search.milestones[-1] * len(search.candidates)
    scores = [score for entry in record.entries.values() for score in entry["scores"]]
    train, validate = (sum(float(score[name]) for score in scores) for name in ("train_seconds", "validate_seconds"))
    left = len(record.todo())
    saved = f"{left} not ended" if left else f"{100 * (1 - record.spent() / full):.0f} % saved by stopping"
    lines = [
        to_markdown(table(search, record)).rstrip(),
        "",
        f"steps    {record.spent()} of {full}, {saved}; {train:.0f} s of training, {validate:.0f} s of validation",
    ]
    if key := best(record):
        values = dict(next(c.values for c in search.candidates if c.cell.key() == key))
        score, number = float(record.entries[key]["scores"][-1]["miou"]), len(search.candidates)
        lines += [
            f"best     {values or 'the recipe itself'}",
            f"         {score:.1f} % is the highest of {number} noisy scores, so it is optimistic: train the chosen",
            "         configuration without hold_out, and report that on novel classes",
        ]
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class SearchOptions(GridOptions):
    """Options of this script."""

    dataset: Annotated[str, *option("PATH", str, default=False)] = ""
    """a dataset.json, or a known name"""
    embedded: bool = False
    """shapes4i and tiny_resnet, which are shipped, in place of --dataset and --weights-dir"""
    train_backbone: Annotated[str, *option("NAME", str, default=False)] = ""
    """trained on (default: resnet50, with --embedded tiny_resnet)"""
    folds: Numbers = (0,)
    """a search each"""
    trials: int = TRIALS
    """number of configurations"""
    steps: CountOrAuto = 0
    """of training (default: the recipe's)"""
    episodes: Count = EPISODES
    """per task and input size of a score"""
    seed: int = 0
    """of configurations, training, and the classes that are held out"""


def build(asked: SearchOptions) -> Searches:
    """Check data set and backbone, and draw a search for each fold.

    Raises:
        UserError: see `diffup.grid.datasets.open_data` and `cluster.hpo.trials`; or no such fold.
    """
    from diffup.data.dataset import open_dataset, resolve_dataset

    if asked.embedded == bool(asked.dataset):
        raise UserError("give one of --dataset PATH and --embedded")
    base = recipes.shapes4i() if asked.embedded else recipes.msrc15()
    if asked.steps:
        base = dataclasses.replace(base, train=dataclasses.replace(base.train, steps=asked.steps))
    name = asked.train_backbone or (EMBEDDED_ON if asked.embedded else TRAINED_ON)
    source = asked.find_backbones([name])[name]
    path = resolve_dataset("shapes4i" if asked.embedded else asked.dataset)
    dataset = open_dataset(path)
    data = open_data(path, shots=max(shots for shots, _ in TASKS), dataset=dataset)
    searches = []
    for fold in data.chosen_folds(asked.folds):
        found = candidates(
            data, fold, source, base, trials=asked.trials, seed=asked.seed, episodes=asked.episodes,
            sizes=virtual_sizes(base.input.input_size),
        )  # fmt: skip
        searches.append(
            Search(
                name=re.sub(r"[^\w.-]+", "-", f"{data.name}-{source.name}-fold{fold}-seed{asked.seed}"),
                candidates=found,
                milestones=halvings(base.train.steps, REDUCTION, MILESTONES),
                reduction=REDUCTION,
                classes=validation_classes(dataset, found[0].validation),
            )
        )
    return searches, data.files()


def run(asked: SearchOptions, build: Callable[[SearchOptions], Searches] = build, work: Work | None = None) -> int:
    """Run searches and print their reports; returns the exit code.

    Raises:
        UserError: results in an object store; or see `cluster.hpo.search.run_searches`.
    """
    from cluster.hpo.search import run_searches

    store = open_results(asked.run, NAME)
    if store.remote:
        raise UserError(
            f"--results {store.remote}: a search goes on from its record and from paused trainings, which must be in a "
            "folder; give one that all machines see. Its finished trainings can be copied to an object store: "
            f"`python -m cluster sync push DIR {store.remote}`"
        )
    searches, files = build(asked)
    code = run_searches(searches, asked.run, store=store, datasets=files, work=work)
    for search in [] if asked.run.dry_run else searches:
        record = Record(store, search)
        print(f"\n{search.name}\n\n{report(search, record)}\nrecord   {record.path}", flush=True)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """The script; returns the exit code."""
    asked = parse(SearchOptions, argv, prog=f"experiments/{NAME}.py", description=__doc__ or "")
    return command_line(lambda: run(asked))


if __name__ == "__main__":
    sys.exit(main())
