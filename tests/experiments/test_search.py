"""What a search draws, what it may look at, what its record remembers, and who goes on; Ray is not started here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from analysis.tables.held_out import search_tables
from analysis.tables.table import to_markdown
from cluster.cli import run
from cluster.execution import inputs, setting
from cluster.execution import run_cell as work
from cluster.hpo import launch
from cluster.hpo import trials as hpo
from cluster.hpo.draw import Factors, choice, draw
from cluster.hpo.trials import Candidate, Record, Search, check_seen, halvings, searches_of, validation_classes
from cluster.storage.results import Store
from diffup.episodes.sampling import held_out_classes
from diffup.grid.axes import Backbone, evaluation_cells, training_cell
from diffup.grid.datasets import Data
from diffup.training import recipes
from experiments import search as script
from tests.helpers import toy_search
from tests.helpers.toy import ToyBackbone, ToyDataset
from tests.helpers.toy_grid import BACKBONE, DATA, INPUT

SHAPES = Data(name="shapes4i", path=Path("/nowhere/dataset.json"), fingerprint="0" * 12)
SOURCE = Backbone(name="tiny_resnet", weights="embedded")
DATASET: Any = ToyDataset()


def configurations(trials: int = 6, seed: int = 0) -> list[Candidate]:
    cells = script.grid(SHAPES, SOURCE, recipe=recipes.shapes4i(), folds=(0,), trials=trials, seed=seed)
    with patch.object(hpo, "validation_classes", return_value=("x",)):
        (search,) = searches_of(cells, {"shapes4i": DATASET}, reduction=2, milestones=4)
    return list(search.candidates)


def store(tmp_path: Path) -> Store:
    return Store(tmp_path.absolute())


def test_configurations_are_a_function_of_the_seed_and_more_of_them_extend_fewer() -> None:
    keys = [found.cell.key() for found in configurations(8)]
    assert keys == [found.cell.key() for found in configurations(8)]
    assert keys[:5] == [found.cell.key() for found in configurations(5)]
    assert len(set(keys)) == 8
    other = [found.values for found in configurations(8, seed=1)]
    assert [found.values for found in configurations(8)][1:] != other[1:]


def test_the_first_configuration_is_the_recipe_and_a_cell_as_any_grid_makes_it() -> None:
    first, second = configurations(2)
    ordinary = training_cell(SHAPES, 0, SOURCE, recipes.shapes4i().changed(train={"hold_out": script.HOLD_OUT}))
    assert first.cell == ordinary and first.cell.key() == ordinary.key()
    assert second.cell.key() != ordinary.key()
    assert first.values.keys() == second.values.keys() <= {name for own in script.FACTORS.values() for name in own}
    for found in (first, second):  # what is printed is what was trained
        for name, value in found.values.items():
            assert getattr(found.cell.train, name, getattr(found.cell.model, name, None)) == value


def test_all_configurations_are_scored_on_the_same_episodes_at_sizes_not_trained_at() -> None:
    found = configurations()
    classes = ("x",)
    Search(name="s", candidates=found, milestones=(37, 75, 150, 300), reduction=2, classes=classes)
    assert {cell.input.input_size for c in found for cell in c.validation} == {160, 320}
    assert {cell.backbone for c in found for cell in c.validation} == {SOURCE.name}
    assert script.virtual_sizes(224) == (160, 320) and script.virtual_sizes(320) == (224, 448)
    odd = dataclasses.replace(found[1], validation=found[1].validation[:1])
    with pytest.raises(ValueError, match="2 ways to score"):
        Search(name="s", candidates=[found[0], odd], milestones=(150, 300), reduction=2, classes=classes)


@pytest.mark.parametrize("trials", [0, 40])
def test_impossible_numbers_of_configurations_are_refused(trials: int) -> None:
    few: Factors = {"train": {"max_shots": choice(1, 5)}}
    with pytest.raises(ValueError, match=rf"--trials .*{trials}"):
        draw(few, recipes.shapes4i(), trials=trials, seed=0)


def test_milestones_are_those_of_the_scheduler() -> None:
    assert halvings(300, 2, 4) == (37, 75, 150, 300)
    for steps in range(8, 400):  # Tune multiplies from below; a milestone of ours must never come before one of its own
        made = halvings(steps, 2, 4)
        assert all(made[0] * 2**k <= at for k, at in enumerate(made))
    with pytest.raises(ValueError, match="first milestone of at least one step"):
        halvings(7, 2, 4)


def test_a_configuration_without_held_out_classes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"holds out no base class .* Set TrainConfig.hold_out to 1 or more"):
        toy_search.candidate(1e-3, hold_out=0)


def test_cells_on_novel_classes_or_of_another_training_can_not_validate() -> None:
    good = toy_search.candidate(1e-3)
    novel = evaluation_cells(DATA, 0, [BACKBONE], [(1, "mask")], config=INPUT, episodes=4, trained=good.cell)
    of_another = toy_search.candidate(2e-3).validation
    elsewhere = dataclasses.replace(good.validation[0], fold=1)
    for validation in (tuple(novel), of_another, (elsewhere,), (*good.validation, *novel)):
        with pytest.raises(
            ValueError, match=r"does not evaluate training cell .* on the base classes that it holds out"
        ):
            Candidate(cell=good.cell, values={}, validation=validation)
    with pytest.raises(ValueError, match="no validation cells"):
        Candidate(cell=good.cell, values={}, validation=())


def test_validation_looks_at_held_out_base_classes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = toy_search.candidate(1e-3).validation
    allowed = {DATASET.classes[c] for c in held_out_classes(DATASET, 0, 1, 0)}
    assert set(validation_classes(DATASET, cells)) == allowed
    assert not allowed & {DATASET.classes[c] for c in DATASET.novel_classes(0)}
    monkeypatch.setattr(hpo, "held_out_classes", lambda *where: DATASET.novel_classes(0))
    with pytest.raises(ValueError, match="would look at 'red', which is no held-out base class of toy, fold 0"):
        validation_classes(DATASET, cells)


def test_a_score_on_novel_classes_never_reaches_the_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.hpo.search import train_and_score

    found = toy_search.candidate(1e-3, episodes=2, steps=4)
    classes = validation_classes(DATASET, found.validation)
    search = Search(name="toy", candidates=[found], milestones=(2, 4), reduction=2, classes=classes)
    options = work.WorkContext(results=tmp_path, datasets={"toy": "x"}, launch="a")
    task = {"search": search, "candidate": found, "context": options}
    monkeypatch.setattr(inputs, "_open", lambda path: ToyDataset())
    monkeypatch.setattr(inputs, "_backbone", lambda *where: ToyBackbone())
    honest = train_and_score(task, set())
    assert (honest["steps"], honest["ended"]) == (2, None) and honest["miou"] > 0
    monkeypatch.setattr(setting, "classes_of", lambda cell, dataset: dataset.novel_classes(cell.fold))
    refused = train_and_score(task, {2})
    assert refused["ended"] == "failed" and "miou" not in refused
    assert "was scored on 'green', which is no class to choose on" in refused["error"]


def test_a_strange_class_is_named() -> None:
    check_seen(["a", "a"], ("a", "b"), "k")
    with pytest.raises(ValueError, match="configuration k was scored on 'c'"):
        check_seen(["a", "c"], ("a", "b"), "k")


SCORE = {"steps": 6, "miou": 50.0, "tasks": {}, "train_seconds": 1.0, "validate_seconds": 1.0}


def test_the_record_remembers_and_refuses_scores_of_other_rules(tmp_path: Path) -> None:
    search = toy_search.search()
    keys = [found.cell.key() for found in search.candidates]
    record = Record(store(tmp_path), search)
    assert record.todo() == keys and not record.path.exists()
    assert record.add(keys[1], SCORE) and not record.add(keys[1], {**SCORE, "miou": 60.0})
    record.end(keys[2], "stopped")
    record.end(keys[2], "finished")
    again = Record(store(tmp_path), search)
    assert again.todo() == [keys[1], keys[0], keys[3]]
    assert again.entries[keys[1]]["scores"] == [SCORE] and again.entries[keys[2]]["ended"] == "stopped"
    assert again.spent() == 6

    fewer = Record(store(tmp_path), toy_search.search(toy_search.RATES[:1]))
    fewer.save()
    assert Record(store(tmp_path), search).entries == again.entries, "a smaller search forgot the rest"

    with pytest.raises(ValueError, match="other validation episodes or milestones"):
        Record(store(tmp_path), dataclasses.replace(search, milestones=(12, 24)))
    record.path.write_text(record.path.read_text().replace('"schema": 2', '"schema": 1'))
    with pytest.raises(ValueError, match="has schema 1, this version reads 2"):
        Record(store(tmp_path), search)
    record.path.write_text("{")
    with pytest.raises(ValueError, match="can't be read"):
        Record(store(tmp_path), search)


def test_finished_without_a_checkpoint_and_failed_on_request_are_done_again(tmp_path: Path) -> None:
    search = toy_search.search()
    keys = [found.cell.key() for found in search.candidates]
    record = Record(store(tmp_path), search)
    record.add(keys[0], SCORE)
    record.add(keys[0], {**SCORE, "steps": 24})
    record.end(keys[0], "finished")
    record.end(keys[1], "failed", "ValueError: x")
    again = Record(store(tmp_path), search)
    assert again.todo() == [keys[0], keys[2], keys[3]]
    assert [score["steps"] for score in again.entries[keys[0]]["scores"]] == [6]
    assert keys[1] in Record(store(tmp_path), search, retry_failed=True).todo()


def test_what_went_on_before_an_interruption_goes_on_after_it() -> None:
    from cluster.hpo.search import scheduler

    def told(who: Any, known: bool, *scores: float) -> list[str]:
        halving.on_trial_add(None, who)
        at = zip(search.milestones, scores)
        return [halving.on_trial_result(None, who, {"steps": s, "miou": v, "known": known}) for s, v in at]

    search = toy_search.search()
    halving: Any = scheduler(search)
    first, behind, new, good = (SimpleNamespace(trial_id=str(i)) for i in range(4))
    assert told(first, True, 50.0, 60.0, 70.0) == ["CONTINUE"] * 3
    assert told(behind, True, 40.0, 50.0) == ["CONTINUE"] * 2, "it was let on: nobody asked again"
    assert told(new, False, 44.0) == ["STOP"], "the median of known scores, 50 and 40, is 45"
    assert told(good, False, 46.0, 54.0) == ["CONTINUE", "STOP"]


def test_the_report_has_every_configuration_the_saving_and_the_caveat(tmp_path: Path) -> None:
    search = toy_search.search()
    keys = [found.cell.key() for found in search.candidates]
    record = Record(store(tmp_path), search)

    def report() -> str:
        (table,) = search_tables(tmp_path, [cell.key() for cell in toy_search.grid()])
        return to_markdown(table)

    with pytest.raises(ValueError, match="no search of these configurations has begun"):
        report()
    for key, scores in zip(keys, [(50, 60, 70), (10,), (55, 65, 71), ()]):
        for at, score in zip(search.milestones, scores):
            record.add(key, {**SCORE, "steps": at, "miou": float(score)})
        record.save()
        assert "not ended" in report()
        record.end(key, "finished" if len(scores) == 3 else "stopped" if scores else "diverged")
    printed = report()
    assert "54 of 96, 44 % saved" in printed
    assert "best: {'learning_rate': 0.01}" in printed and "highest of 4 noisy scores" in printed
    assert f"{toy_search.NAME}: mIoU" in printed and ", ".join(search.classes) in printed
    rows = [line for line in printed.splitlines() if line.startswith(("| 0", "| 1", "| 2", "| 3"))]
    assert [row.split()[1] for row in rows] == ["2", "0", "1", "3"], "the best first"
    assert rows[2].count("–") == 2 and "stopped" in rows[2] and "diverged" in rows[3]
    assert json.loads(record.path.read_bytes())["configurations"][keys[0]]["values"] == {"learning_rate": 0.003}


@pytest.mark.parametrize("arguments", [[], ["--embedded", "--dataset", "toy"]])
def test_one_of_a_data_set_and_the_embedded_one_is_asked_for(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(script.STUDY, arguments)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "--dataset" in said and "--embedded" in said


@pytest.mark.slow
@pytest.mark.usefixtures("shapes4i")
def test_results_in_an_object_store_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(script.STUDY, ["--embedded", "--results", "s3://bucket/search"]) == 2
    assert "must be in a folder" in capsys.readouterr().err


def test_a_dry_run_lists_the_configurations_and_options_of_other_grids_alone_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("resolve_dataset", "open_dataset"):  # the toy search replaces them for good
        monkeypatch.setattr(launch, name, getattr(launch, name))

    def toy(*arguments: str) -> int:
        return run(toy_search.STUDY, ["--embedded", "--results", str(tmp_path / "results"), *arguments])

    assert toy("--dry-run") == 0
    printed = capsys.readouterr().out
    assert f"{toy_search.NAME}: 4 configurations of 24 steps, 4 to do" in printed
    assert "scored after 6, 12, 24 steps" in printed
    assert all(f"{found.cell.key()} learning_rate" in printed for found in toy_search.search().candidates)
    assert toy("--dry-run", "--select", f"checkpoint={toy_search.search().candidates[1].cell.key()}") == 0
    assert f"{toy_search.NAME}: 1 configurations of 24 steps, 1 to do" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()
    assert toy("--train-workers", "2") == 2
    assert "--train-workers has no use in a search" in capsys.readouterr().err
