"""Scripts and modules of a clone in an environment that lacks what they need: one line, exit code 2, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffup.errors import IN_A_CLONE, INSTALL

ROOT = Path(__file__).resolve().parents[2]
STUDIES = sorted(path.name for path in (ROOT / "experiments").glob("[a-z]*.py"))
HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
"""


def without(hidden: str, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, where a module can't be imported."""
    (folder / "sitecustomize.py").write_text(HIDE.format(names=[hidden]))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("script", STUDIES)
def test_a_study_outside_an_editable_install(script: str, tmp_path: Path) -> None:
    done = without("cluster", f"experiments/{script}", "--help", folder=tmp_path)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == f"error: cluster is not installed; run in your clone of DiffUp: {INSTALL}\n"


@pytest.mark.parametrize(
    ("command", "hidden"),
    [
        ("analysis --help", "pandas"),
        ("analysis paper --help", "threadpoolctl"),
        ("analysis.report --help", "pandas"),
        ("cluster submit --address http://127.0.0.1:9 experiments/quickstart.py", "ray"),
    ],
)
def test_a_module_without_the_platform(command: str, hidden: str, tmp_path: Path) -> None:
    done = without(hidden, "-m", *command.split(), folder=tmp_path)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == f"error: {hidden} is not installed; run in your clone of DiffUp: {INSTALL}\n"


def test_any_other_missing_module_keeps_its_traceback(tmp_path: Path) -> None:
    assert "torch" not in IN_A_CLONE
    done = without("tyro", "experiments/quickstart.py", "--help", folder=tmp_path)
    assert done.returncode == 1 and "Traceback" in done.stderr and INSTALL not in done.stderr
