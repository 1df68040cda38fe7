"""What the tests of the platform share."""

from __future__ import annotations

import pytest

from cluster.execution import inputs as opened
from tests.helpers.toy import ToyBackbone, ToyDataset


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every data set is the toy one, every backbone the toy one."""
    made = ToyDataset()
    monkeypatch.setattr(opened, "_open", lambda path: made)
    monkeypatch.setattr(opened, "_backbone", lambda *where: ToyBackbone())
    opened._features.cache_clear()
