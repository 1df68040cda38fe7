"""What a plan reads is put into shards once, and cells then compute nothing of it: a stage's worker without Ray."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from cluster.__main__ import main as command
from cluster.execution import inputs as opened
from cluster.execution.run_cell import WorkContext, execute
from cluster.planning.counts import keeps_pixels
from cluster.precompute.pipeline import PrecomputeWorker
from cluster.precompute.tasks import inputs_of, missing
from cluster.storage import feature_cache as stores
from cluster.storage.backend import Folder
from cluster.storage.feature_cache import clean, listed
from cluster.storage.sizes import format_size, parse_size
from cluster.storage.sync import Sync
from diffup.config import InputConfig, TrainConfig
from diffup.evaluation.encode import Encoder
from diffup.grid.axes import PRIOR_MEAN, PROTOTYPE, Backbone, evaluation_cells, tasks, training_cell
from diffup.grid.cell import AnyCell, Cell
from diffup.grid.datasets import Data
from diffup.training.recipes import Recipe
from tests.helpers.toy import ToyBackbone, ToyDataset

pytestmark = pytest.mark.usefixtures("one_thread", "toy")
DATA = Data(name="toy", fingerprint=ToyDataset.fingerprint, folds=3)
INPUT = InputConfig(input_size=48, feature_grid=8)
TOY = Backbone(name="resnet18", weights="random:0")
COUNTS = ["episode", "inter_fg", "union_fg", "inter_bg", "union_bg"]


def cells(shots: Sequence[int] = (1, 2), annotations: Sequence[str] = ("mask", "box")) -> list[Cell]:
    made = evaluation_cells(DATA, 0, [TOY], tasks(shots, annotations), config=INPUT, episodes=10, sample=PRIOR_MEAN)
    return made + evaluation_cells(DATA, 0, [TOY], tasks((1,), ("mask",)), config=INPUT, episodes=10, sample=PROTOTYPE)


def context(root: Path, *, features: bool = True) -> WorkContext:
    folder = root / "features" if features else None
    return WorkContext(results=root, datasets={"toy": "nowhere"}, features=folder, batch_size=4)


def run(grid: Sequence[AnyCell], root: Path, limit: int = 10**9) -> list[dict[str, object]]:
    """The stage, in this process."""
    worker = PrecomputeWorker(context(root), limit)
    done = []
    for encodes in (True, False):
        for part in missing(inputs_of(grid, context(root)), Sync(root / "features")):
            if part.encodes is encodes:
                done += [worker.do(json.loads(json.dumps(task))) for task in part.tasks()]
    return done


def made_in(cell: Cell, root: Path) -> tuple[pd.DataFrame, int, int]:
    outcome = execute(cell, context(root))
    assert outcome.episodes is not None
    return outcome.episodes[COUNTS], outcome.provenance["images_encoded"], outcome.provenance["priors_computed"]


def test_cells_compute_nothing_that_the_stage_has_made(tmp_path: Path) -> None:
    grid = cells()
    plain = [execute(cell, context(tmp_path, features=False)).episodes for cell in grid]
    done = run(grid, tmp_path)
    assert not any(result["failed"] for result in done)
    assert missing(inputs_of(grid, context(tmp_path)), Sync(tmp_path / "features")) == []
    for cell, expected in zip(grid, plain, strict=True):
        assert expected is not None
        table, encoded, computed = made_in(cell, tmp_path)
        assert (encoded, computed) == (0, 0)
        pd.testing.assert_frame_equal(table, expected[COUNTS])


def test_each_image_and_each_triple_once_and_a_larger_grid_adds_only_what_is_new(tmp_path: Path) -> None:
    grid = cells()
    found = inputs_of(grid, context(tmp_path))
    assert len(found) == 2  # features and prior maps of one backbone
    made = sum(int(str(result["made"])) for result in run(grid, tmp_path))
    assert made == sum(len(part.items) for part in found)
    assert run(grid, tmp_path) == []
    larger = cells((1, 2, 3), ("mask", "box"))
    lacking = missing(inputs_of(larger, context(tmp_path)), Sync(tmp_path / "features"))
    third = {item.support for part in lacking for item in part.items.values() if not part.encodes}
    assert third and all(not part.encodes or set(part.items) <= set(ToyDataset().image_ids) for part in lacking)
    assert all(item not in found[1].items for part in lacking if not part.encodes for item in part.items.values())
    seeds = [dataclasses.replace(cell, train_seed=5) for cell in grid]
    assert missing(inputs_of(seeds, context(tmp_path)), Sync(tmp_path / "features")) == []


def test_from_pixels_each_photograph_is_read_once_for_all_backbones_and_counts_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded = [dataclasses.replace(c, input=dataclasses.replace(INPUT, pixel_dtype="uint8")) for c in cells()]
    grid = [*rounded, *(dataclasses.replace(cell, backbone="resnet34") for cell in rounded)]
    plain = [execute(cell, context(tmp_path, features=False)).episodes for cell in grid]
    asked = dataclasses.replace(context(tmp_path), cache="pixels")
    (part,) = inputs_of(grid, asked)
    assert part.spec.kind == stores.PIXELS and part.encodes
    read, honest = Counter[str](), ToyDataset.image

    def image(self: ToyDataset, image_id: str) -> NDArray[np.uint8]:
        read[image_id] += 1
        return honest(self, image_id)

    monkeypatch.setattr(ToyDataset, "image", image)
    worker = PrecomputeWorker(asked, 10**9)
    made = [worker.do(json.loads(json.dumps(task))) for task in part.tasks()]
    assert sum(done["made"] for done in made) == len(part.items) and not any(done["failed"] for done in made)
    assert missing(inputs_of(grid, asked), Sync(tmp_path / "features")) == []
    assert set(read) == set(part.items) and set(read.values()) == {1}
    opened._features.cache_clear()
    monkeypatch.delattr(Encoder, "square")
    for cell, expected in zip(grid, plain, strict=True):
        assert expected is not None
        found = execute(cell, asked).episodes
        assert found is not None
        pd.testing.assert_frame_equal(found[COUNTS], expected[COUNTS])
    assert inputs_of(cells(), asked) == [], "pixels that are not rounded are not kept"


def test_a_training_reads_its_base_classes_alone(tmp_path: Path) -> None:
    trained = training_cell(DATA, 0, TOY, Recipe(input=INPUT, train=TrainConfig(cue_weights=(1.0, 0.0, 0.0, 0.0))))
    (part,) = inputs_of([trained], context(tmp_path))
    assert {int(str(image).split("_")[0]) for image in part.items} == set(ToyDataset().base_classes(0))


@pytest.mark.parametrize(("steps", "kept"), [(1, False), (400, True)])
def test_pixels_of_images_that_a_training_draws_often_are_kept(tmp_path: Path, steps: int, kept: bool) -> None:
    rounded = dataclasses.replace(INPUT, pixel_dtype="uint8")
    recipe = Recipe(input=rounded, train=TrainConfig(steps=steps, batch_size=8, cue_weights=(1.0, 0.0, 0.0, 0.0)))
    trained = training_cell(DATA, 0, TOY, recipe)
    parts = inputs_of([trained], dataclasses.replace(context(tmp_path), cache="pixels"))
    assert [part.spec.kind for part in parts] == [stores.PIXELS] * kept
    plain = dataclasses.replace(trained, input=INPUT)
    assert not keeps_pixels(plain, 1), "only rounded ones are kept"


def test_a_damaged_shard_is_made_again(tmp_path: Path) -> None:
    grid = cells()
    run(grid, tmp_path)
    path = next((tmp_path / "features").glob("features-*/*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])
    assert [part.encodes for part in missing(inputs_of(grid, context(tmp_path)), Sync(tmp_path / "features"))] == [True]
    assert run(grid, tmp_path)[0]["made"]
    assert made_in(grid[0], tmp_path)[1:] == (0, 0)


def test_a_full_store_leaves_the_rest_to_the_cells(tmp_path: Path) -> None:
    grid = cells()
    done = run(grid, tmp_path, limit=1)
    assert any(result["full"] for result in done)
    _, _, computed = made_in(grid[0], tmp_path)
    assert computed > 0


def test_other_weights_behind_a_name_are_never_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = cells()
    run(grid, tmp_path)
    monkeypatch.setattr(ToyBackbone, "loaded_hash", "another")
    opened._features.cache_clear()
    _, encoded, computed = made_in(grid[0], tmp_path)
    assert encoded > 0 and computed > 0


def test_the_least_recently_used_folders_go_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(cells(), tmp_path)
    root = tmp_path / "features"
    features, priors = sorted(root.iterdir())
    then = time.time() - 40 * 86400
    for path in (priors / "about.json", priors / "used"):
        path.touch()
        os.utime(path, (then, then))
    assert [each.name for each in listed(Folder(root))] == [priors.name, features.name]
    assert clean(Folder(root), older_than=50 * 86400) == []
    assert command(["cache", "clean", str(root), "--limit", f"{listed(Folder(root))[1].bytes}B"]) == 0
    assert "freed" in capsys.readouterr().out and not priors.exists() and features.exists()
    assert command(["cache", "check", str(root)]) == 0 and "0 damaged" in capsys.readouterr().out
    assert command(["cache", "clean", str(root)]) == 2


def test_sizes_in_words() -> None:
    assert [parse_size(text) for text in ("500MB", "2 TB", "1.5g", "7")] == [500_000_000, 2 * 10**12, 1_500_000_000, 7]
    with pytest.raises(ValueError, match="write 500MB, 50GB or 2TB"):
        parse_size("50XB")
    assert [format_size(count) for count in (7, 2_900_000, 3.5e11, 2e12)] == ["7 B", "2.9 MB", "350.0 GB", "2.0 TB"]


def test_rows_of_a_shard_with_a_flipped_byte_are_made_again_by_the_next_stage(tmp_path: Path) -> None:
    grid = cells()
    run(grid, tmp_path)
    spec = next(part.spec for part in inputs_of(grid, context(tmp_path)) if not part.encodes)
    [path] = (tmp_path / "features" / spec.name).glob("*.safetensors")
    kept = bytearray(path.read_bytes())
    kept[-1] ^= 64
    path.write_bytes(kept)
    assert missing(inputs_of(grid, context(tmp_path)), Sync(tmp_path / "features")) == []  # nobody has read it yet
    stores._stores.clear()
    assert sum(made_in(cell, tmp_path)[2] for cell in grid) == 1, "the one row is computed where it is read"
    run(grid, tmp_path)
    stores._stores.clear()
    assert sum(made_in(cell, tmp_path)[2] for cell in grid) == 0
    assert not list(path.parent.glob("*.damaged"))
