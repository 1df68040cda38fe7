"""From one data set to another: which classes are tested, and that none that was trained on slips through."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from analysis.results import load_results
from analysis.tables.scores import studies
from cluster.execution.run_cell import WorkContext, execute
from diffup.config import ModelConfig, TrainConfig
from diffup.data.class_names import COCO_CLASSES, VOC_CLASSES, overlap, readable, same_class
from diffup.data.lists import COCO, fold_classes
from diffup.evaluation.bank import NO_BANK
from diffup.grid.cell import AnyCell, Cell, TrainingCell, cell_from_dict, cell_to_dict
from experiments import cross_dataset
from experiments.cross_dataset import tested_classes as classes_to_test
from tests.helpers.folders import write_json, write_voc
from tests.helpers.stores import cell, write_store

PUBLISHED = [{0, 3, 8, 10, 11, 14}, {1, 5, 12, 17}, {2, 6, 15, 16, 18, 19}, {4, 7, 9, 13}]  # PROTOCOL.md


def test_coco_to_pascal_tests_the_classes_that_the_literature_does() -> None:
    for fold in range(4):
        novel = set(fold_classes(COCO, fold))
        base = [name for c, name in enumerate(COCO_CLASSES) if c not in novel]
        tested, seen = classes_to_test(base, VOC_CLASSES)
        assert set(tested) == PUBLISHED[fold]
        assert seen == ()


def test_names_of_one_class() -> None:
    assert same_class("aeroplane") == same_class("Airplane")
    assert same_class("diningtable") == same_class("dining table") == same_class("dining_table")
    assert same_class("tvmonitor") == same_class("TV")
    assert same_class("cat") != same_class("car")
    assert overlap(["couch", "dog"], ["sofa", "cat"]) == ["sofa"]
    assert [readable(name) for name in ("tvmonitor", "traffic_light", "cat", "sofa")] == [
        "tv monitor", "traffic light", "cat", "sofa",
    ]  # fmt: skip


def test_what_was_trained_on_is_refused_unless_named() -> None:
    trained, target = ["dog", "airplane"], ["aeroplane", "dog", "cat"]
    assert classes_to_test(trained, target) == ((2,), ())
    assert classes_to_test(trained, target, "cat,cat") == ((2,), ())
    with pytest.raises(ValueError, match=r"aeroplane, dog: tested, but trained on.*--allow-seen aeroplane,dog"):
        classes_to_test(trained, target, "all")
    with pytest.raises(ValueError, match=r"^aeroplane: tested"):
        classes_to_test(trained, target, "all", ["dog"])
    assert classes_to_test(trained, target, "all", ["dog", "aeroplane"]) == ((0, 1, 2), ("aeroplane", "dog"))
    assert classes_to_test(trained, target, allowed=["dog"]) == ((1, 2), ("dog",))
    with pytest.raises(ValueError, match="no class 'lamp'"):
        classes_to_test(trained, target, "lamp")
    with pytest.raises(ValueError, match="no class of the target is left"):
        classes_to_test(["dog", "aeroplane", "cat"], target)


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    """A source of dog, bird | cat, cow and a target that has another word for cat, and a class of its own."""
    source, target = tmp_path / "source", tmp_path / "target"
    write_voc(source, per_class=6)
    write_voc(target, per_class=6)
    names = ["dog", "bird", "Cat", "lamp"]
    write_json(target, name="other", classes=names, folds=[names[:2], names[2:]])
    return source / "dataset.json", target / "dataset.json"


def plan(data: tuple[Path, Path], *more: str) -> tuple[list[AnyCell], dict[str, Path]]:
    asked = ["--source", str(data[0]), "--target", str(data[1]), "--backbones", "tiny_resnet", "--episodes", "8"]
    return cross_dataset.build(cross_dataset.STUDY.parse([*asked, "--train-backbone", "tiny_resnet", *more]))


def test_without_a_bank_the_targets_other_images_are_not_read(data: tuple[Path, Path]) -> None:
    tests = [c for c in plan(data, "--bank", "0")[0] if isinstance(c, Cell)]
    assert {c.variant for c in tests} == {"diffup", "prior_mean"} and not any(c.input.bank for c in tests)
    assert all(c.input.bank for c in plan(data)[0] if isinstance(c, TrainingCell)), "its training keeps its own"


def test_the_grid_tests_unseen_classes_only_and_the_figures_are_kept_apart(
    data: tuple[Path, Path], tmp_path: Path
) -> None:
    cells, files = plan(data)
    training = {c.fold: c for c in cells if isinstance(c, TrainingCell)}
    tests = [c for c in cells if isinstance(c, Cell)]
    assert {c.fold: c.tested for c in tests} == {0: (0, 1, 3), 1: (2, 3)}, "dog bird lamp, then Cat lamp"
    assert {(c.dataset, c.trained_dataset, c.classes) for c in tests} == {("other", "toy", "tested")}
    assert {c.checkpoint for c in tests if c.sample.method == "diffup"} == {c.key() for c in training.values()}
    assert all(cell_from_dict(cell_to_dict(c)) == c for c in tests)
    write_store(tmp_path / "made", [*tests, cell(dataset="other", dataset_hash=tests[0].dataset_hash)])
    found = studies(load_results(tmp_path / "made"))
    assert sorted(study.cells["trained_dataset"].iloc[0] for study in found) == ["", "toy"]
    assert set(files) == {"toy", "other"}


@pytest.mark.slow
def test_a_worker_refuses_a_checkpoint_that_has_seen_a_tested_class(data: tuple[Path, Path], tmp_path: Path) -> None:
    cells, files = plan(data, "--folds", "1")
    context = WorkContext(results=tmp_path / "results", datasets={name: str(path) for name, path in files.items()})
    small = {
        "model": ModelConfig(decoder_grid=16, width=8),
        "train": TrainConfig(steps=1, batch_size=1, cue_weights=(1.0, 1.0, 1.0, 0.0)),
    }
    trained = next(dataclasses.replace(c, **small) for c in cells if isinstance(c, TrainingCell))  # type: ignore[arg-type]
    test = next(c for c in cells if isinstance(c, Cell) and c.checkpoint and c.shots == 1)
    test = dataclasses.replace(test, checkpoint=trained.key())
    execute(trained, context)
    table = execute(test, context).episodes
    assert table is not None and set(table["class_name"]) == {"Cat", "lamp"}
    wider = dataclasses.replace(test, tested=(0, 2))
    with pytest.raises(ValueError, match="was trained on dog, which the cell tests"):
        execute(wider, context)
    table = execute(dataclasses.replace(wider, seen=("dog",)), context).episodes
    assert table is not None and set(table["class_name"]) == {"dog", "Cat"}
    assert test.input.bank and "warnings" not in execute(test, context).provenance
    whole = dataclasses.replace(wider, tested=(0, 1, 2, 3), seen=("dog", "bird"))
    assert execute(whole, context).provenance["warnings"] == [NO_BANK], "no class is left for a bank"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--test-classes", "all"], "fold 0 of toy → other: Cat: tested, but trained on"),
        (["--test-classes", "hat"], "no class 'hat'"),
        (["--allow-seen", "hat"], "no class 'hat'"),
        (["--folds", "7"], "has folds 0-1, not 7"),
    ],
)
def test_bad_requests(more: list[str], message: str, data: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match=message):
        plan(data, *more)


def test_lists_of_a_benchmarks_own_folds_are_no_protocol_here(data: tuple[Path, Path]) -> None:
    document = json.loads(data[1].read_text())
    data[1].write_text(json.dumps({**document, "name": "pascal5i"}))
    with pytest.raises(ValueError, match="protocol hsnet has lists of pascal5i's own folds only"):
        plan(data, "--protocol", "hsnet")


def test_source_and_target_must_differ(data: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="both called 'toy'"):
        plan((data[0], data[0]))


def test_too_few_images_of_a_tested_class(data: tuple[Path, Path]) -> None:
    document = json.loads(data[1].read_text())
    data[1].write_text(json.dumps({**document, "folds": [["bird"]], "min_area_fraction": 0.24}))
    with pytest.raises(ValueError, match="eligible"):
        plan(data)
