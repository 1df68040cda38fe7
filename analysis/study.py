"""The lines of ``experiments/method_study.py`` as paired differences: all folds, the two that were looked at while the
method was made, the two that were opened once, and each fold by itself.

    python -m analysis.study --results DIR --out DIR
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis import captions
from analysis.frame import launch_keys, load_results, only
from analysis.latex import to_latex
from analysis.paper import warn
from analysis.places import Subject, Task
from analysis.scores import Study, studies
from analysis.stats import RESAMPLES
from analysis.tables import Column, Number, Row, Table, to_csv, to_markdown

LOOKED_AT, UNOPENED = (0, 1), (2, 3)
MASK, FIVE, BOX, SCRIBBLE = Task(1, "mask"), Task(5, "mask"), Task(1, "box"), Task(1, "scribble")
MIXED = Task(3, "mask+scribble+box")
Place = tuple[Subject, Task]


@dataclass(frozen=True)
class Line:
    """One comparison: what is compared, and the difference that is hoped for."""

    group: str
    text: str
    first: Place
    second: Place
    bar: str = ""


class _Found:
    """Subjects of a study by what they are."""

    def __init__(self, study: Study) -> None:
        self.study = study
        sources = [s.trained_on for s in study.subjects if s.variant == "one_step"]
        self.source = sources[0] if sources else ""

    def get(self, variant: str, backbone: str, trained_on: str | None = None) -> Subject | None:
        for subject in self.study.subjects:
            trained = subject.trained_on if trained_on is None else trained_on
            if (subject.variant, subject.backbone, subject.trained_on) == (variant, backbone, trained):
                return None if subject.control else subject
        return None


def lines(study: Study) -> Iterator[Line]:
    """The comparisons that the study's cells allow, in the order of the documentation."""
    found = _Found(study)
    source = found.source
    backbones = list(dict.fromkeys(s.backbone for s in study.subjects))
    ours = {b: found.get("diffup", b, source) for b in backbones}
    home = ours.get(source)
    if home is None:
        return
    short = {backbone: backbone.partition("_")[0] for backbone in backbones}

    def pair(group: str, text: str, first: Subject | None, a: Task, second: Subject | None, b: Task, bar: str = ""
             ) -> Iterator[Line]:  # fmt: skip
        if first and second and study.asked(first, a) and study.asked(second, b):
            yield Line(group, text, (first, a), (second, b), bar)

    bars = {
        ("prior_mean", MASK): {source: "≥ 4", "deit": "≥ 1", "mobilenetv2": "≥ 2"},
        ("prototype", MASK): {source: "≥ 10"},
    }
    for task in (MASK, FIVE, BOX, SCRIBBLE, MIXED):
        for backbone, subject in ours.items():
            for baseline in ("prior_mean", "prototype"):
                known = bars.get((baseline, task), {})
                bar = known.get(backbone) or known.get(short[backbone]) or "≥ 0"
                name = baseline.replace("_", " ")
                other = found.get(baseline, backbone, "")
                yield from pair(
                    "training-free", f"{short[backbone]}, {task}: DiffUp − {name}", subject, task, other, task, bar
                )
    for backbone, subject in ours.items():
        if backbone != source:
            yield from pair("upgrade", f"{short[backbone]} swapped in − {source}", subject, MASK, home, MASK, "> 0")
            again = found.get("diffup", backbone, backbone)
            yield from pair(
                "upgrade", f"re-trained on {short[backbone]} − swapped in", again, MASK, subject, MASK, "≤ 2"
            )
    for backbone, subject in ours.items():
        within = {source: "≥ −7", "deit": "≥ −5"}
        yield from pair(
            "shots", f"{short[backbone]}: 5-shot − 1-shot", subject, FIVE, subject, MASK, "≥ 6" * (backbone == source)
        )
        limit = within.get(backbone) or within.get(short[backbone], "")
        yield from pair("annotations", f"{short[backbone]}: box − mask", subject, BOX, subject, MASK, limit)
        yield from pair("annotations", f"{short[backbone]}: scribble − mask", subject, SCRIBBLE, subject, MASK, "≥ −8")
        for task in (MASK, SCRIBBLE, BOX):
            yield from pair(
                "annotations", f"{short[backbone]}: three mixed − {task}", subject, MIXED, subject, task, "≥ 0"
            )
    for backbone, subject in ours.items():
        one = found.get("one_step", backbone, source)
        yield from pair("diffusion", f"{short[backbone]}: diffusion − one step", subject, MASK, one, MASK, "≥ −1")
        first, last = (found.get(name, backbone, source) for name in ("steps_1", "steps_8"))
        yield from pair("diffusion", f"{short[backbone]}: 8 steps − 1 step", last, MASK, first, MASK, "≥ −0.5")
        for name in ("steps_4", "from_prior", "full_strength"):
            text = f"{short[backbone]}: {name.replace('_', ' ')} − default"
            yield from pair("diffusion", text, found.get(name, backbone, source), MASK, subject, MASK)


