"""The model of a table, its numbers, and its formats Markdown and CSV (`latex` and `html` have the others).

An entry keeps its number, its interval and the keys of the cells it comes from; text is made last. A missing entry is
``None`` and reads "–".
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from diffup.errors import UserError
from diffup.evaluation.stats import ALPHA, Estimate, average, holm

UNDECIDED = None
MISSING = "–"
FIELDS = ("value", "low", "high", "std", "seeds", "episodes", "best", "second", "excludes_0", "p", "text", "keys")


@dataclass(frozen=True, kw_only=True)
class Number:
    """A figure.

    Attributes:
        value, low, high: the figure and its interval; nan ends where there is none.
        std: standard deviation over training seeds, None for a single seed.
        seeds: number of training seeds.
        episodes: number of episodes, all folds together.
        keys: cells that it comes from.
        difference: it is a difference: signed, with a star where its interval excludes 0.
        p: of a difference, two-sided (`diffup.evaluation.stats.Estimate.p_value`); nan for other figures.
        least_p: the smallest that `p` could be with so few images.
        best: among the best of its group.
        second: the highest of its group that is not among the best.
        undecided: nothing of its group is marked, since too few images allow no p-value that would decide it.
        decimals: that are shown.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")
    std: float | None = None
    seeds: int = 1
    episodes: int = 0
    keys: tuple[str, ...] = ()
    difference: bool = False
    p: float = float("nan")
    least_p: float = 0.0
    best: bool = False
    second: bool = False
    undecided: bool = False
    decimals: int = 1

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is on one side of 0."""
        return self.low > 0 or self.high < 0


def to_number(by_seed: Sequence[Estimate], keys: Sequence[str], episodes: int, *, difference: bool) -> Number:
    """The mean over training seeds of estimates, one per seed, with its interval and the seeds' spread."""
    mean = average(by_seed)
    low, high = mean.interval()
    values = [estimate.value for estimate in by_seed]
    std = float(np.std(values, ddof=1)) if len(values) > 1 and mean.value == mean.value else None
    p = mean.p_value() if difference else float("nan")
    return Number(
        value=mean.value, low=low, high=high, std=std, seeds=len(values), episodes=episodes, keys=tuple(keys),
        difference=difference, p=p, least_p=mean.least_p if difference else 0.0,
    )  # fmt: skip


def differs(gaps: Sequence[Number | None]) -> list[bool | None]:
    """Which of several paired differences exclude 0 together: p-value below `ALPHA` after Holm's correction.

    Args:
        gaps: what is compared in one table or group. None, a pair that can't be compared, differs and doesn't count.

    Returns:
        one verdict each; `UNDECIDED` where no p-value that the images and resamples allow would be small enough.
    """
    adjusted = holm([float("nan") if gap is None else gap.p for gap in gaps])
    verdicts: list[bool | None] = []
    for gap, p in zip(gaps, adjusted):
        known = gap is None or not p >= ALPHA or gap.p > gap.least_p
        verdicts.append(not p >= ALPHA if known else UNDECIDED)
    return verdicts


Entry = Number | str | None


def defined(number: Number | None) -> Number | None:
    """The number, None where its figure is undefined."""
    return None if number is None or number.value != number.value else number


@dataclass(frozen=True)
class Column:
    """A column of entries.

    Attributes:
        header: levels from the top, e.g. ``("1-shot", "Mean")``; neighbours with equal upper levels share them.
        minor: its intervals are left out where a table must be narrow.
    """

    header: tuple[str, ...]
    minor: bool = False


@dataclass(frozen=True)
class Row:
    """Labels and entries of one row.

    Attributes:
        labels, entries: in the order of the table's labels and columns.
        cite: BibTeX key of a row of published figures, which is typeset separately; else ``""``.
    """

    labels: tuple[str, ...]
    entries: tuple[Entry, ...]
    cite: str = ""


