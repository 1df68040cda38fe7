"""The benchmark runs from end to end; its figures are looked at by people, not by tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_decode_speed_prints_every_line_with_its_bar() -> None:
    done = subprocess.run(
        [
            sys.executable, "benchmarks/decode_speed.py", "--backbone", "tiny_resnet", "--input-size", "64",
            "--rounds", "1", "--episodes", "8", "--batch-size", "2", "--profile",
        ],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    names = [line.split("|")[1].strip() for line in lines[1:]]
    assert [name.split(",")[0].split(":")[0] for name in names] == [
        "encoding two images", "decoding an episode", "decoding an episode", "cold fold", "memory beyond the features",
    ]  # fmt: skip
    assert all(re.search(r"\| (yes|NO) *\|$", line) for line in lines[2:])
    assert "evaluate.predict" in done.stdout and "torch" in done.stdout.splitlines()[1]
