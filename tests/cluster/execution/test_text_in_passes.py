"""Cells with and without text in one pass: images are encoded once for both, text for its queries alone."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from cluster.execution import inputs as opened
from cluster.execution.context import WorkContext
from cluster.execution.run_cell import Outcome, execute, execute_together
from cluster.execution.work_units import WorkUnit, pass_of
from diffup.config import InputConfig
from diffup.errors import UserError
from diffup.grid.axes import PRIOR_MEAN, Backbone, evaluation_cells
from diffup.grid.cell import Cell
from diffup.grid.datasets import Data
from tests.helpers.toy import ToyBackbone, ToyDataset

pytestmark = pytest.mark.usefixtures("one_thread", "toy")
DATA = Data(name="toy", fingerprint=ToyDataset.fingerprint, folds=3)
BACKBONE, READER = (Backbone(name=name, weights="random:0") for name in ("resnet18", "open_clip:RN50"))
TASKS = [(1, "mask"), (2, "box"), (0, "text"), (1, "mask+text")]
COUNTS = ["episode", "query", "inter_fg", "union_fg", "inter_bg", "union_bg", "prob_sum"]
EPISODES = 10


def cells() -> list[Cell]:
    config = InputConfig(input_size=48, feature_grid=8)
    return evaluation_cells(
        DATA, 0, [BACKBONE], TASKS, config=config, episodes=EPISODES, sample=PRIOR_MEAN, companion=READER
    )


def context(root: Path) -> WorkContext:
    return WorkContext(results=root, datasets={"toy": "nowhere"}, cache="none", batch_size=4, launch="test")


def test_they_share_images_and_maps_and_count_as_alone(tmp_path: Path) -> None:
    grid, alone = cells(), dict[str, Outcome]()
    assert len({pass_of(WorkUnit(cell)) for cell in grid}) == 1
    for cell in grid:
        opened._features.cache_clear()
        alone[cell.key()] = execute(cell, context(tmp_path))
    opened._features.cache_clear()
    together = dict(execute_together(grid, context(tmp_path)))
    encoded = priors = 0
    for cell, made in together.items():
        assert isinstance(made, Outcome) and made.episodes is not None
        expected = alone[cell.key()]
        assert expected.episodes is not None
        pd.testing.assert_frame_equal(made.episodes[COUNTS], expected.episodes[COUNTS])
        assert made.provenance["text_weights_hash"] == ("0" if "text" in cell.annotation else "")
        encoded += made.provenance["images_encoded"]
        priors += made.provenance["priors_computed"]
    (text,) = (alone[cell.key()] for cell in grid if cell.annotation == "text")
    (two,) = (alone[cell.key()] for cell in grid if cell.shots == 2)
    assert text.episodes is not None
    queries = text.episodes["query"].nunique()
    assert encoded == two.provenance["images_encoded"] + queries
    assert priors == sum(alone[cell.key()].provenance["priors_computed"] for cell in grid if "+" not in cell.annotation)


def test_a_text_model_that_cannot_be_loaded_stops_only_what_reads_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str, *where: object) -> ToyBackbone:
        if name == READER.name:
            raise UserError("no such weights")
        return ToyBackbone()

    monkeypatch.setattr(opened, "_backbone", load)
    for cell, made in execute_together(cells(), context(tmp_path)):
        assert isinstance(made, UserError if "text" in cell.annotation else Outcome)
