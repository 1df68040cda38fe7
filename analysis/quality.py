"""Are the model's own estimates of quality right? ``python -m analysis quality --results DIR --out DIR``.

Two tables (DQM's predicted IoU; UAPF's standard deviation and the probabilities), each with a rival that costs nothing,
and one calibration figure per task. Intervals are those of the other tables: 95 % bootstrap intervals, stratified by
class and clustered by query image.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from analysis import command
from analysis.calibration import Quality, estimates, read_quality
from analysis.files import texts_of, write_files
from analysis.plots.calibration import Curve, calibration_plot
from analysis.plots.looks import colour_of
from analysis.plotting import Plot
from analysis.results import Results, load_results
from analysis.tables import captions
from analysis.tables.places import grouped
from analysis.tables.scores import Place, Run, Study, common_seeds, studies
from analysis.tables.table import Column, Number, Row, Table, to_markdown, to_number
from diffup.errors import UserError, command_line
from diffup.evaluation.stats import RESAMPLES, Estimate, average

DECIMALS = 3
FIGURE_RESAMPLES = 500  # bands of a figure need fewer than the intervals of a table


@dataclass(frozen=True)
class Measure:
    """A column: a figure of `estimates`, or the difference of two.

    Attributes:
        header: of the column.
        name: of the figure.
        minus: of the figure to subtract, or ``""``.
        signed: show sign, and a star where the interval excludes 0.
    """

    header: tuple[str, str]
    name: str
    minus: str = ""
    signed: bool = False

    def of(self, figures: dict[str, Estimate]) -> Estimate:
        """The figure of one run."""
        return figures[self.name].minus(figures[self.minus]) if self.minus else figures[self.name]


IOU = (
    Measure(("Spearman", "predicted IoU"), "rank_iou"),
    Measure(("Spearman", "mean fg. probability"), "rank_probability"),
    Measure(("Spearman", "difference"), "rank_iou", "rank_probability", signed=True),
    Measure(("Predicted − true", "mean"), "iou_bias", signed=True),
    Measure(("Predicted − true", "calibration error"), "iou_error"),
)
PIXELS = (
    Measure(("Wrong-pixel AUROC", "std"), "auroc_std"),
    Measure(("Wrong-pixel AUROC", "prior |p − ½|"), "auroc_prior"),
    Measure(("Wrong-pixel AUROC", "difference"), "auroc_std", "auroc_prior", signed=True),
    Measure(("Wrong-pixel AUROC", "own |p − ½|"), "auroc_own"),
    Measure(("within a query", "std"), "within_std"),
    Measure(("within a query", "difference"), "within_std", "within_prior", signed=True),
    Measure(("Probabilities", "calibration error"), "probability_error"),
)
NOTES = {
    "quality_iou": (
        "Spearman: rank correlation of the true IoU with the predicted one and with its rival, over episodes.",
        "Mean fg. probability: the rival that needs no head, the mean probability of the predicted foreground.",
        "Calibration error: mean over episodes of |mean predicted − mean true IoU| of the episode's bin, 10 bins; "
        "resampling can only add to it, so that its interval leans upwards.",
    ),
    "quality_pixels": (
        "Std: UAPF's standard deviation. Prior |p − ½|: of the training-free mean of the same priors, for the wrong "
        "pixels of the same masks; own |p − ½|: of the final probability, which has seen the decoder's answer.",
        "AUROC: over the pixels of all episodes of a fold together; within a query, averaged over episodes.",
        "Calibration error: mean over pixels of |share of foreground − mean probability| of the pixel's bin, 10 bins.",
    ),
}


@dataclass(eq=False)
class Qualities:
    """The estimates of one study's trained models, read as they are needed.

    Attributes:
        results: the store.
        study: whose cells are looked at.
        warnings: runs that could not be read, and why.
    """

    results: Results
    study: Study
    warnings: list[str] = field(default_factory=list)
    _figures: dict[Run, dict[str, Estimate] | None] = field(default_factory=dict)

    def places(self) -> list[Place]:
        """Trained methods and tasks that were asked for, in the order of a table."""
        methods = [method for method in self.study.shown if method.trained_on and not method.control]
        return [(m, t) for t in self.study.tasks for m in methods if self.study.asked(m, t)]

    def read(self, run: Run, fold: int, resamples: int) -> Quality | None:
        """The episodes of one run; None, with a warning, if they can't be read."""
        counts = [self.study.counts[key] for key in run]
        try:
            return read_quality(self.results.root, run, counts, resamples=resamples, seed=self.study.seed, stream=fold)
        except UserError as error:
            if str(error) not in self.warnings:
                self.warnings.append(str(error))
            return None

    def figures(self, run: Run, fold: int) -> dict[str, Estimate] | None:
        """All figures of one run."""
        if run not in self._figures:
            quality = self.read(run, fold, self.study.resamples)
            threshold = float(self.results.documents[run[0]]["sample"]["threshold"])
            made = None if quality is None else estimates(quality, threshold=threshold, sample=" ".join(run))
            self._figures[run] = made
        return self._figures[run]

    def numbers(self, place: Place, columns: Sequence[Measure]) -> list[Number | None]:
        """Means over folds and training seeds, as in the other tables; None unless every fold is finished."""
        runs, folds = self.study.runs.get(place, {}), self.study.folds_by_task[place[1]]
        seeds = common_seeds(runs, folds)
        by_seed = [[self.figures(runs[fold][seed], fold) for seed in seeds] for fold in folds]
        found = [[figures for figures in of_fold if figures is not None] for of_fold in by_seed]
        if not seeds or any(len(of_fold) < len(seeds) for of_fold in found):
            return [None] * len(columns)
        keys = [key for fold in folds for seed in seeds for key in runs[fold][seed]]
        episodes = sum(len(self.study.counts[key]) for fold in folds for key in runs[fold][seeds[0]])
        numbers: list[Number | None] = []
        for column in columns:
            means = [average([column.of(figures) for figures in of_seed]) for of_seed in zip(*found)]
            number = to_number(means, keys, episodes, difference=column.signed)
            numbers.append(replace(number, decimals=DECIMALS))
        return numbers


