"""Fixtures of the tests of the API and of data sets; heavy imports wait until one is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from diffup import DiffUp
    from diffup.data.dataset import Dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A small shapes4i."""
    from tests.unit.trained import make_data

    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def results(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result store with one training cell, `tests.unit.trained.CELL`."""
    from tests.unit.trained import make_results

    return make_results(data, tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def model(results: Path) -> DiffUp:
    """That cell's checkpoint, loaded."""
    from diffup import DiffUp
    from tests.unit.trained import CELL

    return DiffUp.load(results / CELL.key())


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Folder of indexes."""
    return tmp_path / "cache"


@pytest.fixture
def json_path(tmp_path: Path) -> Path:
    """``dataset.json`` of a sound data set in VOC layout."""
    from tests.unit.folders import write_voc

    return write_voc(tmp_path / "toy")
