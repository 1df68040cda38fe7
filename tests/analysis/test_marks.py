"""What is marked in a table, and which claims hold: one correction for the number of comparisons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from analysis.results import load_results
from analysis.tables.differences import claims_table
from analysis.tables.main import main_table
from analysis.tables.places import Task
from analysis.tables.scores import Study, studies
from analysis.tables.table import Number, differs
from diffup.evaluation.stats import holm
from tests.analysis.test_paper import FAST, study_of, tables_of
from tests.helpers.stores import HOME, cell, grid, write_store

ONE_SHOT = Task(1, "mask")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store", grid())


def test_no_number_is_bold_below_one_that_is_not(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is clearly worse than the first; whether the third is, too few episodes tell."""
    study = study_of(store)
    places = [(method, ONE_SHOT) for method in study.shown[:3]]
    numbers = dict(zip(places, (Number(value=60.0), Number(value=50.0), Number(value=40.0))))
    gaps = {places[1]: 0.001, places[2]: 0.6}
    monkeypatch.setattr(Study, "number", lambda self, method, task, *_: numbers[method, task])
    monkeypatch.setattr(
        Study, "difference", lambda self, top, other, *_: Number(value=9.0, low=1.0, difference=True, p=gaps[other])
    )
    marked = study.mark_best(places)
    assert [(one.best, one.second) for one in marked if one] == [(True, False), (False, True), (False, False)]


def test_bold_is_what_cannot_be_told_from_the_best(tmp_path: Path) -> None:
    """Two methods of one quality are both bold, a worse one is not."""
    cells = [cell(), cell(method="prior_mean"), replace(cell(), variant="twin", checkpoint="another", episodes=119)]
    table = main_table(studies(load_results(write_store(tmp_path, cells)), resamples=FAST)[0])
    assert table is not None
    best = {row.labels[1]: row.entries[0].best for row in table.rows if isinstance(row.entries[0], Number)}
    assert best == {"DiffUp": True, "prior mean": False, "twin": True}


@pytest.mark.parametrize(("resamples", "methods"), [(100, 4), (2000, 52)])
def test_one_clear_winner_is_bold_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resamples: int, methods: int
) -> None:
    """However many it is compared with, and however few the resamples are."""
    names = [f"method {i}" for i in range(methods)]
    monkeypatch.setattr("tests.helpers.stores.quality", lambda asked: 0.8 if asked.variant == names[0] else 0.3)
    write_store(tmp_path, [cell(variant=name, checkpoint=name) for name in names])
    (study,) = studies(load_results(tmp_path), resamples=resamples)
    table = main_table(study)
    assert table is not None
    best = [row.labels[1] for row in table.rows if isinstance(row.entries[0], Number) and row.entries[0].best]
    assert best == [names[0]]


def test_what_cannot_be_decided_is_not_marked_and_says_so(tmp_path: Path) -> None:
    """One query image a class: the difference is 10 points, and nobody knows whether another image would agree."""
    write_store(tmp_path, [cell(episodes=4), cell(method="prior_mean", episodes=4)])
    tables = tables_of(tmp_path)
    figures = [row.entries[0] for row in tables["main"].rows]
    assert all(isinstance(one, Number) and one.value > 0 and not one.best and not one.second for one in figures)
    assert any(note.startswith("Groups without bold: no p-value") for note in tables["main"].notes)
    assert [row.entries[3] for row in tables["claims"].rows] == ["undecided"]
    assert any(note.startswith("Undecided: no p-value") for note in tables["claims"].notes)
    write_store(tmp_path / "more", [cell(), cell(method="prior_mean")])
    more = tables_of(tmp_path / "more")
    assert not [note for table in more.values() for note in table.notes if note.startswith(("Groups", "Undecided"))]


@given(st.lists(st.floats(1e-9, 1), min_size=1, max_size=8))
@example([0.05])
def test_claims_and_bold_marks_share_one_correction(p_values: list[float]) -> None:
    """What is above the level after Holm's correction differs neither for a claim nor for a mark."""
    gaps = [Number(value=5.0, low=1.0, high=9.0, difference=True, p=p) for p in p_values]
    assert differs(gaps) == [p < 0.05 for p in holm(p_values)]
    assert differs([*gaps, None])[: len(gaps)] == differs(gaps)


def test_claims_are_corrected_for_their_number(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four claims, each with p = 0.02 alone: none holds, though none is called a mere no; one alone does."""
    study = study_of(store)
    gap = Number(value=5.0, low=1.0, high=9.0, difference=True, p=0.02)
    monkeypatch.setattr(Study, "difference", lambda *_, **__: gap)
    table = claims_table(study)
    assert table is not None and [row.entries[3] for row in table.rows] == ["uncorrected"] * 4
    asked = claims_table(replace(study, cells=study.cells[study.cells["backbone"] == HOME].reset_index(drop=True)))
    assert asked is not None and [row.entries[3] for row in asked.rows] == ["yes"]