def quality_tables(qualities: Qualities) -> list[Table]:
    """The table of predicted IoU and that of pixels; none if no trained model was asked for."""
    places, study = qualities.places(), qualities.study
    data, trained = captions.data_name(study), captions.trained_on(study)
    tables = []
    for name, caption, columns in (
        ("quality_iou", f"Does the model know how good its mask is? {data}{trained}.", IOU),
        ("quality_pixels", f"Does the model know which pixels are wrong? {data}{trained}.", PIXELS),
    ):
        rows = [
            Row((str(task), *captions.labels(study, method)), tuple(qualities.numbers((method, task), columns)))
            for method, task in places
        ]
        headers = [Column(column.header) for column in columns]
        labels = ("Task", "Backbone", "Method")
        tables.append(captions.table(study, name, caption, labels, headers, rows, *NOTES[name], stacked=True))
    return tables if places else []


def quality_plots(qualities: Qualities, suffix: str = "") -> list[Plot]:
    """One calibration figure per task, a row per backbone: all folds and training seeds of the method itself."""
    study, plots = qualities.study, []
    trained = grouped((method.backbone, method.trained_on) for method in study.methods if method.trained_on)
    for task, methods in grouped((task, method) for method, task in qualities.places()).items():
        curves = []
        for method in (method for method in methods if method.variant == "diffup"):
            runs = study.runs.get((method, task), {})
            read = [qualities.read(run, fold, FIGURE_RESAMPLES) for fold in runs for run in runs[fold].values()]
            parts = [quality for quality in read if quality is not None]
            if parts:
                backbone, name = captions.labels(study, method)
                again = len(set(trained[method.backbone])) > 1
                label = f"{backbone}, {name}" if again else backbone
                curves.append(Curve(label, parts, colour_of(study, backbone)))
        if curves:
            slug = re.sub(r"[^A-Za-z0-9]+", "_", str(task))
            title = (
                f"DiffUp's own estimates, {captions.data_name(study)}, {task}{captions.trained_on(study)}: "
                "true IoU by predicted IoU, share of foreground by probability, share of wrong pixels by standard "
                "deviation. Dashed: perfectly calibrated; bands: 95% bootstrap intervals."
            )
            plots.append(calibration_plot(curves, title, f"quality_{slug}{suffix}"))
    return plots


def write_quality(
    results: Path, out: Path, *, keys: Iterable[str] | None = None, resamples: int = RESAMPLES
) -> list[Path]:
    """Write all tables and figures; warnings go to stderr.

    Args:
        results: the result store.
        out: folder for the files, made if need be.
        keys: only these cells, e.g. those of one grid; None: all in the store.
        resamples: of the bootstrap.

    Raises:
        UserError: there is no such store, no trained model in it, or `out` can't be written.
    """
    store = load_results(results, keys=keys)
    found = studies(store, resamples=resamples)
    paths, warnings = [], [*store.warnings]
    for number, study in enumerate(found):
        suffix = f"-{number}" if len(found) > 1 else ""
        qualities = Qualities(store, study)
        for table in quality_tables(qualities):
            named = replace(table, name=table.name + suffix)
            paths += write_files(out, texts_of(named))
            print(to_markdown(named, notes=False))
        for plot in quality_plots(qualities, suffix):
            paths += write_files(out, plot.files())
        warnings += [*study.warnings, *qualities.warnings]
    command.warn(warnings)
    if not paths:
        raise UserError(f"{results} holds no evaluation of a trained model; quality estimates are made by those only")
    return paths


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0, or 2 for wrong usage."""
    parser = command.parser("quality", "Are quality estimates right?")
    return command.run(parser.parse_args(arguments), write_quality)


if __name__ == "__main__":
    sys.exit(command_line(main))
