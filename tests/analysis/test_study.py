"""The tables of the method study, from a made-up store."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis import study as method_study
from analysis.results import load_results
from analysis.study import study_table, summary_table
from analysis.tables.scores import Study, studies
from analysis.tables.table import Number, Table
from tests.helpers.stores import BETTER, HOME, cell, write_store

FAST = 200


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four folds: DiffUp, one step and both baselines on two backbones, boxes on the first, one re-training."""
    cells = []
    for fold in range(4):
        for backbone in (HOME, BETTER):
            place = {"fold": fold, "backbone": backbone}
            cells += [cell(**place, trained_on=HOME), cell(**place, trained_on=HOME, variant="one_step")]
            cells += [cell(**place, method=name, trained_on="") for name in ("prior_mean", "prototype")]
        cells += [cell(fold=fold, annotation="box"), cell(fold=fold, annotation="box", method="prior_mean")]
        cells.append(cell(fold=fold, backbone=BETTER, trained_on=BETTER, checkpoint=f"again{fold}"))
    return write_store(tmp_path_factory.mktemp("store"), cells)


@pytest.fixture(scope="module")
def found(store: Path) -> Study:
    (one,) = studies(load_results(store), resamples=FAST)
    return one


def rows(table: Table | None) -> dict[tuple[str, ...], tuple[object, ...]]:
    assert table is not None
    return {row.labels: row.entries for row in table.rows}


def test_the_summary_has_every_method_of_a_backbone_and_its_gain(found: Study) -> None:
    made = rows(summary_table(found))
    methods = ["DiffUp", "one-step decoder", "prior mean", "prototype", "DiffUp − prior mean"]
    assert [labels[1] for labels in made if labels[0] == HOME] == methods
    assert [labels[1] for labels in made if labels[0] == BETTER] == [*methods, "DiffUp re-trained on it"]
    ours, prior, gain = (made[HOME, name][0] for name in ("DiffUp", "prior mean", "DiffUp − prior mean"))
    assert isinstance(ours, Number) and isinstance(prior, Number) and isinstance(gain, Number)
    assert gain.value == pytest.approx(ours.value - prior.value) and gain.excludes_zero
    assert made[BETTER, "DiffUp"][1] is None, "boxes were not asked for there"


def test_lines_are_paired_differences_of_all_folds_and_parts(found: Study) -> None:
    table = study_table(found)
    made = rows(table)
    assert table is not None
    assert [column.header[0] for column in table.columns][:6] == [
        "bar", "first", "second", "all folds", "0-1, looked at", "2-3, opened once",
    ]  # fmt: skip
    upgrade = made["upgrade", f"tiny swapped in − {HOME}"]
    again = made["upgrade", "re-trained on tiny − swapped in"]
    assert upgrade[0] == "> 0" and again[0] == "≤ 2"
    first, second, gap = upgrade[1:4]
    assert isinstance(first, Number) and isinstance(second, Number) and isinstance(gap, Number)
    assert gap.value == pytest.approx(first.value - second.value)
    assert gap.low > 5, "the second backbone was made 15 points better"


def test_the_command_writes_both_tables(store: Path, tmp_path: Path) -> None:
    asked = ["--results", str(store), "--out", str(tmp_path), "--resamples", str(FAST)]
    assert method_study.main(asked) == 0
    assert {path.stem for path in tmp_path.iterdir()} == {"study-shapes4i", "summary-shapes4i"}


def test_a_store_without_the_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path, [cell()])
    assert method_study.main(["--results", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "holds no method study" in capsys.readouterr().err
