"""The field's published results: ``published.csv``, how it is checked, and how it is made from a raw collection.

A figure is one number as some source printed it; nothing is corrected and nothing dropped. Sources that print the same
figure share a row; figures that contradict each other, and means that aren't those of their folds, say so in `status`.

    python -m analysis.published.table --check
    python -m analysis.published.table --raw RAW.csv --out analysis/published/published.csv
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diffup.errors import UserError, command_line

PUBLISHED = Path(__file__).parent / "published.csv"
BIB = Path(__file__).parent / "references.bib"
NAMES = Path(__file__).parent / "names.csv"  # spellings; key, protocol and its reason of each method
RAW = ("method", "venue", "year", "dataset", "backbone", "annotation", "shots", "fold", "metric", "value", "source")
COLUMNS = (
    "method", "key", "venue", "year", "dataset", "backbone", "annotation", "shots", "fold", "metric", "value",
    "protocol", "in_context", "source", "status", "note",
)  # fmt: skip
SERIES = [
    "method",
    "in_context",
    "dataset",
    "backbone",
    "annotation",
    "shots",
    "metric",
]  # folds and mean of one result
FIGURE = [*SERIES, "fold"]
FOLDS = ("0", "1", "2", "3")
KNOWN = {
    "dataset": {"pascal5i", "coco20i", "coco20i_panet", "fss1000", "coco2pascal"},
    "annotation": {"mask", "box", "scribble", "text", "mask+text", "none"},
    "metric": {"miou", "fb_iou"},
    "fold": {*FOLDS, "mean"},
    "protocol": {"", "hsnet", "pfenet", "bam", "panet"},
    "in_context": {"yes", "no"},
}
OK, CONFLICT, NO_AVERAGE = "ok", "conflict", "folds_do_not_average"
IN_CONTEXT = " [in-context]"
UNSTATED = "unstated"
TOLERANCE = 0.1  # percentage points between a printed mean and the mean of the printed folds
ENTRIES = {"article", "inproceedings", "misc"}
Row = dict[str, Any]


def load_published(path: Path | None = None) -> pd.DataFrame:
    """Published figures, one a row, columns `COLUMNS`: `value` in percent, `shots` and `year` integers, others text.

    Args:
        path: a file of this form; the one that the package ships by default.

    Raises:
        UserError: it can't be read, or isn't of this form.
    """
    path = PUBLISHED if path is None else path
    try:
        frame = _read(path)
        _has_columns(frame, COLUMNS)
        return frame.astype({"value": float, "shots": int, "year": int})
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: {error}; make it with python -m analysis.published.table --raw RAW.csv --out"
        ) from error


def normalise(raw: pd.DataFrame) -> pd.DataFrame:
    """Published figures (columns `COLUMNS`) from a raw collection (columns `RAW`), in an order of their own.

    A backbone that a source leaves open is named where all its figures of a result are those of one stated backbone.
    Figures that differ by printed decimals only (46.23 and 46.2) are one, at the finer precision.

    Raises:
        UserError: a column is missing, a value is no number, or a method, data set, annotation or metric is unknown.
    """
    _has_columns(raw, RAW)
    names = {(name["kind"], name["raw"]): name for name in _records(_read(NAMES))}
    rows = [_spelled(row, names) for row in _records(raw.loc[:, list(RAW)].astype(str))]
    _name_backbones(rows)
    for series in _grouped(rows, [*SERIES, "protocol", "source"]):
        _compare_mean(series)
    merged = [row for figures in _grouped(rows, FIGURE) for row in _merged(figures)]
    for figures in _grouped(merged, FIGURE):
        _mark_conflicts(figures)
    for row in merged:
        row |= {"source": ";".join(row["sources"]), "note": "; ".join(dict.fromkeys(filter(None, row["notes"])))}
    frame = pd.DataFrame(merged, columns=list(COLUMNS))
    order = ["dataset", "metric", "annotation", "shots", "year", "method", "in_context", "backbone", "fold", "value"]
    return frame.sort_values([*order, "protocol", "source"], kind="stable", ignore_index=True)


def check_published(frame: pd.DataFrame, *, bib: Path = BIB) -> list[str]:
    """What is wrong with published figures: empty if nothing is.

    Contradictions and means that aren't those of their folds are no problem where `status` says so.

    Raises:
        UserError: a column is missing, or the bibliography can't be read.
    """
    _has_columns(frame, COLUMNS)
    entries, problems = bibliography(bib)
    rows = _records(frame)
    for row in rows:
        value = float(row["value"])
        wrong = [f"unknown {name} {row[name]!r}" for name, known in KNOWN.items() if row[name] not in known]
        if not 0 <= value <= 100:
            wrong.append(f"{value} is no percentage")
        elif 0 < value <= 1:
            wrong.append(f"{value} looks like a fraction; multiply it by 100")
        if row["key"] not in entries:
            wrong.append(f"key {row['key']!r} is not in {bib.name}")
        if not set(row["status"].split(";")) <= {OK, CONFLICT, NO_AVERAGE}:
            wrong.append(f"unknown status {row['status']!r}")
        problems += [f"{_named(row)}: {what}" for what in wrong]
    for figures in _grouped(rows, FIGURE):
        values = Counter((row["protocol"], float(row["value"])) for row in figures)
        problems += [f"{_named(figures[0])}: duplicate {value}" for (_, value), count in values.items() if count > 1]
        several = len({value for _, value in values}) > 1
        for row in figures:
            if several != (CONFLICT in row["status"]):
                problems.append(
                    f"{_named(row)}: {row['value']} is {'not ' if several else ''}marked as {CONFLICT}, and there is "
                    f"{'another' if several else 'no other'} value"
                )
    return problems + _wrong_means(rows)


def rows_for(
    frame: pd.DataFrame, *, dataset: str, shots: int, metric: str = "miou", annotation: str = "mask"
) -> pd.DataFrame:
    """Published results as a table: one row a method and backbone; sources that contradict each other have rows apart.

    Columns: method, backbone, key, venue, year, the folds ``"0"`` to ``"3"`` and ``"mean"`` (nan: not printed),
    protocol, in_context, conflict (some figure of the row is contradicted by another row), averages (the mean is that
    of the folds, or can't be told), source.

    Raises:
        UserError: no such data set, metric or annotation.
    """
    for name, value in (("dataset", dataset), ("metric", metric), ("annotation", annotation)):
        if value not in KNOWN[name]:
            raise UserError(f"no published {name} {value!r}; there are: {', '.join(sorted(KNOWN[name]))}")
    chosen = frame[(frame["dataset"] == dataset) & (frame["shots"] == shots)]
    chosen = chosen[(chosen["metric"] == metric) & (chosen["annotation"] == annotation)]
    table: list[Row] = []
    for figures in _grouped(_by_source(_records(chosen)), SERIES):
        versions: list[list[Row]] = []
        printed = sorted(_grouped(figures, ["source", "protocol"]), key=lambda group: -len(group))
        for group in printed:
            same = next((version for version in versions if _agree(version, group)), None)
            if same is None:
                versions.append(group)
            else:
                same += group
        table += [_wide(version) for version in versions]
    columns = ["method", "backbone", "key", "venue", "year", *FOLDS, "mean", "protocol", "in_context"]
    wide = pd.DataFrame(table, columns=[*columns, "conflict", "averages", "source"])
    return wide.sort_values(["year", "method", "in_context", "backbone"], kind="stable", ignore_index=True)


def bibliography(path: Path = BIB) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Entries of a BibTeX file (fields by key, the kind of entry as ``"type"``), and what is wrong with them.

    Raises:
        UserError: it can't be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error}); pass a BibTeX file, or reinstall DiffUp") from error
    entries: dict[str, dict[str, str]] = {}
    problems = []
    for chunk in re.split(r"^@", text, flags=re.MULTILINE)[1:]:
        head = re.match(r"(\w+)\{([^\s,{}]+),", chunk)
        if head is None or chunk.count("{") != chunk.count("}"):
            problems.append(f"{path.name}: an entry that BibTeX can't read: @{chunk.splitlines()[0]}")
            continue
        kind, key = head.group(1).lower(), head.group(2)
        fields = {name.lower(): value for name, value in re.findall(r"^\s*(\w+)\s*=\s*\{(.*)\},?$", chunk, re.M)}
        lacks = [name for name in ("author", "title", "year") if not fields.get(name)]
        problems += [f"{path.name}: {key} appears twice"] if key in entries else []
        problems += [f"{path.name}: {key} is of unknown type @{kind}"] if kind not in ENTRIES else []
        problems += [f"{path.name}: {key} has no {name}" for name in lacks]
        entries[key] = {"type": kind, **fields}
    return entries, problems


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _records(frame: pd.DataFrame) -> list[Row]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _has_columns(frame: pd.DataFrame, names: Iterable[str]) -> None:
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise UserError(f"published results lack the column {', '.join(missing)}; it has {', '.join(frame.columns)}")


def _grouped(rows: Iterable[Row], names: Sequence[str]) -> list[list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(groups.values())


def _named(row: Row) -> str:
    names = ("method", "dataset", "backbone", "annotation", "shots", "metric", "fold")
    return " ".join(str(row[name]) for name in names) + (IN_CONTEXT if row["in_context"] == "yes" else "")


def _spelled(raw: Row, names: Mapping[tuple[str, str], Row]) -> Row:
    """A raw row in our words, with its method's key and protocol; `notes`, `sources` and `decimals` are still apart."""
    method = raw["method"].removesuffix(IN_CONTEXT)
    row: Row = {"method": method, "fold": raw["fold"], "status": OK, "decimals": len(raw["value"].partition(".")[2])}
    for kind in ("dataset", "annotation", "metric", "method"):
        value = method if kind == "method" else raw[kind]
        if (kind, value) not in names:
            raise UserError(
                f"{method}: unknown {kind} {value!r}; add it to {NAMES.name}, beside analysis/published/table.py"
            )
        row[kind] = names[kind, value]["name"]
    if "PANet own COCO split" in raw["source"]:  # contiguous blocks of classes: other folds than COCO-20i's
        row["dataset"] = "coco20i_panet"
    try:
        row |= {"value": float(raw["value"]), "shots": int(raw["shots"]), "year": int(raw["year"])}
    except ValueError as error:
        raise UserError(f"{method}, {raw['dataset']}, fold {raw['fold']}: {error}; correct the raw file") from error
    facts = names["method", method]
    protocol, note, in_context = facts["protocol"], facts["note"], raw["method"].endswith(IN_CONTEXT)
    if in_context:  # trained by whoever reports it
        protocol, note = "", "generalist: saw the test classes in training"
    elif "uniform data lists" in raw["source"]:
        protocol, note = "", "run again by SCCAN's authors: scored at HSNet's size, not on its lists"
    elif style := re.search(r"(HSNet|PFENet)-style resize", raw["source"]):
        protocol, note = style.group(1).lower(), "protocol as the source marks it, by the size scored at"
    parts = re.split(r"; (?![^(]*\))", re.sub(r", read_file id \d+", "", raw["source"]))
    remarks = [part for part in parts[1:] if not part.startswith("printed ")]
    source = (parts[0] + (f" [{', '.join(remarks)}]" if remarks else "")).replace(";", ",")
    backbone = names.get(("backbone", raw["backbone"]), {"name": raw["backbone"]})["name"]
    backbone = UNSTATED if raw["backbone"].startswith(UNSTATED) else backbone
    row |= {"key": facts["key"], "venue": facts["venue"] or raw["venue"], "protocol": protocol, "backbone": backbone}
    return {**row, "in_context": "yes" if in_context else "no", "source": source, "sources": [source], "notes": [note]}


def _name_backbones(rows: Sequence[Row]) -> None:
    """Name an unstated backbone where all figures of that source are those of one stated backbone elsewhere."""
    for series in _grouped(rows, [name for name in SERIES if name != "backbone"]):
        stated: dict[str, set[tuple[str, float]]] = {}
        for row in series:
            stated.setdefault(row["backbone"], set()).add((row["fold"], row["value"]))
        for group in _grouped([row for row in series if row["backbone"] == UNSTATED], ["source"]):
            figures = {(row["fold"], row["value"]) for row in group}
            equal = [name for name, known in stated.items() if name != UNSTATED and figures <= known]
            for row in group if len(equal) == 1 else []:
                row["backbone"] = equal[0]
                row["notes"].append("backbone not stated by one source, taken from the one with equal figures")


def _average(figures: Iterable[Row]) -> float:
    """The mean of the four folds; nan if the printed mean agrees once both have its decimals, or if one is missing."""
    values = {row["fold"]: float(row["value"]) for row in figures}
    if not {*FOLDS, "mean"} <= set(values):
        return float("nan")
    decimals = max(1, len(repr(values["mean"]).partition(".")[2]))
    average = float(np.mean([values[fold] for fold in FOLDS]))
    off = abs(round(average, decimals) - values["mean"]) > TOLERANCE + 1e-9
    return round(average + 1e-9, 2) if off else float("nan")


def _compare_mean(series: Sequence[Row]) -> None:
    average = _average(series)
    for row in series:
        if row["fold"] == "mean" and not np.isnan(average):
            row["status"] = NO_AVERAGE
            row["notes"].append(f"the printed folds average {average}")


def _merged(figures: Sequence[Row]) -> list[Row]:
    """One row for each value and protocol of a figure, in the finest precision that some source prints."""
    kept: list[Row] = []
    for row in sorted(figures, key=lambda row: -row["decimals"]):
        same = next((other for other in kept if _same_figure(other, row)), None)
        if same is None:
            kept.append(row)
            continue
        if row["value"] != same["value"]:
            row["notes"].append(f"also printed as {row['value']}")
        same["sources"] = [*same["sources"], *(name for name in row["sources"] if name not in same["sources"])]
        same["notes"] = [*same["notes"], *row["notes"]]
        same["status"] = row["status"] if same["status"] == OK else same["status"]
    return kept


def _same_figure(finer: Row, row: Row) -> bool:
    if row["protocol"] != finer["protocol"]:
        return False
    rounding = 0.5 * 10.0 ** -row["decimals"] if row["decimals"] < finer["decimals"] else 0.0
    return bool(abs(finer["value"] - row["value"]) <= rounding + 1e-9)


def _mark_conflicts(figures: Sequence[Row]) -> None:
    for row in figures:
        others = [other for other in figures if other["value"] != row["value"]]
        for other in others:
            protocol = f", protocol {other['protocol']}" if other["protocol"] != row["protocol"] else ""
            row["notes"].append(f"other value {other['value']} ({', '.join(other['sources'])}{protocol or ''})")
        if others:
            row["status"] = CONFLICT if row["status"] == OK else f"{CONFLICT};{row['status']}"


def _by_source(rows: Iterable[Row]) -> list[Row]:
    return [{**row, "source": source} for row in rows for source in row["source"].split(";")]


def _wrong_means(rows: Iterable[Row]) -> list[str]:
    problems = []
    for series in _grouped(_by_source(rows), [*SERIES, "protocol", "source"]):
        average = _average(series)
        means = [row for row in series if row["fold"] == "mean" and NO_AVERAGE not in row["status"]]
        if means and not np.isnan(average):
            problems.append(f"{_named(means[0])}: {means[0]['value']}, but the folds average {average}")
    return list(dict.fromkeys(problems))


def _agree(version: Iterable[Row], group: Iterable[Row]) -> bool:
    """They share a fold, and each shared fold has one value and protocol."""
    known = {row["fold"]: (row["value"], row["protocol"]) for row in version}
    shared = [row for row in group if row["fold"] in known]
    return bool(shared) and all(known[row["fold"]] == (row["value"], row["protocol"]) for row in shared)


def _wide(version: Sequence[Row]) -> Row:
    first = version[0]
    return {
        **{name: first[name] for name in ("method", "backbone", "key", "venue", "year", "in_context")},
        **dict.fromkeys((*FOLDS, "mean"), float("nan")),
        **{row["fold"]: float(row["value"]) for row in version},
        "protocol": next((row["protocol"] for row in version if row["protocol"]), ""),
        "conflict": any(CONFLICT in row["status"] for row in version),
        "averages": not any(NO_AVERAGE in row["status"] for row in version),
        "source": ";".join(dict.fromkeys(row["source"] for row in version)),
    }


def _report(frame: pd.DataFrame) -> str:
    counts = ", ".join(f"{count} {status}" for status, count in Counter(frame["status"].tolist()).most_common())
    figures = sum(len(source.split(";")) for source in frame["source"])
    return f"{figures} printed figures in {len(frame)} rows of {frame['method'].nunique()} methods: {counts}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 1 if the check finds a problem."""
    parser = argparse.ArgumentParser(description="Published results of few-shot segmentation: check them, or make them")
    parser.add_argument("--check", action="store_true", help="print the problems of the file, then counts")
    parser.add_argument("--file", type=Path, metavar="CSV", help="what --check reads; default: the packaged file")
    parser.add_argument("--raw", type=Path, metavar="CSV", help=f"raw figures, columns {','.join(RAW)}")
    parser.add_argument("--out", type=Path, metavar="CSV", help="where the figures made from --raw go")
    options = parser.parse_args(arguments)
    if (options.raw is None) != (options.out is None) or not (options.check or options.raw):
        parser.error("pass --check, or --raw and --out")
    try:
        if options.raw is not None:
            made = normalise(_read(options.raw))
            made.to_csv(options.out, index=False, lineterminator="\n")
        frame = load_published(options.out or options.file)
        problems = check_published(frame)
    except (OSError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    print(_report(frame))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(command_line(main))
