"""Keys of cells and hashes of protocols, frozen: a result that somebody has must still be found by its key."""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path

import pytest

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "keys.json").read_text())


@pytest.mark.usefixtures("shapes4i")
@pytest.mark.parametrize("command", GOLDEN["grids"])
def test_a_grids_cells_keep_their_keys(command: str) -> None:
    name, *arguments = command.split()
    script = importlib.import_module(f"experiments.{name}")
    cells, _ = script.build(script.STUDY.parse(arguments))
    keys = [cell.key() for cell in cells]
    found = {"cells": len(keys), "first": keys[0], "sha256": hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]}
    assert found == GOLDEN["grids"][command]


def test_protocols_keep_their_hashes() -> None:
    from diffup.episodes.protocols import PROTOCOLS, get_protocol

    assert {name: get_protocol(name).hash() for name in sorted(PROTOCOLS)} == GOLDEN["protocols"]
