"""A slice of the ablations for real: embedded data and backbone, four training steps, through Ray to the table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.ray
def test_a_slice_of_the_ablations_runs_to_its_table_and_then_has_nothing_to_do(shapes4i: Path, tmp_path: Path) -> None:
    command = [sys.executable, "experiments/ablations.py", "--embedded", "--backbones", "tiny_resnet", "--steps", "4"]
    command += ["--episodes", "8", "--variants", "steps_1,only_max_cosine", "--results", str(tmp_path / "results")]
    command += ["--max-concurrent", "1"]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert first.returncode == 0, first.stderr
    assert "11 of 11 cells finished" in first.stdout  # 2 trained; base, steps_1 and only_max_cosine on 3 tasks
    table = [line for line in first.stdout.splitlines() if line.startswith("| tiny_resnet") or line.startswith("|  ")]
    assert [line.split("|")[2].strip() for line in table] == ["DiffUp", "steps_1", "only_max_cosine"]
    assert "–" not in "".join(table)
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stderr
    assert "11 finished, 0 to do" in again.stdout
    assert [line for line in again.stdout.splitlines() if line.startswith("|")] == [
        line for line in first.stdout.splitlines() if line.startswith("|")
    ]