Labelled = tuple[Row, tuple[str, ...]]  # a row with the labels to print


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table before it is text.

    Attributes:
        name: file name and LaTeX label.
        caption: one sentence.
        labels: headers of the label columns; rows with an equal first label form a group.
        columns, rows: in order.
        notes: what a reader must know, below the table.
        stacked: in LaTeX intervals are below their figures, for tables of many columns; else beside them.
    """

    name: str
    caption: str
    labels: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    stacked: bool = False

    def __post_init__(self) -> None:
        assert len({len(column.header) for column in self.columns}) <= 1, f"{self.name}: headers of different depth"
        for row in self.rows:
            assert len(row.labels) == len(self.labels) and len(row.entries) == len(self.columns), (self.name, row)


def figure(entry: Entry) -> str:
    """An entry's main text; differences are signed."""
    if entry is None:
        return MISSING
    if isinstance(entry, str):
        return entry
    if entry.value != entry.value:
        return MISSING
    return _decimal(entry.value, entry)


def interval(entry: Entry) -> str:
    """An entry's interval, e.g. ``[60.1, 64.0]``, empty where it has none."""
    if not isinstance(entry, Number) or entry.low != entry.low or entry.value != entry.value:
        return ""
    return f"[{_decimal(entry.low, entry)}, {_decimal(entry.high, entry)}]"


def spread(entry: Number) -> str:
    """The standard deviation over seeds, e.g. ``±0.4``, empty for a single seed."""
    return "" if entry.std is None else f"±{entry.std:.{entry.decimals}f}"


def _decimal(value: float, entry: Number) -> str:
    text = f"{value:{'+' if entry.difference else ''}.{entry.decimals}f}"
    text = text[1:] if entry.difference and float(text) == 0 else text
    return text.replace("-", "−")


def to_markdown(table: Table, *, notes: bool = True, fit: int = 0) -> str:
    """GitHub's Markdown, its columns padded so that it also reads in a terminal.

    Args:
        table: what to write.
        notes: write the notes too.
        fit: if lines were longer than this, leave out first the intervals of minor columns, then these columns, and
            wrap notes (0: any length).
    """
    lines = _markdown_lines(table, bare=False)
    if fit and len(lines[0]) > fit:
        lines = _markdown_lines(table, bare=True)
    major = [i for i, column in enumerate(table.columns) if not column.minor]
    if fit and len(lines[0]) > fit and major:
        rows = tuple(replace(row, entries=tuple(row.entries[i] for i in major)) for row in table.rows)
        lines = _markdown_lines(replace(table, columns=tuple(table.columns[i] for i in major), rows=rows), bare=False)
    text = [_markdown(table.caption), "", *lines]
    if table.notes and notes:
        items = [f"* {_markdown(note)}" for note in table.notes]
        text += ["", *(textwrap.fill(item, fit, subsequent_indent="  ") if fit else item for item in items)]
    return "\n".join(text) + "\n"


def _markdown_lines(table: Table, *, bare: bool) -> list[str]:
    headers = [*table.labels, *(" ".join(part for part in column.header if part) for column in table.columns)]
    lines = [[_markdown(header) for header in headers]]
    for row, labels in with_labels(table):
        texts = [_markdown_entry(entry, bare and column.minor) for column, entry in zip(table.columns, row.entries)]
        cite = f" [{row.cite}]" if row.cite else ""
        lines.append([*(_markdown(label) for label in labels[:-1]), _markdown(labels[-1] + cite), *texts])
    widths = [max(len(line[i]) for line in lines) for i in range(len(headers))]
    left = len(table.labels)

    def join(cells: Sequence[str]) -> str:
        padded = [cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths))]
        return f"| {' | '.join(padded)} |"

    rule = [f":{'-' * (w - 1)}" if i < left else f"{'-' * (w - 1)}:" for i, w in enumerate(widths)]
    return [join(lines[0]), f"| {' | '.join(rule)} |", *map(join, lines[1:])]


def _markdown_entry(entry: Entry, bare: bool) -> str:
    text = _markdown(figure(entry))
    if not isinstance(entry, Number):
        return text
    text = f"**{text}**" if entry.best else f"_{text}_" if entry.second else text
    if spread(entry):
        text += f" {spread(entry)}"
    if not bare and interval(entry):
        text += f" {interval(entry)}"
    return f"{text} *" if entry.difference and entry.excludes_zero else text


