"""The text of a table: names of its rows, and the notes that say which protocol, data, code and statistics made it."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.tables.places import METHODS, MethodKey
from analysis.tables.scores import Study
from analysis.tables.table import Column, Number, Row, Table

UNMARKED = (
    "Groups without bold: no p-value that so few query images (or resamples) allow is small enough for their number of "
    "comparisons; use more episodes."
)


SHARED = ("Protocol ", "In brackets: 95%", "Differences are paired")  # begin notes that most tables have


def is_shared(note: str) -> bool:
    """Whether a note says what all tables of a study say: what made them, and how to read intervals."""
    return note.startswith(SHARED)


def own_notes(table: Table) -> tuple[str, ...]:
    """The notes that are not shared."""
    return tuple(note for note in table.notes if not is_shared(note))


def method_name(study: Study, method: MethodKey) -> str:
    """Name of a method; with its training backbone where a study has several."""
    name = METHODS.get(method.variant, method.variant)
    return f"{name} ({method.trained_on})" if len(study.trained_on) > 1 and method.trained_on else name


def labels(study: Study, method: MethodKey) -> tuple[str, str]:
    """Names of backbone and method; the backbone's weights are named where a study has several."""
    several = len(study.weights[method.backbone]) > 1
    return f"{method.backbone} [{method.weights}]" if several else method.backbone, method_name(study, method)


def trained_on(study: Study) -> str:
    """The end of a caption: what was trained on."""
    source = study.cells["trained_dataset"].iloc[0]
    if len(study.trained_on) == 1:
        return f", trained on {f'{source} with ' if source else ''}{study.trained_on[0]} only"
    if not study.trained_on:
        return ""
    return f"{', trained on ' + source if source else ''}; in brackets the training backbone"


def data_name(study: Study) -> str:
    """Name of the data set."""
    return str(study.cells["dataset"].iloc[0])


def source(study: Study) -> str:
    """Data and protocol, for captions."""
    first = study.cells.iloc[0]
    return f"{data_name(study)}, protocol {first['protocol']} ({first['protocol_hash'] or 'no hash'})"


def columns(*names: str) -> tuple[Column, ...]:
    """Columns with headers of one level."""
    return tuple(Column((name,)) for name in names)


def table(
    study: Study,
    name: str,
    caption: str,
    labels: tuple[str, ...],
    columns: Sequence[Column],
    rows: Sequence[Row],
    *more: str,
    stacked: bool = False,
) -> Table:
    """A table of a study with its notes, `more` after them."""
    return Table(
        name=name, caption=caption, labels=labels, columns=tuple(columns), rows=tuple(rows), stacked=stacked,
        notes=(*notes(study, rows), *more),
    )  # fmt: skip


def notes(study: Study, rows: Sequence[Row]) -> list[str]:
    """Protocol, data, episodes, seeds, code, and how to read intervals: of the cells that the rows come from."""
    numbers = [entry for row in rows for entry in row.entries if isinstance(entry, Number)]
    cells = study.cells[study.cells["key"].isin([key for number in numbers for key in number.keys])]
    first = study.cells.iloc[0]
    protocol = f"Protocol {first['protocol']} ({first['protocol_hash'] or 'no hash'})"
    data = f"data {first['dataset']} ({first['dataset_hash'] or 'no fingerprint'})"
    if first["trained_dataset"]:
        data += f", checkpoints from {first['trained_dataset']}"
    if cells.empty:
        return [f"{protocol}, {data}; no cell of this table has finished."]
    folds = f"folds {_listed(cells['fold'])}" if cells["fold"].nunique() > 1 else f"fold {cells['fold'].iloc[0]} only"
    seeds = f"episode seeds {_listed(cells['episode_seed'])}"
    trained = cells[cells["trained_on"] != ""]
    if not trained.empty:
        seeds += f", training seeds {_listed(trained['train_seed'])}"
        if steps := _listed(trained["train_steps"][trained["train_steps"] > 0]):
            seeds += f", {steps} training steps"
    commits = {commit[:12] or "unknown" for commit in cells["git_commit"].unique()}
    codes = {code or "unknown" for code in cells["code_hash"].unique()}
    made = f"commit {', '.join(sorted(commits))}, method's code {', '.join(sorted(codes))}"
    lines = [
        f"{protocol}, {data}; {folds}, {_listed(cells['episodes'])} episodes a fold, {seeds}; {made}.",
        f"In brackets: 95% bootstrap interval ({study.resamples} resamples of query images within their class).",
    ]
    if any(number.difference for number in numbers):
        lines.append("Differences are paired over the same episodes; * marks intervals that exclude 0.")
    if trained["train_seed"].nunique() > 1:
        lines.append("±: standard deviation over training seeds; the brackets hold for their mean on other episodes.")
    if any(number.value != number.value for number in numbers):
        lacking = cells[cells["undefined"] != ""]["undefined"].value_counts(sort=False).sort_index()
        reasons = [f"{reason} ({count} {'cells' if count > 1 else 'cell'})" for reason, count in lacking.items()]
        more = f"; and {len(reasons) - 3} other reasons" if len(reasons) > 3 else ""
        lines.append(f"Undefined figures are shown as –. {'; '.join(reasons[:3]) or 'See the warnings'}{more}.")
    if any(number.undecided for number in numbers):
        lines.append(UNMARKED)
    return lines


def _listed(values: pd.Series[int]) -> str:
    found = sorted({int(value) for value in values.unique()})
    if len(found) > 3 and found == list(range(found[0], found[-1] + 1)):
        return f"{found[0]}–{found[-1]}"
    return ", ".join(map(str, found))