def study_table(study: Study) -> Table | None:
    """All lines with their differences; None if the store holds no method study."""
    every = study.folds_by_task.get(MASK, ())
    parts = [("all folds", every), ("0-1, looked at", LOOKED_AT), ("2-3, opened once", UNOPENED)]
    parts = [(name, tuple(f for f in folds if f in every)) for name, folds in parts]
    parts = [(name, folds) for name, folds in parts if folds] + [(f"fold {fold}", (fold,)) for fold in every]
    rows = []
    for line in lines(study):
        numbers: list[Number | None] = [study.difference(line.first, line.second, folds=folds) for _, folds in parts]
        whole = parts[0][1]
        both = [study.number(*place, folds=whole) for place in (line.first, line.second)]
        rows.append(Row((line.group, line.text), (line.bar, *both, *numbers)))
    if not rows:
        return None
    minor = {name for name, _ in parts[3:]}
    columns = [Column(("bar",)), Column(("first",), True), Column(("second",), True)]
    return Table(
        name="study",
        caption=f"The method study on {captions.data_name(study)}: differences of mIoU in %, paired by episode.",
        labels=("", "Line"),
        columns=(*columns, *(Column((name,), name in minor) for name, _ in parts)),
        rows=tuple(rows),
        notes=tuple(captions.notes(study, rows)),
    )


def write_study(
    results: Path, out: Path, *, keys: Iterable[str] | None = None, resamples: int = RESAMPLES
) -> list[Path]:
    """Write ``study.md``, ``.csv`` and ``.tex`` for each data set of a store that holds a method study.

    Raises:
        ValueError: there is no such store, or no method study in it.
    """
    store = load_results(results)
    store = store if keys is None else only(store, keys)
    warn(store.warnings)
    written = []
    for study in studies(store, resamples=resamples):
        table = study_table(study)
        if table is None:
            continue
        out.mkdir(parents=True, exist_ok=True)
        for suffix, render in (("md", to_markdown), ("csv", to_csv), ("tex", to_latex)):
            path = out / f"{table.name}-{study.cells['dataset'].iloc[0]}.{suffix}"
            path.write_text(render(table), encoding="utf-8")
            written.append(path)
    if not written:
        raise ValueError(f"{results} holds no method study; run experiments/method_study.py")
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0, or 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m analysis.study", description="Lines of the method study.")
    parser.add_argument("--results", type=Path, required=True, metavar="DIR", help="what method_study.py wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the table goes")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, metavar="N", help="of the bootstrap (%(default)s)")
    parser.add_argument("--launch", metavar="NAME", help="only the cells of DIR/launches/NAME.json (all cells)")
    options = parser.parse_args(arguments)
    try:
        keys = launch_keys(options.results, options.launch) if options.launch else None
        paths = write_study(options.results, options.out, keys=keys, resamples=options.resamples)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in paths:
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
