"""Protocols: names, hashes, and which images count."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffup.episodes.protocols import PROTOCOLS, get_protocol, main, nearest

PAIRED = PROTOCOLS["paired"]


def test_every_protocol_is_found_under_its_own_name() -> None:
    assert all(get_protocol(name).name == name for name in PROTOCOLS)
    with pytest.raises(ValueError, match="'fair'; there is bam, hsnet, paired"):
        get_protocol("fair")


def test_every_rule_enters_the_hash() -> None:
    other: dict[str, Any] = {
        "min_pixels": 1,
        "pixel_datasets": (),
        "min_fraction": 0.02,
        "draw": "list order",
        "sides": (("", 400),),
        "fit": "longest side",
        "training_images": "without novel classes",
        "episodes": (("", 9),),
        "seeds": (0, 1),
    }
    changed = [
        dataclasses.replace(PAIRED, **{field.name: other.get(field.name, "other")})
        for field in dataclasses.fields(PAIRED)
    ]
    assert len({protocol.hash() for protocol in [PAIRED, *changed]}) == len(changed) + 1


def test_the_hash_is_the_same_in_every_process() -> None:
    """It is part of cell keys: a change makes finished results unreachable, and must be meant."""
    assert PAIRED.hash() == "d024ea561e0a"
    code = "from diffup.episodes.protocols import PROTOCOLS; print(PROTOCOLS['paired'].hash())"
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


def test_labels_are_compared_at_the_size_that_the_protocol_names() -> None:
    assert PAIRED.label_size("pascal5i", (375, 500)) == (375, 500)
    assert PROTOCOLS["pfenet"].label_size("pascal5i", (375, 500)) == (375, 500)
    assert PROTOCOLS["hsnet"].label_size("pascal5i", (375, 500)) == (400, 400)
    assert PROTOCOLS["bam"].label_size("pascal5i", (375, 500)) == (355, 473)
    assert PROTOCOLS["bam"].label_size("coco20i", (500, 375)) == (641, 481)
    assert PROTOCOLS["panet"].label_size("anything", (375, 500)) == (417, 417)
    assert PROTOCOLS["bam"].label_size("pascal5i", (1, 4000)) == (1, 473), "never an empty side"


def test_labels_are_resized_as_torch_does_it() -> None:
    rng = np.random.default_rng(0)
    for old, new in (((37, 50), (41, 17)), ((10, 20), (20, 40)), ((30, 30), (30, 30)), ((7, 5), (3, 3))):
        labels = rng.choice(np.array([0, 1, 255], np.uint8), size=old)
        by_torch = F.interpolate(torch.from_numpy(labels)[None, None].float(), size=new, mode="nearest")[0, 0]
        np.testing.assert_array_equal(nearest(labels, new), by_torch.numpy().astype(np.uint8))


def test_numbers_of_episodes() -> None:
    assert [PROTOCOLS["pfenet"].episode_count(name) for name in ("pascal5i", "coco20i", "birds")] == [5000, 20000, 1000]
    assert PAIRED.episode_count("pascal5i") == 1000


@pytest.mark.parametrize(
    "change",
    [
        {"draw": "by hand"},
        {"fit": "crop"},
        {"training_images": "none"},
        {"sides": (("", 0),)},
        {"episodes": (("", 0),)},
    ],
)
def test_unknown_rules_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(PAIRED, **change)


def test_the_command_says_every_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "bam"]) == 0
    told = capsys.readouterr().out
    assert all(
        word in told for word in (PROTOCOLS["bam"].hash(), "473", "2048", "without a pixel of a novel class", "5")
    )
    assert main(["show", "fair"]) == 2
    assert "there is bam, hsnet, paired, panet, pfenet" in capsys.readouterr().err
    assert main(["list"]) == 0
    assert capsys.readouterr().out.split() == [word for p in PROTOCOLS.values() for word in (p.name, p.hash())]
