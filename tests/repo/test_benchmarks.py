"""The benchmarks run from end to end; its figures are looked at by people, not by tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks import accelerator
from benchmarks.decode_speed import main
from benchmarks.operators import counted


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


pytestmark = pytest.mark.tools
SMALL = ["--size", "64", "--rounds", "1", "--episodes", "4", "--batch", "2", "--matrix", "64"]


def test_the_accelerators_benchmark_runs_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "cpu.md"
    assert accelerator.main(["--device", "cpu", "--backbones", "tiny_resnet", *SMALL, "--out", str(out)]) == 0
    text = out.read_text()
    assert text == capsys.readouterr().out
    assert (
        len(re.findall(r"\| tiny_resnet \| \w+ \| \d+ images/s \| \d+ images/s \| [\d.]+ TFLOP/s \| \d+ % \|", text))
        == 2
    )
    assert len(re.findall(r"\| [15]-shot \| (?:float32|bfloat16) \| \d+ episodes/s \|", text)) == 4


@pytest.mark.gpu
def test_the_accelerators_benchmark_runs_on_one() -> None:
    assert accelerator.main(["--backbones", "resnet50", *SMALL]) == 0


def test_the_accelerators_benchmark_says_that_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert accelerator.main(SMALL) == 2 and "no CUDA GPU" in capsys.readouterr().err


def test_few_operators_a_triple_and_an_episode() -> None:
    """What a GPU would launch at 64 episodes a batch, and no more at 5 shots for the same number of pairs."""
    matching, decoding = counted(64)
    assert matching.total() <= 3 * 64
    assert decoding.total() <= 10 * 64
    assert decoding["conv2d"] > 50, "the decoder was not counted"
    more, _ = counted(12, shots=5, pairs=64)
    assert more.total() <= 3 * 12 * 5