def _markdown(text: str) -> str:
    for special in ("\\", "|", "*", "`", "<"):
        text = text.replace(special, f"\\{special}")
    return text.replace("\n", " ")


def to_csv(table: Table) -> str:
    """One line an entry, with everything that is known of it, figures to the last digit."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    labels = [label.lower().replace(" ", "_") for label in table.labels]
    writer.writerow(["table", *labels, "column", *FIELDS])
    for row in table.rows:
        for column, entry in zip(table.columns, row.entries):
            place = [table.name, *row.labels, " / ".join(part for part in column.header if part)]
            facts: list[object] = [""] * 10
            keys = ""
            if isinstance(entry, Number):
                std = "" if entry.std is None else repr(entry.std)
                numbers = [repr(float(value)) for value in (entry.value, entry.low, entry.high)]
                sure = [_yes(entry.excludes_zero), repr(float(entry.p))] if entry.difference else ["", ""]
                marks = [_yes(entry.best), _yes(entry.second), *sure]
                facts, keys = [*numbers, std, entry.seeds, entry.episodes, *marks], " ".join(entry.keys)
            facts = facts if not row.cite else [*facts[:3], "", "", "", "", "", "", ""]
            writer.writerow([*place, *facts, figure(entry), keys or row.cite])
    return buffer.getvalue()


def from_csv(text: str, *, caption: str = "", stacked: bool = False) -> Table:
    """The table that `to_csv` wrote, but for its caption, its notes and which of its columns are minor.

    Raises:
        UserError: no such CSV.
    """
    lines = list(csv.reader(io.StringIO(text)))
    header, body = (lines[0], lines[1:]) if lines else ([], [])
    if "column" not in header or tuple(header[header.index("column") + 1 :]) != FIELDS or not body:
        raise UserError(f"not a table of this project: its CSV has columns table, labels, column, {', '.join(FIELDS)}")
    depth = header.index("column")
    places = dict.fromkeys(tuple(line[1:depth]) for line in body)
    names = list(dict.fromkeys(line[depth] for line in body))
    found = {(tuple(line[1:depth]), line[depth]): dict(zip(FIELDS, line[depth + 1 :])) for line in body}
    rows = []
    for labels in places:
        entries = [found[labels, name] for name in names]
        cites = {e["keys"] for e in entries if not e["seeds"] and e["keys"]}
        rows.append(Row(labels, tuple(map(_entry, entries)), next(iter(cites), "")))
    levels = max(name.count(" / ") for name in names)
    columns = [Column(("",) * (levels - name.count(" / ")) + tuple(name.split(" / "))) for name in names]
    labels = tuple(label.replace("_", " ").capitalize() for label in header[1:depth])
    return Table(
        name=body[0][0], caption=caption, labels=labels, columns=tuple(columns), rows=tuple(rows), stacked=stacked
    )


def _entry(facts: dict[str, str]) -> Entry:
    if not facts["value"]:
        return None if facts["text"] == MISSING else facts["text"]
    seeds = int(facts["seeds"] or 1)
    return Number(
        value=float(facts["value"]), low=float(facts["low"]), high=float(facts["high"]), seeds=seeds,
        std=float(facts["std"]) if facts["std"] else None, episodes=int(facts["episodes"] or 0),
        keys=tuple(facts["keys"].split()) if facts["seeds"] else (), difference=facts["excludes_0"] != "",
        p=float(facts["p"] or "nan"), best=facts["best"] == "yes", second=facts["second"] == "yes",
        decimals=len(facts["text"].partition(".")[2]) if facts["text"] != MISSING else 1,
    )  # fmt: skip


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def with_labels(table: Table) -> list[Labelled]:
    """Each row with the labels to print: one that repeats the row above, as do all before it, is left blank."""
    rows: list[Labelled] = []
    before: tuple[str, ...] = ()
    for row in table.rows:
        same = 0
        while same < len(row.labels) - 1 and row.labels[: same + 1] == before[: same + 1]:
            same += 1
        rows.append((row, ("",) * same + row.labels[same:]))
        before = row.labels
    return rows
