"""Who may import whom: the method knows nothing of the platform, and reading a metric never loads torch or ray."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("diffup", "experiments", "cluster", "analysis")
# What the platform may know of experiments.
DRIVERS = frozenset({"experiments.cell", "experiments.data", "experiments.grids"})


def module_name(path: Path) -> str:
    """Dotted name of a file of the repository, e.g. ``diffup.data.voc``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> list[Path]:
    """Every Python file of the four packages."""
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def _names(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        parents = package.split(".")
        base = ".".join(parents[: len(parents) - node.level + 1] + ([base] if base else []))
    # `from diffup import metrics` and `from diffup.metrics import miou` both name diffup.metrics.
    yield from (f"{base}.{alias.name}" for alias in node.names)


def imported(path: Path, *, at_import: bool = False) -> set[str]:
    """Dotted names that a file imports, anywhere, or only those that importing the file executes.

    Args:
        path: a file of the repository.
        at_import: leave out imports inside functions and under ``if TYPE_CHECKING``.
    """
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.update(_names(node, package))
            return
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for statement in node.orelse:
                visit(statement)
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))
    return found


def within(name: str, *prefixes: str) -> bool:
    """Whether a dotted name is one of the prefixes or lies below it."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def forbidden(path: Path) -> list[str]:
    """The imports of a file that its package may not have."""
    name = module_name(path)
    package = name.partition(".")[0]
    bad: list[str] = []
    for target in sorted(imported(path)):
        ours = within(target, *PACKAGES)
        if package == "diffup":
            wrong = within(target, "ray", "mlflow") or (ours and not within(target, "diffup"))
        elif package == "experiments":
            wrong = within(target, "ray", "mlflow")
            if name in DRIVERS:  # part of the chain below the platform; the scripts beside them are above it
                wrong = wrong or (ours and not within(target, "diffup", *DRIVERS))
        elif package == "cluster":
            wrong = ours and not within(target, "diffup", "cluster", *DRIVERS)
        else:
            reads_runs = name == "analysis.from_mlflow"  # the one place that reads MLflow, and only when it is called
            wrong = within(target, "ray", "torch", *(() if reads_runs else ("mlflow",))) or (
                ours and not within(target, "analysis", "diffup.errors", "diffup.metrics", "diffup.episodes")
            )
        if wrong:
            bad.append(target)
    return bad


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_imports_follow_the_direction_of_the_packages(path: Path) -> None:
    """diffup <- experiments.cell/data/grids <- cluster <- scripts; diffup.errors, metrics, episodes <- analysis."""
    assert not forbidden(path), (
        f"{path.relative_to(ROOT)} may not import {', '.join(forbidden(path))}; the direction is diffup <- "
        "experiments.cell, .data, .grids <- cluster <- experiments/*.py, and analysis reads only diffup.metrics "
        "and diffup.episodes"
    )


@pytest.mark.parametrize("path", [path for path in modules() if path.name == "__init__.py"], ids=module_name)
def test_package_files_import_nothing(path: Path) -> None:
    """An import in ``__init__.py`` would load torch for whoever wants a metric only."""
    assert not imported(path, at_import=True)


@pytest.mark.parametrize(
    "path", [path for path in modules() if module_name(path).startswith("experiments.")], ids=module_name
)
def test_experiments_name_no_torch_at_import(path: Path) -> None:
    """A grid is planned without the seconds and the memory that torch takes."""
    assert not [name for name in imported(path, at_import=True) if within(name, "torch", "timm", "open_clip")]


LIGHT = sorted(
    {module_name(path) for path in modules() if within(module_name(path), "experiments", "analysis")}
    | {"diffup.config", "diffup.metrics", "diffup.episodes", "diffup.protocols", "diffup.annotations"}
    | {"diffup", "diffup.adapter", "diffup.card", "diffup.recipes"}
)


def test_light_modules_load_neither_torch_nor_ray() -> None:
    """All of them, imported in one fresh process, whatever they import in turn."""
    code = (
        "import importlib, sys\n"
        f"for name in {LIGHT!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = [m for m in ('torch', 'ray', 'timm', 'open_clip', 'mlflow') if m in sys.modules]\n"
        "    if heavy:\n"
        "        sys.exit(f'importing {name} loads {heavy[0]}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def write(root: Path, relative: str, text: str) -> Path:
    """A file of a made-up repository."""
    path = root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("relative", "text", "expected"),
    [
        ("diffup/x.py", "def f():\n    import ray.tune\n", ["ray.tune"]),
        ("diffup/data/x.py", "from ... import cluster\n", []),  # beyond the top: Python itself refuses it
        ("diffup/x.py", "from experiments import cell\n", ["experiments.cell"]),
        ("experiments/grids.py", "from cluster.plan import plan\n", ["cluster.plan.plan"]),
        ("experiments/quickstart.py", "from cluster.plan import plan\n", []),
        ("experiments/quickstart.py", "import ray\n", ["ray"]),
        ("cluster/x.py", "import ray, diffup.model\nfrom experiments.cell import Cell\n", []),
        ("cluster/x.py", "from experiments import quickstart\n", ["experiments.quickstart"]),
        ("analysis/x.py", "from diffup import metrics, model\n", ["diffup.model"]),
        ("analysis/x.py", "def f():\n    from torch import nn\n", ["torch.nn"]),
        ("analysis/x.py", "import mlflow\n", ["mlflow"]),
        ("analysis/from_mlflow.py", "import mlflow, torch\n", ["torch"]),
    ],
)
def test_the_rule_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: str, text: str, expected: list[str]
) -> None:
    """The checks above find what they should, also inside functions."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert forbidden(write(tmp_path, relative, text)) == expected


def test_imports_at_import_time_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An import in a function or for the type checker is not executed by importing the module."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    text = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import torch\n"
        "try:\n    import json\nexcept ImportError:\n    json = None\n"
        "def f():\n    import timm\n"
    )
    path = write(tmp_path, "experiments/x.py", text)
    assert imported(path, at_import=True) == {"typing.TYPE_CHECKING", "json"}
    assert imported(path) == {"typing.TYPE_CHECKING", "json", "torch", "timm"}
