"""Are the model's own estimates of quality right? ``python -m analysis.quality --results DIR --out DIR``.

Two tables as LaTeX, Markdown and CSV (DQM's predicted IoU; UAPF's standard deviation and the probabilities), each with
the rival that costs nothing, and one calibration figure a task as PNG and PDF. Intervals are those of the other tables:
95 % bootstrap intervals, stratified by class and clustered by query image.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from analysis.calibration import Quality, estimates, read_quality
from analysis.command import command, load, texts_of, warn, write_texts, writing_to
from analysis.plots.calibration import Curve, calibration_plot
from analysis.plotting import Plot
from analysis.results import Results
from analysis.stats import RESAMPLES, Estimate, average
from analysis.tables import captions
from analysis.tables.main import ordered, shown
from analysis.tables.places import Subject, Task
from analysis.tables.scores import Study, studies, to_number
from analysis.tables.table import Column, Entry, Number, Row, Table, to_markdown
from diffup.errors import UserError, command_line

DECIMALS = 3
FIGURE_RESAMPLES = 500  # bands of a figure need fewer than the intervals of a table


@dataclass(eq=False)
class Qualities:
    """The estimates of one study's trained models, read as they are asked for.

    Attributes:
        results: the store.
        study: whose cells are looked at.
        warnings: runs that could not be read, and why.
    """

    results: Results
    study: Study
    warnings: list[str] = field(default_factory=list)
    _figures: dict[tuple[str, ...], dict[str, Estimate] | None] = field(default_factory=dict)

    def places(self) -> list[tuple[Task, Subject]]:
        """Tasks and trained subjects that were asked for, in the order of a table."""
        subjects = [subject for subject in shown(self.study) if subject.trained_on and not subject.control]
        return [(t, s) for t in ordered(list(self.study.folds_by_task)) for s in subjects if self.study.asked(s, t)]

    def read(self, keys: tuple[str, ...], fold: int, resamples: int) -> Quality | None:
        """The episodes of one run; None, with a warning, if they can't be read."""
        counts = [self.study.counts[key] for key in keys]
        try:
            return read_quality(
                self.results.root, keys, counts, resamples=resamples, seed=self.study.seed, stream=fold
            )  # fmt: skip
        except UserError as error:
            if str(error) not in self.warnings:
                self.warnings.append(str(error))
            return None

    def figures(self, keys: tuple[str, ...], fold: int) -> dict[str, Estimate] | None:
        """All figures of one run."""
        if keys not in self._figures:
            quality = self.read(keys, fold, self.study.resamples)
            threshold = float(self.results.documents[keys[0]]["sample"]["threshold"])
            made = None if quality is None else estimates(quality, threshold=threshold, sample=" ".join(keys))
            self._figures[keys] = made
        return self._figures[keys]

    def numbers(self, task: Task, subject: Subject, columns: Sequence[Measure]) -> list[Number | None]:
        """Means over folds and training seeds, as in the other tables; None unless every fold is finished."""
        runs = self.study.runs.get((subject, task), {})
        folds = self.study.folds_by_task[task]
        missing: list[Number | None] = [None] * len(columns)
        if not all(fold in runs for fold in folds):
            return missing
        seeds = sorted(set.intersection(*(set(runs[fold]) for fold in folds)))
        found = {(fold, seed): self.figures(runs[fold][seed], fold) for fold in folds for seed in seeds}
        if not seeds or any(figures is None for figures in found.values()):
            return missing
        keys = [key for fold in folds for seed in seeds for key in runs[fold][seed]]
        episodes = sum(len(self.study.counts[key]) for fold in folds for key in runs[fold][seeds[0]])
        numbers: list[Number | None] = []
        for column in columns:
            by_seed = [average([column.of(found[fold, seed] or {}) for fold in folds]) for seed in seeds]
            number = to_number(by_seed, keys, episodes, difference=column.signed)
            numbers.append(replace(number, decimals=DECIMALS))
        return numbers


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


def quality_tables(qualities: Qualities) -> list[Table]:
    """The table of predicted IoU and that of pixels; none if no trained model was asked for."""
    places, study = qualities.places(), qualities.study
    if not places:
        return []
    data, trained = captions.data_name(study), captions.trained_on(study)
    tables = []
    for name, caption, columns in (
        ("quality_iou", f"Does the model know how good its mask is? {data}{trained}.", IOU),
        ("quality_pixels", f"Does the model know which pixels are wrong? {data}{trained}.", PIXELS),
    ):
        rows = []
        for task, subject in places:
            entries: list[Entry] = [*qualities.numbers(task, subject, columns)]
            rows.append(Row((str(task), *captions.labels(study, subject)), tuple(entries)))
        tables.append(
            Table(
                name=name,
                caption=caption,
                labels=("Task", "Backbone", "Method"),
                columns=tuple(Column(column.header) for column in columns),
                rows=tuple(rows),
                notes=(*captions.notes(study, rows), *NOTES[name]),
                stacked=True,
            )
        )
    return tables


def quality_plots(qualities: Qualities, suffix: str = "") -> list[Plot]:
    """One calibration figure a task, a line a backbone: all folds and training seeds of the method itself together."""
    study, plots = qualities.study, []
    for task in dict.fromkeys(task for task, _ in qualities.places()):
        curves = []
        for subject in (s for t, s in qualities.places() if t == task and s.variant == "diffup"):
            runs = study.runs.get((subject, task), {})
            read = [qualities.read(keys, fold, FIGURE_RESAMPLES) for fold in runs for keys in runs[fold].values()]
            parts = [quality for quality in read if quality is not None]
            if parts:
                backbone, method = captions.labels(study, subject)
                again = (
                    len({s.trained_on for s in study.subjects if s.backbone == subject.backbone and s.trained_on}) > 1
                )
                curves.append(Curve(f"{backbone}, {method}" if again else backbone, parts))
        if curves:
            slug = re.sub(r"[^A-Za-z0-9]+", "_", str(task))
            title = f"{captions.data_name(study)}, {task}{captions.trained_on(study)}"
            plots.append(calibration_plot(curves, title, f"quality_{slug}{suffix}"))
    return plots


def write_quality(
    results: Path, out: Path, *, keys: Iterable[str] | None = None, resamples: int = RESAMPLES
) -> list[Path]:
    """Write all tables and figures; warnings go to stderr. Arguments and errors: `analysis.command.Write`."""
    store = load(results, keys)
    found = studies(store, resamples=resamples)
    paths, warnings = [], [*store.warnings]
    for number, study in enumerate(found):
        suffix = f"-{number}" if len(found) > 1 else ""
        qualities = Qualities(store, study)
        for table in quality_tables(qualities):
            named = replace(table, name=table.name + suffix)
            paths += write_texts(out, texts_of(named))
            print(to_markdown(named, notes=False))
        with writing_to(out):
            paths += [path for plot in quality_plots(qualities, suffix) for path in plot.write(out)]
        warnings += [*study.warnings, *qualities.warnings]
    warn(warnings)
    if not paths:
        raise UserError(f"{results} holds no evaluation of a trained model; quality estimates are made by those only")
    return paths


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0, or 2 for wrong usage."""
    return command("analysis.quality", "Are quality estimates right?", write_quality, arguments)


if __name__ == "__main__":
    sys.exit(command_line(main))
