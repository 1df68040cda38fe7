"""The result store as tables: one row per cell, and the counts of every episode.

A cell that can't be read (half written, damaged, of another schema) is left out with a warning that names the file and
the remedy. A cell that a launch asked for and that has no result stays as a row, so that tables show it as missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
from pyarrow import parquet

from diffup.errors import UserError
from diffup.evaluation.metrics import fb_iou, labels, miou
from diffup.evaluation.stats import EPISODE_COLUMNS, EpisodeCounts

SCHEMA = 1
FIGURES = {"miou": "mIoU", "fb_iou": "FB-IoU"}
TEXTS = (
    "dataset", "dataset_hash", "protocol", "protocol_hash", "annotation", "backbone", "weights", "trained_on",
    "checkpoint", "variant", "trained_dataset",
)  # fmt: skip
NUMBERS = ("fold", "shots", "train_seed", "episode_seed", "episodes")
PROVENANCE = ("git_commit", "code_hash", "manifest_hash", "device")
COSTS = ("backbone_mparams", "encode_gflops", "prior_gflops", "decoder_mparams", "decode_gflops")
NO_RESULT: dict[str, Any] = {
    "status": "unfinished",
    **dict.fromkeys(("miou", "fb_iou", "seconds", *COSTS), float("nan")),
    **dict.fromkeys((*PROVENANCE, "finished", "error", "undefined"), ""),
}
TRAINING = (
    "key", "dataset", "fold", "backbone", "variant", "train_seed", "status", "seconds", "device", "finished", "error",
)  # fmt: skip
COLUMNS = ("key", *TEXTS, *NUMBERS, "method", "class_names", "steps", *NO_RESULT, "launch", "position", "train_steps")
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)
Document = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """A result store, read.

    Attributes:
        root: the folder.
        cells: one row per evaluation cell, columns `COLUMNS`: identity as in ``cell.json`` (`method`, `class_names` and
            `steps` are ``sample.method``, ``input.class_names`` and ``sample.steps``), `status` (finished, failed,
            damaged or unfinished), figures (`COSTS`: of `diffup.models.flops`, per episode) and provenance of finished
            cells (else nan and empty), `undefined`: why a figure of a finished cell is nan, `launch` and `position`:
            number of the latest launch that asked for the cell (-1: none) and its position there, `train_steps` of its
            checkpoint (0: unknown, or none).
        training: one row per training cell, columns `TRAINING`.
        documents: ``cell.json`` of each of these cells, by key.
        counts: counts of the episodes of finished cells, by key.
        warnings: what was left out, where, and what to do.
    """

    root: Path
    cells: pd.DataFrame
    training: pd.DataFrame
    documents: dict[str, Document]
    counts: dict[str, EpisodeCounts]
    warnings: tuple[str, ...]


def load_results(root: Path, *, keys: Iterable[str] | None = None, classes: str = "novel") -> Results:
    """Read all evaluation cells of a result store.

    Args:
        root: the result store.
        keys: only these cells; None: all.
        classes: ``"novel"``: all cells but those on held-out base classes, which no table of results may mix with the
            others; or ``"held_out"``: these.

    Raises:
        UserError: no such folder.
    """
    if not root.is_dir():
        raise UserError(f"no results directory {root}; pass the one that a grid script printed (its --results)")
    warnings: list[str] = []
    asked, positions = _launches(root, warnings)
    documents, rows, training, counts = {}, [], [], {}
    steps: dict[str, int] = {}
    for key, document in {**asked, **dict(_cells(root, warnings))}.items():
        if document.get("kind") == "train":
            training.append(_training(root / key, key, document))
            with suppress(*UNREADABLE):
                steps[key] = int(document["train"]["steps"])
            continue
        if (document.get("classes") == "held_out") != (classes == "held_out"):
            continue
        try:
            row = _identity(key, document)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            warnings.append(
                f"{root / key / 'cell.json'}: no evaluation cell of this version ({type(error).__name__}: {error}); "
                f"left out. Use the version of DiffUp that wrote it, or another results directory"
            )
            continue
        outcome, episodes = _outcome(root / key, key, warnings)
        if episodes is not None:
            counts[key] = episodes
        launch, position = positions.get(key, (-1, 0))
        documents[key] = document
        rows.append({**row, **NO_RESULT, **outcome, "launch": launch, "position": position})
    rows = [{**row, "train_steps": steps.get(row["checkpoint"], 0)} for row in rows]
    cells = pd.DataFrame(rows, columns=list(COLUMNS)).sort_values("key", ignore_index=True)
    trained = pd.DataFrame(training, columns=list(TRAINING)).sort_values("key", ignore_index=True)
    results = Results(root, cells, trained, documents, counts, tuple(warnings))
    return results if keys is None else only(results, keys)


def only(results: Results, keys: Iterable[str]) -> Results:
    """The results of these cells, e.g. those of one grid in a store of several."""
    return replace(results, cells=where(results.cells, key=set(keys)).reset_index(drop=True))


def where(cells: pd.DataFrame, **axes: object) -> pd.DataFrame:
    """The cells with these values, e.g. ``where(cells, fold=0, shots=[1, 5], annotation="mask")``.

    Raises:
        UserError: no such column.
    """
    for name, value in axes.items():
        if name not in cells.columns:
            raise UserError(f"cells have no column {name!r}; columns are {', '.join(cells.columns)}")
        values = value if isinstance(value, list | tuple | set | frozenset) else [value]
        cells = cells[cells[name].isin(list(values))]
    return cells


def read_episodes(root: Path, keys: Iterable[str]) -> pd.DataFrame:
    """All columns of the episode tables of these cells, concatenated, with a column `key`."""
    tables = [pd.read_parquet(root / key / "episodes.parquet").assign(key=key) for key in keys]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def class_names(results: Results, keys: Iterable[str]) -> dict[int, str]:
    """Names of the classes that these cells test, by class; equal names get their number (`metrics.labels`)."""
    names: dict[int, str] = {}
    for key in keys:
        if set(results.counts[key].class_id.tolist()) - set(names):
            table = pd.read_parquet(results.root / key / "episodes.parquet", columns=["class_id", "class_name"])
            names |= dict(zip(table["class_id"].astype(int), table["class_name"].astype(str)))
    return labels(names)


def launch_keys(root: Path, name: str) -> list[str]:
    """Keys of the cells that a launch asked for.

    Raises:
        UserError: no such launch, or its file can't be read.
    """
    path = root / "launches" / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.json"))) or "none"
        raise UserError(f"no launch {name!r} in {root}; there are: {known}")
    try:
        return [str(item["key"]) for item in json.loads(path.read_bytes())["cells"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} can't be read: {error}; name another launch, or none for all cells") from error


def _launches(root: Path, warnings: list[str]) -> tuple[dict[str, Document], dict[str, tuple[int, int]]]:
    """Documents of the cells that launches asked for, and each key's latest launch and position in it.

    ``launches/<name>.json`` holds ``started`` and ``cells``, each the document of a ``cell.json``.
    """
    read: list[tuple[str, str, list[Document]]] = []
    for path in sorted((root / "launches").glob("*.json")):
        try:
            launch = json.loads(path.read_bytes())
            read.append((str(launch["started"]), path.name, [{**cell, "key": cell["key"]} for cell in launch["cells"]]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.append(
                f"{path}: can't be read ({_what(error)}); cells that only it names are not shown as missing"
            )
    asked: dict[str, Document] = {}
    positions: dict[str, tuple[int, int]] = {}
    for number, (_, _, cells) in enumerate(sorted(read, key=lambda launch: launch[:2])):
        for position, document in enumerate(cells):
            asked[str(document["key"])] = document
            positions[str(document["key"])] = (number, position)
    return asked, positions


def _what(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


def _cells(root: Path, warnings: list[str]) -> Iterator[tuple[str, Document]]:
    for path in sorted(root.glob("*/cell.json")):
        if path.parent.name.startswith("."):
            continue
        try:
            document = json.loads(path.read_bytes())
            if document["key"] != path.parent.name:
                raise ValueError(f"it is the cell {document['key']!r}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.append(f"{path}: can't be read ({error}); left out. Run the grid again, it makes the cell anew")
            continue
        yield path.parent.name, document


def _identity(key: str, document: Document) -> Document:
    texts = {name: str(document[name] if name != "trained_dataset" else document.get(name, "")) for name in TEXTS}
    numbers = {name: int(document[name]) for name in NUMBERS}
    method, class_names = str(document["sample"]["method"]), str(document["input"]["class_names"])
    steps = int(document["sample"].get("steps", 0))
    return {"key": key, **texts, **numbers, "method": method, "class_names": class_names, "steps": steps}


def _outcome(folder: Path, key: str, warnings: list[str]) -> tuple[Document, EpisodeCounts | None]:
    try:
        text = (folder / "result.json").read_bytes()
    except OSError:
        return _without_result(folder, warnings), None
    try:
        result = json.loads(text)
        if result["schema"] != SCHEMA:
            raise ValueError(f"schema {result['schema']!r} is not {SCHEMA}, the one that this version of DiffUp reads")
        if result["key"] != key or result["status"] != "finished":
            raise ValueError("it is not the result of this cell")
        named = result.get("files", {}).get("episodes.parquet", {})
        episodes = _episode_counts(folder / "episodes.parquet", named.get("sha256", ""))
        reasons: dict[str, str] = {}
        figures = {name: _figure(result, name, reasons) for name in FIGURES}
        _check_figures(figures, episodes)
    except UNREADABLE as error:
        what = _what(error)
        warnings.append(f"{folder / 'result.json'}: {what}; left out. Run the grid again, it makes the cell anew")
        return {"status": "damaged", "error": what}, None
    warnings += [f"{folder}: {FIGURES[name]} is undefined, {reason}" for name, reason in reasons.items()]
    provenance = result.get("provenance", {})
    return {
        "status": "finished",
        **figures,
        "seconds": float(result["metrics"].get("seconds", "nan")),
        **{name: float(provenance.get("cost", {}).get(name, "nan")) for name in COSTS},
        **{name: str(provenance.get(name) or "") for name in PROVENANCE},
        "finished": str(result.get("finished", "")),
        "undefined": "; ".join(f"{FIGURES[name]}: {reason}" for name, reason in reasons.items()),
    }, episodes


def _figure(result: Document, name: str, reasons: dict[str, str]) -> float:
    """A figure, nan where it is undefined; the reason is then added. Earlier versions wrote NaN without a reason."""
    why = result.get("undefined", {}).get(name, "")
    value = result["metrics"].get(name) if why else result["metrics"][name]
    if value is not None and not np.isnan(value):
        return float(value)
    reasons[name] = str(why) or "some class of the fold has no episode; use more episodes"
    return float("nan")


def _training(folder: Path, key: str, document: Document) -> Document:
    """A row of `Results.training`; what the file lacks stays empty."""
    row = {"key": key, **{name: document.get(name, "") for name in TRAINING[1:6]}, "device": "", "error": ""}
    try:
        result = json.loads((folder / "result.json").read_bytes())
        row |= {"seconds": float(result["metrics"].get("seconds", "nan")), "finished": str(result.get("finished", ""))}
        return row | {"status": str(result["status"]), "device": str(result.get("provenance", {}).get("device", ""))}
    except UNREADABLE:
        return row | {"seconds": float("nan"), "finished": "", **_without_result(folder, [])}


def _without_result(folder: Path, warnings: list[str]) -> Document:
    try:
        return {"status": "failed", "error": str(json.loads((folder / "error.json").read_bytes())["error"])}
    except (OSError, ValueError, KeyError, TypeError):
        if (folder / "episodes.parquet").exists():
            warnings.append(f"{folder}: half written, it has episodes and no result.json; left out. Run the grid again")
        return {"status": "unfinished"}


def _episode_counts(path: Path, sha256: str) -> EpisodeCounts:
    content = path.read_bytes()
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path.name} is not the file that result.json names")
    try:
        with parquet.ParquetFile(pyarrow.BufferReader(content)) as file:  # a third of pandas' time, for many cells
            table = file.read(columns=list(EPISODE_COLUMNS), use_threads=False)
        counts = EpisodeCounts.of({name: table.column(name).to_numpy() for name in EPISODE_COLUMNS})
    except Exception as error:  # pyarrow raises many types for an unreadable file
        raise ValueError(f"{path.name} can't be read: {error}") from error
    if not len(counts):
        raise ValueError(f"{path.name} holds no episode")
    return counts


def _check_figures(figures: dict[str, float], episodes: EpisodeCounts) -> None:
    """Defined figures in ``result.json`` must be those of its episodes; episodes alone don't show an undefined mIoU."""
    inter, union, inter_bg, union_bg = episodes.counts.T
    classes = sorted(set(episodes.class_id.tolist()))
    expected = {
        "miou": miou(episodes.class_id, inter, union, classes),
        "fb_iou": fb_iou(inter, union, inter_bg, union_bg),
    }
    for name, value in figures.items():
        if not np.isnan(value) and not np.isclose(value, expected[name], rtol=0, atol=1e-6):
            raise ValueError(f"{name} is {value}, but the episodes give {expected[name]}")
