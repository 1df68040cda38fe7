"""Planning: grid − finished, with a reason for each cell left out, in an order that reloads little."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cluster.code_version import code_hash
from cluster.planning.plan import Plan, in_order, make_plan, render
from cluster.storage.atomic import now
from cluster.storage.layout import RESULT
from cluster.storage.results import Store
from diffup.config import InputConfig
from diffup.grid.axes import PRIOR_MEAN, Backbone, evaluation_cells, tasks, training_cell
from diffup.grid.cell import AnyCell, Cell, TrainingCell
from diffup.grid.datasets import Data
from diffup.training.recipes import Recipe

DATA = Data(name="fake", fingerprint="0" * 12)
INPUT = InputConfig(input_size=32)
BACKBONES = [Backbone(name=name, weights="random:0") for name in ("resnet50", "resnet18")]
TRAINED = training_cell(DATA, 0, BACKBONES[0], Recipe(input=INPUT))
KEEP: dict[str, Any] = {"config": INPUT, "episodes": 10}
EVALUATED = evaluation_cells(DATA, 0, BACKBONES, tasks((1, 5), ("mask", "box")), trained=TRAINED, **KEEP)
BASELINES = evaluation_cells(DATA, 0, BACKBONES, tasks((1,), ("mask",)), sample=PRIOR_MEAN, **KEEP)
GRID: list[AnyCell] = [*EVALUATED, *BASELINES, TRAINED]


def finish(store: Store, cell: AnyCell, seconds: float = 5.0, code: str = "") -> None:
    episodes = pd.DataFrame({"episode": [0]}) if isinstance(cell, Cell) else None
    store.write_result(
        cell,
        metrics={"seconds": seconds},
        provenance={"code_hash": code or code_hash()},
        started=now(),
        episodes=episodes,
    )


def keys(cells: list[AnyCell]) -> set[str]:
    return {cell.key() for cell in cells}


def reasons(plan: Plan) -> dict[str, str]:
    return {left.cell.key(): left.status for left in plan.left_out}


def test_everything_is_to_do_in_an_empty_store_and_nothing_in_a_full_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plan = make_plan([*GRID, *GRID], store)
    assert keys(plan.todo) == keys(GRID)
    assert len(plan.todo) == len(GRID)
    for cell in GRID:
        finish(store, cell)
    plan = make_plan(GRID, store)
    assert (plan.todo, plan.count("finished"), plan.stale) == ([], len(GRID), [])
    assert "0 to do" in render(plan, "fake")


def test_planning_writes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    make_plan(GRID, store)
    assert not store.root.exists()


def test_training_comes_first_then_what_waits_for_nothing_then_neighbours_share_a_backbone() -> None:
    shuffled = list(GRID)
    random.Random(0).shuffle(shuffled)
    order = in_order(shuffled)
    assert order[0] == TRAINED
    assert keys(order[1:3]) == keys([*BASELINES])
    backbones = [cell.backbone for cell in order[3:]]
    assert backbones == sorted(backbones)
    assert order == in_order(GRID)


def test_failed_cells_are_left_out_until_asked_for_and_block_what_they_train(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_error(TRAINED, "ValueError: no", "")
    store.write_error(BASELINES[0], "ValueError: no", "")
    plan = make_plan(GRID, store)
    assert keys(plan.todo) == keys([BASELINES[1]])
    assert reasons(plan)[TRAINED.key()] == "failed"
    assert plan.count("blocked") == len(EVALUATED)
    assert "--retry-failed" in render(plan, "fake")
    assert keys(make_plan(GRID, store, retry_failed=True).todo) == keys(GRID)


def test_evaluation_needs_its_training_in_the_grid_or_in_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plan = make_plan(EVALUATED, store)
    assert (plan.todo, plan.count("invalid")) == ([], len(EVALUATED))
    assert TRAINED.key() in plan.left_out[0].reason
    finish(store, TRAINED)
    assert keys(make_plan(EVALUATED, store).todo) == keys([*EVALUATED])


def test_text_without_anything_that_reads_it_is_invalid(tmp_path: Path) -> None:
    companion = Backbone(name="open_clip:ViT-B-16/openai", weights="hub")
    clip = [Backbone(name="open_clip:RN50/openai", weights="hub")]
    bad = evaluation_cells(DATA, 0, BACKBONES, [(0, "text"), (1, "mask+text")], trained=TRAINED, **KEEP)
    good = evaluation_cells(DATA, 0, BACKBONES, [(0, "text")], trained=TRAINED, companion=companion, **KEEP)
    good += evaluation_cells(DATA, 0, clip, [(0, "text")], trained=TRAINED, companion=companion, **KEEP)
    assert [cell.input.companion for cell in good] == [companion.name, companion.name, ""]
    plan = make_plan([TRAINED, *bad, *good], Store(tmp_path))
    assert {key for key, status in reasons(plan).items() if status == "invalid"} == keys([*bad])
    assert "no text encoder" in plan.left_out[0].reason


def test_damaged_results_are_made_again_with_a_warning(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for cell in GRID:
        finish(store, cell)
    (store.folder(BASELINES[0].key()) / RESULT).write_text('{"key": ')
    plan = make_plan(GRID, store)
    assert keys(plan.todo) == {BASELINES[0].key()}
    assert "is made again" in render(plan, "fake")


def test_force_and_other_code(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for cell in GRID:
        finish(store, cell, code="before" if cell in BASELINES else "")
    plan = make_plan(GRID, store)
    assert (plan.todo, set(plan.stale)) == ([], keys([*BASELINES]))
    assert "2 finished cells were made by other code" in render(plan, "fake")
    everything = frozenset(keys(GRID))
    assert keys(make_plan(GRID, store, force="all", forced=everything).todo) == everything
    assert keys(make_plan(GRID, store, force="other-code", forced=everything).todo) == keys([*BASELINES])
    assert keys(make_plan(GRID, store, force="all", forced=frozenset({TRAINED.key()})).todo) == {TRAINED.key()}


def test_estimate_scales_past_cells_with_their_episodes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    finish(store, BASELINES[0], seconds=20.0)  # 10 episodes
    longer = evaluation_cells(
        DATA, 0, BACKBONES, tasks((1,), ("mask",)), sample=PRIOR_MEAN, config=INPUT, episodes=1000
    )
    plan = make_plan(longer, store)
    assert plan.seconds[longer[0].key()] == pytest.approx(2000)  # the same but for the episodes
    assert plan.seconds[longer[1].key()] == pytest.approx(2000)  # another backbone: the nearest guess
    assert "about 67 min of work" in render(plan, "fake")
    assert isinstance(TRAINED, TrainingCell)
    assert TRAINED.key() not in make_plan([TRAINED], store).seconds
