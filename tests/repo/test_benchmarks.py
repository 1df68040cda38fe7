"""The benchmarks run from end to end; its figures are looked at by people, not by tests."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import torch

from benchmarks import accelerator, grid_pass
from benchmarks.decode_speed import main
from benchmarks.measure import Bench, covered
from benchmarks.operators import counted
from cluster.planning.rates import read_rates


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
    assert "evaluate.segment" in printed and "torch" in printed.splitlines()[1]


pytestmark = pytest.mark.tools
SMALL = ["--size", "64", "--grid", "8", "--seconds", "0.01", "--batch", "2", "--matrix", "64"]


def test_the_accelerators_benchmark_measures_a_cpu_and_writes_rates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results" / "cpu.json"
    threads = torch.get_num_threads()
    assert accelerator.main(["--device", "cpu", "--backbones", "tiny_resnet", *SMALL, "--out", str(out)]) == 0
    assert torch.get_num_threads() == threads
    printed, document, rates = capsys.readouterr().out, json.loads(out.read_text()), read_rates(out)
    rows = {(row["what"], row["precision"]): row for row in document["rows"]}
    for what in (
        "tiny_resnet: encoded", "tiny_resnet: read, resized and encoded", "prior maps, a query each",
        "10-shot episodes", "10-shot episodes, prior maps at hand", "training, prior maps at hand",
    ):  # fmt: skip
        row = rows[what, "float32"]
        assert row["per_s"] > 0 and row["peak_mb"] > 0
        assert f"| {what} | float32 | {row['per_s']:.3g} {row['unit']}s |" in printed
    assert rates.device == "cpu" and rates.decode == 1 / rows["JPEGs read and resized, 1 thread", ""]["per_s"]
    encoded = rows["tiny_resnet: encoded", "float32"]["per_s"]
    assert rates.encode("tiny_resnet", document["encode"][0]["gflops"]) == pytest.approx(1 / encoded)
    assert "The paper's grid, 1232 evaluation cells" in printed
    assert document["command"].startswith("python -m benchmarks.accelerator --device cpu")


@pytest.mark.gpu
def test_the_accelerators_benchmark_measures_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert accelerator.main(["--device", "cuda", "--backbones", "resnet50", *SMALL, "--out", str(out)]) == 0
    rows = [row for row in json.loads(out.read_text())["rows"] if row["what"] == "resnet50: encoded"]
    assert read_rates(out).device == "cuda" and all(0 < row["busy"] <= 1 for row in rows)


def test_the_accelerators_benchmark_says_that_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert accelerator.main(["--device", "cuda", *SMALL]) == 2 and "no CUDA GPU" in capsys.readouterr().err


def test_few_operators_a_triple_and_an_episode() -> None:
    """What a GPU would launch at 64 episodes a batch, and no more at 5 shots for the same number of pairs."""
    matching, decoding = counted(64)
    assert matching.total() <= 3 * 64
    assert decoding.total() <= 10 * 64
    assert decoding["conv2d"] > 50, "the decoder was not counted"
    more, _ = counted(13, shots=5, pairs=65)
    assert more.total() <= 3 * 13 * 5


def test_on_a_processor_that_others_use_their_time_does_not_count() -> None:
    def wait() -> None:
        time.sleep(0.05)

    alone, shared = Bench("cpu", 0.1, 1), Bench("cpu", 0.1, 1, shared=True)
    assert alone.measure("waiting", "call", 1, wait) <= 20
    assert shared.measure("waiting", "call", 1, wait) > 40
    assert shared.measure("waiting", "call", 1, wait, threads=2) <= 20  # several threads are timed by the clock


def test_busy_time_counts_what_runs_at_once_only_once() -> None:
    assert covered([(5, 6), (0, 2), (1, 3), (1.5, 2)]) == 4
    assert covered([]) == 0


@pytest.mark.ray
def test_a_grid_in_passes_gives_the_counts_of_one_cell_at_a_time(tmp_path: Path) -> None:
    sizes = ["--photographs", "24", "--classes", "4", "--episodes", "2", "--size", "64", "--cells", "8"]
    more = ["--backbones", "tiny_resnet,tiny_regnet", "--companion", "tiny_clip", "--max-concurrent", "1"]
    assert grid_pass.main(["--out", str(tmp_path), *sizes, *more]) == 0
    document = json.loads((tmp_path / "grid_pass.json").read_text())
    alone, fused = document["rounds"]
    assert (document["cells"], document["episodes"], document["differ"]) == (26, 52, 0)
    assert alone["photographs_kept"] == 0 < fused["photographs_kept"] <= 24
    assert 0 < fused["priors_computed"] < alone["priors_computed"]
