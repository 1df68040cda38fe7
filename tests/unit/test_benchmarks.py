"""The benchmark runs from end to end; its figures are looked at by people, not by tests."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks.decode_speed import main


def test_decode_speed_prints_every_line_with_its_bar(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--input-size", "64", "--rounds", "1", "--episodes", "8", "--batch-size", "2"]
    threads = torch.get_num_threads()
    try:
        assert main(["--backbone", "tiny_resnet", *sizes, "--profile"]) == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    names = [re.split("[,:]", line.split("|")[1])[0].strip() for line in lines[1:]]
    assert names == [
        "encoding two images", "decoding an episode", "decoding an episode", "cold fold", "memory beyond the features",
    ]  # fmt: skip
    assert all(re.search(r"\| (yes|NO) *\|$", line) for line in lines[2:])
    assert "evaluate.predict" in printed and "torch" in printed.splitlines()[1]
