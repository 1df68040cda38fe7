"""Reading a result store: what is there, what is missing, and what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.results import COLUMNS, class_names, load_results, read_episodes, where
from diffup.grid.cell import Cell, cell_to_dict
from tests.helpers.stores import BETTER, cell, episodes, grid, write_cell, write_store


def test_one_row_a_cell_with_identity_figures_and_provenance(tmp_path: Path) -> None:
    """Types are those of the grid's axes, and the figures those of the store."""
    asked = cell(shots=5, annotation="box", episodes=40)
    write_cell(tmp_path, asked)
    results = load_results(tmp_path)
    assert tuple(results.cells.columns) == COLUMNS
    row = results.cells.iloc[0]
    assert (row["key"], row["shots"], row["annotation"], row["status"]) == (asked.key(), 5, "box", "finished")
    assert (row["method"], row["class_names"], row["trained_on"]) == ("diffup", "given", "tiny_resnet")
    assert (row["git_commit"], row["code_hash"]) == ("0123456789abcdef", "feedfacecafe")
    stored = json.loads((tmp_path / asked.key() / "result.json").read_text())
    assert row["miou"] == stored["metrics"]["miou"]
    assert results.warnings == ()
    counts, table = results.counts[asked.key()], episodes(asked)
    assert counts.query.tolist() == table["query"].tolist()
    np.testing.assert_array_equal(counts.counts, table[["inter_fg", "union_fg", "inter_bg", "union_bg"]])


def test_filters_read_like_the_axes(tmp_path: Path) -> None:
    """Values, or lists of them; an axis that does not exist is named."""
    cells = load_results(write_store(tmp_path, grid(folds=(0,)))).cells
    assert len(where(cells, backbone=BETTER, shots=[1, 5], annotation="mask", method="diffup")) == 2
    assert where(cells, fold=7).empty
    with pytest.raises(ValueError, match="no column 'shot'"):
        where(cells, shot=1)


def test_a_cell_that_was_asked_for_and_is_missing_is_known(tmp_path: Path) -> None:
    """The launch describes it, so that tables show a place for it."""
    cells = grid(folds=(0,))
    results = load_results(write_store(tmp_path, cells, missing=lambda c: c == cells[3]))
    missing = results.cells.set_index("key").loc[cells[3].key()]
    assert missing["status"] == "unfinished"
    assert (missing["fold"], missing["backbone"]) == (cells[3].fold, cells[3].backbone)
    assert len(results.cells) == len(cells)
    assert len(results.counts) == len(cells) - 1
    assert results.warnings == ()


def test_training_cells_are_no_rows(tmp_path: Path) -> None:
    """A launch names them too."""
    write_store(tmp_path, [cell(episodes=8)])
    launch = json.loads((tmp_path / "launches" / "grid.json").read_text())
    launch["cells"].append({"key": "a" * 12, "kind": "train", "fold": 0})
    (tmp_path / "launches" / "grid.json").write_text(json.dumps(launch))
    assert len(load_results(tmp_path).cells) == 1


