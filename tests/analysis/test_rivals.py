"""What figures, tables and the report compare with: the best that needs no training, and methods from elsewhere."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.plots.distributions import classes_plot
from analysis.plots.study import shots_plot, upgrade_plot
from analysis.report.summary import answer
from analysis.results import load_results
from analysis.tables.main import upgrade_table
from analysis.tables.rivals import baseline
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
    assert baseline(study) == "evidence_objects"
    table = upgrade_table(study)
    assert table is not None
    assert [column.header[0] for column in table.columns[2:5]] == [
        "evidence, bank, objects", "Δ of evidence, bank, objects", "DiffUp − evidence, bank, objects",
    ]  # fmt: skip
    upgrade, shots = upgrade_plot(study), shots_plot(study)
    assert upgrade is not None and shots is not None and classes_plot(study, {}) is not None
    assert set(upgrade.data["series"]) >= {"evidence, bank, objects", "prior mean"}
    assert f"{HOME}, evidence, bank, objects" in set(shots.data["series"])


def test_the_report_opens_with_the_lead_over_it_and_with_what_came_from_elsewhere(study: Study) -> None:
    lines = answer(study)
    best = "evidence, bank, objects, the best method without training"
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
    assert baseline(made(tmp_path / "one", monkeypatch, [*rivals(HOME), *cells])) == "prior_mean"
    assert baseline(made(tmp_path / "none", monkeypatch, [own_method()])) == ""
