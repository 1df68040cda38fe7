"""What an import costs: reading a metric or planning a grid loads neither torch nor Ray.

Which package may import which is checked by import-linter (``make lint``, contracts in pyproject.toml).
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("diffup", "experiments", "cluster", "analysis")
HEAVY = ("torch", "ray", "timm", "open_clip", "mlflow")


def module_name(path: Path) -> str:
    """Dotted name of a file of the repository, e.g. ``diffup.data.dataset``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODULES = [module_name(path) for path in FILES if path.name != "__main__.py"]
LIGHT = [
    name
    for name in MODULES
    if name.startswith(("experiments", "analysis", "diffup.grid"))
    or name in (
        "diffup", "diffup.config", "diffup.evaluation.metrics", "diffup.episodes.episode", "diffup.episodes.sampling",
        "diffup.episodes.protocols", "diffup.episodes.annotations", "diffup.evaluation.adapter", "diffup.models.card",
        "diffup.training.recipes",
    )
]  # fmt: skip


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=module_name)
def test_package_files_import_nothing(path: Path) -> None:
    """An import in ``__init__.py`` would load torch for a caller that wants a metric only."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assert not [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]


def test_light_modules_load_neither_torch_nor_ray() -> None:
    """All of them, imported in one fresh process, whatever they import in turn."""
    code = (
        "import importlib, sys\n"
        f"for name in {LIGHT!r}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "    if heavy:\n"
        "        sys.exit(f'importing {name} loads {heavy[0]}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