def test_failed_cells_say_why(tmp_path: Path) -> None:
    """From ``error.json``."""
    folder = write_cell(tmp_path, cell(episodes=8))
    (folder / "result.json").unlink()
    (folder / "error.json").write_text(json.dumps({"error": "out of memory", "traceback": "", "attempts": 1}))
    row = load_results(tmp_path).cells.iloc[0]
    assert (row["status"], row["error"]) == ("failed", "out of memory")


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change ``result.json``."""
    document = json.loads((folder / "result.json").read_text())
    change(document)
    (folder / "result.json").write_text(json.dumps(document))


def rewrite_episodes(folder: Path, table: pd.DataFrame) -> None:
    """Other episodes, with a result that does not name their hash."""
    table.to_parquet(folder / "episodes.parquet")
    edit(folder, lambda document: document.pop("files"))


DAMAGES: list[tuple[Callable[[Path], object], str, str]] = [
    (lambda f: (f / "result.json").unlink(), "unfinished", "half written"),
    (lambda f: (f / "result.json").write_text('{"schema": 1, "ke'), "damaged", "result.json: Unterminated"),
    (lambda f: edit(f, lambda d: d.update(schema=2)), "damaged", "schema 2 is not 1"),
    (lambda f: edit(f, lambda d: d.pop("metrics")), "damaged", "no 'metrics'"),
    (lambda f: edit(f, lambda d: d.update(key="0" * 12)), "damaged", "not the result of this cell"),
    (lambda f: (f / "episodes.parquet").unlink(), "damaged", "episodes.parquet"),
    (lambda f: (f / "episodes.parquet").write_bytes(b"PAR1"), "damaged", "not the file that result.json names"),
    (lambda f: edit(f, lambda d: d["metrics"].update(miou=12.5)), "damaged", "miou is 12.5, but the episodes give"),
    (lambda f: rewrite_episodes(f, pd.DataFrame({"episode": [0]})), "damaged", "can't be read"),
    (lambda f: rewrite_episodes(f, pd.read_parquet(f / "episodes.parquet").iloc[:0]), "damaged", "no episode"),
]


@pytest.mark.parametrize(("damage", "status", "message"), DAMAGES, ids=[message for _, _, message in DAMAGES])
def test_damaged_cells_are_left_out_with_a_warning(
    tmp_path: Path, damage: Callable[[Path], object], status: str, message: str
) -> None:
    """The warning names the folder, and the other cells are read."""
    bad, good = cell(episodes=8), cell(episodes=8, shots=5)
    damage(write_cell(tmp_path, bad))
    write_cell(tmp_path, good)
    results = load_results(tmp_path)
    assert results.cells.set_index("key")["status"].to_dict() == {bad.key(): status, good.key(): "finished"}
    assert set(results.counts) == {good.key()}
    assert len(results.warnings) == 1
    assert message in results.warnings[0]
    assert bad.key() in results.warnings[0]


@pytest.mark.parametrize("text", ["{", "[]", '{"key": "another"}'])
def test_unreadable_cell_files_are_named(tmp_path: Path, text: str) -> None:
    """Nothing is known of such a cell, so it is no row."""
    folder = write_cell(tmp_path, cell(episodes=8))
    (folder / "cell.json").write_text(text)
    results = load_results(tmp_path)
    assert results.cells.empty
    assert str(folder / "cell.json") in results.warnings[0]


def test_cells_of_another_version_are_named(tmp_path: Path) -> None:
    """A field that this version needs is not there."""
    asked = cell(episodes=8)
    folder = write_cell(tmp_path, asked)
    document = {**cell_to_dict(asked), "key": asked.key()}
    del document["sample"]
    (folder / "cell.json").write_text(json.dumps(document))
    results = load_results(tmp_path)
    assert results.cells.empty
    assert "KeyError: 'sample'" in results.warnings[0]


def test_an_undefined_figure_is_no_damage(tmp_path: Path) -> None:
    """A class without an episode: nan in the store, and a warning that says what to do."""
    folder = write_cell(tmp_path, cell(episodes=8))
    edit(folder, lambda document: document["metrics"].update(miou=float("nan")))
    results = load_results(tmp_path)
    assert results.cells.iloc[0]["status"] == "finished"
    assert "use more episodes" in results.warnings[0]


def test_a_broken_launch_is_a_warning(tmp_path: Path) -> None:
    """Cells are read all the same."""
    write_store(tmp_path, [cell(episodes=8)])
    (tmp_path / "launches" / "b.json").write_text("{}")
    results = load_results(tmp_path)
    assert len(results.cells) == 1
    assert "b.json" in results.warnings[0]


def test_the_latest_launch_that_names_a_cell_counts(tmp_path: Path) -> None:
    """Launches are ordered by their start, not by name."""
    first, second = cell(episodes=8), cell(episodes=8, shots=5)
    write_store(tmp_path, [first, second])
    newer = {"started": "2025-06-01T00:00:00+00:00", "cells": [{**cell_to_dict(second), "key": second.key()}]}
    (tmp_path / "launches" / "a.json").write_text(json.dumps(newer))
    cells = load_results(tmp_path).cells.set_index("key")
    assert cells["launch"].to_dict() == {first.key(): 0, second.key(): 1}


def test_episodes_are_a_tidy_frame(tmp_path: Path) -> None:
    """One row an episode, with the key of its cell."""
    asked = cell(episodes=8)
    other = replace(asked, shots=5)
    write_store(tmp_path, [asked, other])
    table = read_episodes(tmp_path, [asked.key(), other.key()])
    assert len(table) == 16
    assert set(table["key"]) == {asked.key(), other.key()}
    assert read_episodes(tmp_path, []).empty


def test_no_such_directory(tmp_path: Path) -> None:
    """The message names it."""
    with pytest.raises(ValueError, match="no results directory"):
        load_results(tmp_path / "nowhere")


def test_a_figure_is_absent_with_its_reason(tmp_path: Path) -> None:
    """The other one is there; without a reason a figure that is not there is damage."""
    folder = write_cell(tmp_path, cell(episodes=8), undefined={"miou": "no episode of heron"})
    results = load_results(tmp_path)
    row = results.cells.iloc[0]
    assert np.isnan(row["miou"]) and row["fb_iou"] > 0
    assert (row["status"], row["undefined"]) == ("finished", "mIoU: no episode of heron")
    assert results.warnings == (f"{folder}: mIoU is undefined, no episode of heron",)
    edit(folder, lambda document: document.pop("undefined"))
    assert load_results(tmp_path).cells.iloc[0]["status"] == "damaged"


def test_classes_of_one_name_are_two(tmp_path: Path) -> None:
    def same(asked: Cell) -> pd.DataFrame:
        table = episodes(asked)
        return table.assign(class_name=table["class_name"].replace({"class 1": "wren", "class 3": "wren"}))

    write_cell(tmp_path, cell(episodes=8), episodes_of=same)
    results = load_results(tmp_path)
    names = class_names(results, results.counts)
    assert names == {0: "class 0", 1: "wren (class 1)", 2: "class 2", 3: "wren (class 3)"}
