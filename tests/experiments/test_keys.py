"""Keys of cells and hashes of protocols, frozen: a result that somebody has must still be found by its key."""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path

import pytest

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "keys.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def shapes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The embedded data set, written once."""
    from diffup.data.dataset import resolve_dataset

    resolve_dataset("shapes4i")


@pytest.mark.parametrize("command", GOLDEN["grids"])
def test_a_grids_cells_keep_their_keys(command: str) -> None:
    name, *arguments = command.split()
    script = importlib.import_module(f"experiments.{name}")
    if name == "quickstart":
        from cluster import cli

        options = cli.parser(name, "", episodes=script.EPISODES)
    else:
        options = script.options()
    cells, _ = script.build(options.parse_args(arguments))
    keys = [cell.key() for cell in cells]
    found = {"cells": len(keys), "first": keys[0], "sha256": hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]}
    assert found == GOLDEN["grids"][command]


def test_protocols_keep_their_hashes() -> None:
    from diffup.protocols import PROTOCOLS, get_protocol

    assert {name: get_protocol(name).hash() for name in sorted(PROTOCOLS)} == GOLDEN["protocols"]
