"""Protocols: names, hashes, and which images count."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from typing import Any

import pytest

from diffup.protocols import PROTOCOLS, Protocol, get_protocol

PAIRED = PROTOCOLS["paired"]


def test_every_protocol_is_found_under_its_own_name() -> None:
    assert all(get_protocol(name).name == name for name in PROTOCOLS)
    with pytest.raises(ValueError, match="'fair'; there is paired"):
        get_protocol("fair")


def test_every_rule_enters_the_hash() -> None:
    other: dict[str, Any] = {"min_pixels": 1, "pixel_datasets": (), "min_fraction": 0.02}
    changed = [
        dataclasses.replace(PAIRED, **{field.name: other.get(field.name, "other")})
        for field in dataclasses.fields(PAIRED)
    ]
    assert len({protocol.hash() for protocol in [PAIRED, *changed]}) == len(changed) + 1


def test_the_hash_is_the_same_in_every_process() -> None:
    """It is part of cell keys: a change makes finished results unreachable, and must be meant."""
    assert PAIRED.hash() == "d024ea561e0a"
    code = "from diffup.protocols import PROTOCOLS; print(PROTOCOLS['paired'].hash())"
    env = {**os.environ, "PYTHONHASHSEED": "123"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True, timeout=60)
    assert done.stdout.strip() == PAIRED.hash()


def test_needed_pixels() -> None:
    assert PAIRED.needed_pixels("pascal5i", (375, 500)) == 2048
    assert PAIRED.needed_pixels("coco20i", (10, 10), 0.5) == 2048
    assert PAIRED.needed_pixels("birds", (100, 200)) == 200
    assert PAIRED.needed_pixels("birds", (100, 200), 0.05) == 1000
    assert PAIRED.needed_pixels("birds", (100, 200), 0) == 1, "an image without the class never counts"


@pytest.mark.parametrize("change", [{"min_pixels": 0}, {"min_fraction": -0.1}, {"min_fraction": 1.0}])
def test_senseless_rules_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(PAIRED, **change)


def test_a_protocol_describes_itself() -> None:
    text = Protocol(name="p", min_pixels=9, pixel_datasets=("d",), min_fraction=0.25).describe()
    assert "9 px (d)" in text and "25.0%" in text and text.startswith("p [")
