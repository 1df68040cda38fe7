"""What figures, tables and the report compare with: the best that needs no training, and methods from elsewhere."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.paper import write_all
from analysis.plots.distributions import classes_plot
from analysis.plots.study import shots_plot, upgrade_plot
from analysis.report.summary import answer
from analysis.results import load_results
from analysis.tables.main import upgrade_table
from analysis.tables.rivals import ONE_SHOT, baseline, best_beside
from analysis.tables.scores import Study, studies
from diffup.config import SampleConfig
from diffup.grid.axes import OWN
from diffup.grid.cell import Cell
from tests.helpers.stores import BETTER, HOME, cell, write_store

QUALITY = {"diffup": 0.6, "evidence": 0.55, "prior_mean": 0.4, "adapter": 0.5}
SHOTS = (1, 5)


def rivals(backbone: str) -> list[Cell]:
    """DiffUp and two training-free methods on a backbone."""
    made: list[Cell] = []
    for shots in SHOTS:
        of = {"backbone": backbone, "shots": shots}
        made += [cell(**of), cell(**of, method="prior_mean")]
        made.append(cell(**of, method="evidence", variant="evidence_objects"))
    return made


def own_method() -> Cell:
    sample = SampleConfig(method="adapter", function="my_pkg.mine:segment", function_version="1")
    return replace(cell(method="prior_mean", backbone=OWN.name, weights=OWN.weights, variant="segment"), sample=sample)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    return made(tmp_path, monkeypatch, [*rivals(HOME), *rivals(BETTER), own_method()])


def made(folder: Path, monkeypatch: pytest.MonkeyPatch, cells: list[Cell]) -> Study:
    monkeypatch.setattr(
        "tests.helpers.stores.quality", lambda c: QUALITY[c.sample.method] + 0.1 * (c.backbone == BETTER)
    )
    (found,) = studies(load_results(write_store(folder / "store", cells)), resamples=200)
    return found


def test_figures_and_the_upgrade_compare_with_the_best_that_needs_no_training(study: Study) -> None:
    assert baseline(study, ONE_SHOT) == "evidence_objects"
    table = upgrade_table(study)
    assert table is not None
    assert [column.header[0] for column in table.columns[2:5]] == ["best map", "Δ of best map", "DiffUp − best map"]
    assert any(
        note.startswith("The best map without training, of what is finished: evidence, bank, objects;")
        for note in table.notes
    )
    upgrade, shots, classes = upgrade_plot(study), shots_plot(study), classes_plot(study, {})
    assert upgrade is not None and shots is not None and classes is not None
    assert set(upgrade.data["series"]) >= {"evidence, bank, objects", "prior mean"}
    assert f"{HOME}, evidence, bank, objects" in set(shots.data["series"])
    leads = classes.data[classes.data["series"] == "difference"]["y"].dropna()
    assert 0 < leads.mean() < 15, "against 0.55, not the prior mean's 0.4"


def test_a_task_that_the_best_does_not_have_is_compared_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As text, which the maps from evidence don't read in grids: each figure stands with what it is compared with."""
    text = [cell(backbone=b, shots=0, annotation="text") for b in (HOME, BETTER)]
    free = [cell(backbone=b, shots=0, annotation="text", method="prior_mean") for b in (HOME, BETTER)]
    table = upgrade_table(made(tmp_path, monkeypatch, [*rivals(HOME), *rivals(BETTER), *text, *free]))
    assert table is not None and table.columns[2].header == ("best map",)
    assert all(row.entries[2] is not None for row in table.rows)
    (note,) = (note for note in table.notes if note.startswith("The best map without training"))
    assert "prior mean (0-shot text)" in note and "evidence, bank, objects (1-shot mask, 5-shot mask)" in note


def test_a_rival_of_any_name_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [
        replace(c, variant="my_map") if c.variant == "evidence_objects" else c for c in rivals(HOME) + rivals(BETTER)
    ]
    store = write_store(tmp_path / "store", [*cells, own_method()])
    (found,) = studies(load_results(store), resamples=50)
    table = upgrade_table(found)
    assert table is not None and table.columns[2].header == ("my_map",)
    assert write_all(store, tmp_path / "out", resamples=50)


def test_without_rivals_there_are_no_columns_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = upgrade_table(made(tmp_path, monkeypatch, [cell(), cell(backbone=BETTER)]))
    assert table is not None and [column.header[0] for column in table.columns] == ["DiffUp", "Δ to training backbone"]
    assert all(len(row.entries) == 2 for row in table.rows)
    assert not any("without training" in note for note in table.notes)


def test_the_report_opens_with_the_lead_over_it_and_with_what_came_from_elsewhere(study: Study) -> None:
    lines = answer(study)
    best = "evidence, bank, objects, the best there without training"
    for backbone in (BETTER, HOME):
        assert any(re.fullmatch(rf"DiffUp on {backbone}: \+[0-9.]+ \[[0-9., ]+\] over {best}", line) for line in lines)
    assert any(re.fullmatch(rf"segment [0-9.]+, −[0-9.]+ \[[−0-9., ]+\] against DiffUp on {BETTER}", x) for x in lines)


def test_without_a_trained_method_a_foreign_one_meets_the_best_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [c for name in (HOME, BETTER) for c in rivals(name) if not c.trained_on]
    (line,) = answer(made(tmp_path, monkeypatch, [*free, own_method()]))
    assert re.fullmatch(rf"segment [0-9.]+, −[0-9.]+ \[[−0-9., ]+\] against evidence, bank, objects on {BETTER}", line)


def test_a_method_on_fewer_backbones_is_no_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [c for c in rivals(BETTER) if c.variant != "evidence_objects"]
    some = made(tmp_path / "one", monkeypatch, [*rivals(HOME), *cells])
    assert baseline(some, ONE_SHOT) == "prior_mean"
    leads = [line for line in answer(some) if line.startswith("DiffUp")]
    assert f"DiffUp on {HOME}" in leads[1] and "evidence, bank, objects" in leads[1], "there it is the best"
    assert baseline(made(tmp_path / "none", monkeypatch, [own_method()]), ONE_SHOT) == ""


def test_a_foreign_method_meets_diffup_where_it_runs_and_its_figure_stands_alone_on_other_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = replace(own_method(), backbone=HOME, weights=cell().weights)
    lines = answer(made(tmp_path / "here", monkeypatch, [*rivals(HOME), *rivals(BETTER), here]))
    assert any(re.match(rf"segment on {HOME} [0-9.]+, −.* against DiffUp on {HOME}$", line) for line in lines)
    other = replace(own_method(), episode_seed=5)
    lines = answer(made(tmp_path / "other", monkeypatch, [*rivals(HOME), *rivals(BETTER), other]))
    assert any(re.fullmatch(r"segment [0-9.]+", line) for line in lines)


def test_superpixels_are_compared_with_superpixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rival with superpixels is no baseline of a DiffUp without them, though it scores best."""
    snapped = [cell(method="evidence", variant="evidence_snap"), replace(cell(), variant="snap")]
    monkeypatch.setitem(QUALITY, "evidence", 0.9)
    study = made(tmp_path, monkeypatch, [cell(), cell(method="prior_mean"), *snapped])
    ours = {method.variant: method for method in study.methods}
    assert baseline(study, ONE_SHOT) == "prior_mean"
    assert best_beside(study, ours["diffup"], ONE_SHOT) == (ours["prior_mean"], False)
    assert best_beside(study, ours["snap"], ONE_SHOT) == (ours["evidence_snap"], True)
