"""A model trained for three steps on a small shapes4i, for tests of the API (fixtures: conftest.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cluster.execution.run_cell import WorkContext, execute
from diffup import Result
from diffup.backbones.weights import weights_identity
from diffup.config import InputConfig, ModelConfig, TrainConfig
from diffup.data.dataset import Dataset, open_dataset
from diffup.data.shapes4i import generate
from diffup.grid.cell import TrainingCell

INPUT = InputConfig(
    input_size=96, feature_grid=8, companion="tiny_clip", companion_weights=weights_identity("tiny_clip")
)
CELL = TrainingCell(
    dataset="shapes4i", fold=1, backbone="tiny_resnet", weights=weights_identity("tiny_resnet"), input=INPUT,
    model=ModelConfig(decoder_grid=16, width=16), train=TrainConfig(steps=3, batch_size=2, max_shots=2),
)  # fmt: skip


def make_data(folder: Path) -> Dataset:
    """Four images a class."""
    return open_dataset(generate(folder / "shapes4i", images=4, progress=False))


def make_results(data: Dataset, folder: Path) -> Path:
    """A result store with one training cell, `CELL`."""
    execute(CELL, WorkContext(results=folder, datasets={"shapes4i": str(data.root / "dataset.json")}))
    return folder


def example(data: Dataset) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """A query, a support, and the support's mask."""
    query, support = of_class(data, 0)[:2]
    return data.image(query), data.image(support), (data.mask(support, 0) == 1).astype(np.uint8)


def of_class(data: Dataset, class_index: int) -> list[str]:
    return [i for i in data.image_ids if class_index in data.areas[i]]


def same(one: Result, two: Result, tolerance: float = 0.0) -> None:
    np.testing.assert_allclose(one.probability, two.probability, atol=tolerance, rtol=0)
    np.testing.assert_allclose(one.variance, two.variance, atol=tolerance, rtol=0)
    assert one.predicted_iou == pytest.approx(two.predicted_iou, abs=max(tolerance, 1e-12))
