"""Grids: sizes as their docstrings say, one manifest, the graph closed, selection with what it needs; no torch."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from cluster.cli import run
from diffup.backbones.embedded import EMBEDDED
from diffup.grid.axes import Backbone, select, unique
from diffup.grid.cell import AnyCell, Cell, TrainingCell
from diffup.grid.datasets import Data, named_data
from experiments import dataset_grid, full_grid, mini_grid, quickstart

DATA = Data(name="toy", path=Path("/nowhere/dataset.json"), fingerprint="0" * 12)
ROOT = Path(__file__).resolve().parents[3]


def quick(monkeypatch: pytest.MonkeyPatch) -> list[AnyCell]:
    monkeypatch.setattr(
        quickstart, "named_backbone", lambda name, check: Backbone(name=name, weights=f"sha256:{name:0<12.12}")
    )
    return quickstart.grid(DATA)


def mini(*, one_step: bool = False) -> list[AnyCell]:
    backbones = [Backbone(name=name, weights="hub") for name in mini_grid.BACKBONES]
    return mini_grid.grid(DATA, source=backbones[0], backbones=backbones, one_step=one_step)


def full(seeds: tuple[int, ...] = (0,)) -> list[AnyCell]:
    backbones = [Backbone(name=name, weights="hub") for name in full_grid.BACKBONES]
    return full_grid.grid([named_data(name) for name in full_grid.DATASETS], backbones, seeds=seeds)


def trainings(cells: list[AnyCell]) -> list[TrainingCell]:
    return [cell for cell in cells if isinstance(cell, TrainingCell)]


def evaluations(cells: list[AnyCell]) -> list[Cell]:
    return [cell for cell in cells if isinstance(cell, Cell)]


def check_graph(cells: list[AnyCell]) -> None:
    """Keys are unique, and every checkpoint that is used is made."""
    assert len(unique(cells)) == len(cells)
    made = {cell.key() for cell in trainings(cells)}
    assert {cell.checkpoint for cell in evaluations(cells)} - {""} == made


def test_quickstart_is_as_its_docstring_says(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = quick(monkeypatch)
    check_graph(cells)
    assert len(cells) == 44 * len(quickstart.FOLDS)
    count = Counter(cell.variant for cell in evaluations(cells))
    assert count == {"diffup": 21, "wrong_names": 3, "one_step": 6, "prior_mean": 6, "prototype": 6}
    assert {cell.backbone for cell in trainings(cells)} == {"tiny_resnet"}
    assert {cell.backbone for cell in evaluations(cells)} == set(EMBEDDED)
    wrong = [cell for cell in evaluations(cells) if cell.variant == "wrong_names"]
    right = [cell for cell in evaluations(cells) if cell.variant == "diffup" and cell.shots == 0]
    assert {cell.input.class_names for cell in wrong} == {"deranged"}
    assert [(cell.backbone, cell.checkpoint) for cell in wrong] == [(cell.backbone, cell.checkpoint) for cell in right]


def test_text_is_read_by_the_companion_where_the_backbone_can_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for cell in evaluations(quick(monkeypatch)):
        reads = "text" in cell.annotation and cell.backbone != quickstart.COMPANION
        assert cell.input.companion == (quickstart.COMPANION if reads else "")


def test_mini_grid_is_as_its_docstring_says() -> None:
    cells = mini()
    check_graph(cells)
    assert (len(trainings(cells)), len(evaluations(cells))) == (1, 48)
    cells = mini(one_step=True)
    check_graph(cells)
    assert (len(trainings(cells)), len(evaluations(cells))) == (2, 54)
    assert trainings(cells)[0].train.cue_weights[3] == 0  # nothing here reads text


def test_dataset_grid_is_as_its_docstring_says() -> None:
    names = {name: Backbone(name=name, weights="hub") for name in dataset_grid.BACKBONES}
    again = [names[name] for name in dataset_grid.RETRAINED]
    data = dataclasses.replace(DATA, folds=4)
    cells = dataset_grid.grid(data, source=names[dataset_grid.TRAINED_ON], backbones=[*names.values()], retrained=again)
    check_graph(cells)
    assert (len(trainings(cells)), len(evaluations(cells))) == (8, 428)


def test_full_grid_is_the_papers() -> None:
    cells = full()
    check_graph(cells)
    assert (len(trainings(cells)), len(evaluations(cells))) == (8, 1232)
    points = Counter((cell.shots, cell.annotation) for cell in evaluations(cells) if cell.checkpoint)
    assert points == {point: 2 * 4 * 7 for point in full_grid.TASKS}
    assert len(full_grid.TASKS) == 1 + 3 * 4
    three = full(seeds=(0, 1, 2))
    check_graph(three)
    assert len(three) == 3 * (8 + 728) + 504, "what needs no training is there once"
    assert {cell.episode_seed for cell in evaluations(three)} == {0}


def test_cells_of_a_fold_share_one_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    for cells in (quick(monkeypatch), mini(), full(seeds=(0, 1))):
        for cell in evaluations(cells):
            assert (cell.episode_seed, cell.episodes) == (0, evaluations(cells)[0].episodes)


def test_selection_keeps_the_training_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = quick(monkeypatch)
    some = select(cells, "shots=1|5,annotation=mask,backbone=tiny_clip,variant=diffup")
    assert len(evaluations(some)) == 2
    assert [cell.variant for cell in trainings(some)] == ["diffup"]
    assert trainings(select(cells, "variant=prior_mean")) == []
    assert select(cells, "kind=train") == trainings(cells)
    assert select(cells, f"key={cells[-1].key()}") == cells[-1:]
    assert select(cells, "") == cells


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("colour=red", "no field 'colour'; fields are .*annotation.*"),
        ("annotation=lasso", "no cell has annotation=lasso; there are box, mask"),
        ("shots", "'shots' is not of that form"),
        ("shots=1,shots=5", "each k once"),
        ("annotation=box,variant=prior_mean", "no cell fulfils all conditions"),
    ],
)
def test_selections_that_can_not_be_meant_are_refused(selection: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(mini(), selection)


@pytest.mark.slow
def test_dry_run_of_the_full_grid_needs_no_data_no_hub_and_no_cluster(tmp_path: Path) -> None:
    code = (
        "import sys; from cluster.cli import run; from experiments import full_grid; code = run(full_grid.STUDY); "
        "bad = {'ray', 'mlflow'} & set(sys.modules); assert not bad, bad; sys.exit(code)"
    )
    results = tmp_path / "results"
    arguments = [sys.executable, "-c", code, "--dry-run", "--results", str(results)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "1240 cells, 0 finished, 1240 to do (8 training, 1232 evaluation)" in done.stdout
    assert not results.exists()


@pytest.mark.parametrize("arguments", ["--episodes 0", "--force some", "--colour", "--gpus-per-trial 2"])
def test_usage_errors_exit_with_2(arguments: str) -> None:
    with pytest.raises(SystemExit) as caught:
        run(full_grid.STUDY, [*arguments.split(), "--dry-run"])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--select", "colour=red"], "no field 'colour'"),
        (["--tracking-uri", "./mlruns"], "--tracking-uri './mlruns'"),
        (["--weights-dir", "/nowhere/at/all"], "/nowhere/at/all does not exist"),
        (["--dataset", "/nowhere/dataset.json"], "/nowhere/dataset.json"),
    ],
)
def test_bad_input_exits_with_2_and_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(full_grid.STUDY, [*arguments, "--dry-run", "--results", str(tmp_path / "results")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "results").exists()
