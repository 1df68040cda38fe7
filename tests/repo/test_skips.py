"""The suite's own rule about skips: CI may skip for a missing GPU or missing shared data, and for nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUITE = """
import os
from pathlib import Path
import pytest

def test_runs():
    assert Path(os.environ["DIFFUP_HOME"]).is_dir()

def test_program(require_program):
    require_program("no-such-program-anywhere")

def test_data(shared_data):
    pass

@pytest.mark.xfail(reason="known")
def test_known():
    assert False
"""


def run_suite(directory: Path, *more: str, ci: bool) -> tuple[int, list[str]]:
    """Exit status and printed lines of pytest on a small suite that uses this project's conftest.py."""
    shutil.copy(ROOT / "tests" / "conftest.py", directory)
    (directory / "test_small.py").write_text(SUITE)
    environment = {name: value for name, value in os.environ.items() if name not in ("DIFFUP_CI", "DIFFUP_SHARED")}
    environment |= {"DIFFUP_CI": "1"} if ci else {}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(directory), "."]
    command += more
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout.splitlines()


@pytest.mark.slow
def test_locally_a_missing_program_skips(tmp_path: Path) -> None:
    """A machine without LaTeX can still run the rest."""
    status, lines = run_suite(tmp_path, ci=False)
    assert status == 0
    assert lines[-1].startswith("1 passed, 2 skipped, 1 xfailed")


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["0", "2"])
def test_in_ci_a_missing_program_fails_and_missing_data_is_counted(processes: str, tmp_path: Path) -> None:
    """The count stands before pytest's last line, which is what a reader of the log sees."""
    status, lines = run_suite(tmp_path, "-n", processes, ci=True)
    assert status == 1
    assert "no-such-program-anywhere" in "\n".join(lines)
    assert lines[-1].startswith("1 failed, 1 passed, 1 skipped, 1 xfailed")
    assert "lawful skips: 1 for no shared data" in lines[:-1]
