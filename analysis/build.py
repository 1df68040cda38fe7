"""Every table and figure that a store can fill, by study, and a table in every format."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from analysis.plots.distributions import classes_plot, episodes_plot
from analysis.plots.study import cost_plot, shots_plot, steps_plot, upgrade_plot
from analysis.plotting import Plot
from analysis.quality import Qualities, quality_plots, quality_tables
from analysis.results import Results, class_names
from analysis.tables.costs import cost_table
from analysis.tables.differences import ablations, claims_table
from analysis.tables.main import annotations_table, main_table, shots_table, upgrade_table
from analysis.tables.scores import Study, studies
from analysis.tables.table import Number, Table
from diffup.evaluation.stats import RESAMPLES

QUESTIONS: tuple[Callable[[Study], Table | None], ...] = (
    main_table, upgrade_table, annotations_table, shots_table, ablations, cost_table, claims_table,
)  # fmt: skip
PLOTS: tuple[Callable[[Study], Plot | None], ...] = (shots_plot, upgrade_plot, cost_plot, steps_plot)
SOURCE = ["dataset", "protocol", "trained_dataset"]
Drawn = tuple[list[Plot], list[str]]  # figures, and warnings about cells that could not be drawn


@dataclass(frozen=True, eq=False)
class Collected:
    """A study with its tables.

    Attributes:
        study: the study.
        suffix: of its files' names, ``""`` if it is the only one.
        tables: their names end with it.
        qualities: what its trained models estimate of their own quality.
    """

    study: Study
    suffix: str
    tables: tuple[Table, ...]
    qualities: Qualities

    @property
    def name(self) -> str:
        """Data set and protocol, for people."""
        first = self.study.cells.iloc[0]
        source = f" from {first['trained_dataset']}" if first["trained_dataset"] else ""
        return f"{first['dataset']}{source}, {first['protocol']}"


def collect(results: Results, *, resamples: int = RESAMPLES) -> list[Collected]:
    """The studies of a store with their tables: data sets and protocols are never mixed in a table.

    Raises:
        UserError: there is no evaluation cell.
    """
    found = studies(results, resamples=resamples)
    parts = []
    for study, suffix in zip(found, suffixes(found)):
        qualities = Qualities(results, study)
        made = [question(study) for question in QUESTIONS]
        made += [table for table in quality_tables(qualities) if _has_numbers(table)]
        tables = tuple(replace(table, name=table.name + suffix) for table in made if table is not None)
        parts.append(Collected(study, suffix, tables, qualities))
    return parts


def _has_numbers(table: Table) -> bool:
    return any(isinstance(entry, Number) for row in table.rows for entry in row.entries)


def plots_of(results: Results, part: Collected) -> Drawn:
    """The figures of a study, and warnings about cells that could not be drawn."""
    study, qualities = part.study, part.qualities
    made = [plot(study) for plot in PLOTS]
    made += [classes_plot(study, class_names(results, study.counts)), episodes_plot(study)]
    plots = [replace(plot, name=plot.name + part.suffix) for plot in made if plot is not None]
    return [*plots, *quality_plots(qualities, part.suffix)], qualities.warnings


def suffixes(found: Sequence[Study]) -> list[str]:
    """What distinguishes the studies' files: nothing, the data set, its protocol too, or the hashes as well."""
    for names in ([], ["dataset"], ["dataset", "protocol"], SOURCE, [*SOURCE, "dataset_hash", "protocol_hash"]):
        slugs = ["".join(f"-{part}" for name in names if (part := study.cells[name].iloc[0])) for study in found]
        slugs = [re.sub(r"[^A-Za-z0-9-]+", "-", slug) for slug in slugs]
        if len(set(slugs)) == len(slugs):
            return slugs
    return [f"-{number}" for number in range(len(found))]
