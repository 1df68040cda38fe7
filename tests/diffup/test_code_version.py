"""The hash of the code changes when a number can, and stays when it can't."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import grimp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import code_version as cluster_source
from diffup import code_version as source
from diffup.code_version import MODULES, NO_FIGURES, ROOT, code_hash, meaning, reached

FILES = reached(MODULES)
PLAIN = '''"""Doc."""
from typing import TYPE_CHECKING
WIDTH = 3

class Box:
    """Doc."""
    side: int = 4

def area(a: int, b: float = 2.0) -> float:
    """Doc."""
    if a < 0:
        raise UserError(f"a is {a}; give 0 or more")
    return a * b + WIDTH
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Doc."""\nfrom', "from"),
        ('"""Doc."""', '"""Another, with\n\nlines."""'),
        ("WIDTH = 3", "WIDTH = 3  # pixels"),
        ("WIDTH = 3", "# a comment\n\n\nWIDTH = (\n    3\n)"),
        ("WIDTH = 3", 'WIDTH = 3\n"""What describes the variable."""'),
        ("a: int, b: float = 2.0", "a, b=2.0"),
        (") -> float:", ") -> object:"),
        ("WIDTH = 3", "if TYPE_CHECKING:\n    import torch\nWIDTH = 3"),
        ("give 0 or more", "it is negative"),
        ("    side: int = 4", "    side: int = 4\n    pass"),
        ("\n", "\r\n"),
    ],
)
def test_what_no_number_depends_on_is_left_out(old: str, new: str) -> None:
    assert old in PLAIN
    changed = PLAIN.replace(old, new)
    assert meaning(changed.encode()) == meaning(PLAIN.encode())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("WIDTH = 3", "WIDTH = 4"),
        ("WIDTH = 3", "WIDTH = 3.0"),
        ("WIDTH = 3", "WIDTH = '3'"),
        ("WIDTH = 3", "WIDTH = None"),
        ("a * b", "a / b"),
        ("a * b + WIDTH", "b * a + WIDTH"),
        ("a < 0", "a <= 0"),
        ("b: float = 2.0", "b: float = 2.5"),
        ("b: float = 2.0", "b: float"),
        ("side: int = 4", "side: int = 5"),
        ("side: int = 4", "side: int"),
        ("class Box:", "@dataclass\nclass Box:"),
        ("return a * b + WIDTH", "a * b + WIDTH"),
        ("def area", "def volume"),
        ("UserError(f", "ValueError(f"),
        ("WIDTH = 3", "WIDTH = 3\n\ndef more():\n    return 1"),
    ],
)
def test_what_a_number_can_depend_on_is_in(old: str, new: str) -> None:
    assert old in PLAIN
    assert meaning(PLAIN.replace(old, new).encode()) != meaning(PLAIN.encode())


def sites(tree: ast.AST) -> Iterator[Callable[[], None]]:
    """Ways to change what a module computes: each call changes the tree in one place."""

    def assign(node: ast.AST, name: str, value: object) -> Callable[[], None]:
        return lambda: setattr(node, name, value)

    messages = {
        id(inner) for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) for inner in ast.walk(node)
    }  # fmt: skip
    for node in ast.walk(tree):
        if id(node) in messages:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            yield assign(node, "value", node.value + 1)
        elif isinstance(node, ast.BinOp):
            yield assign(node, "op", ast.Sub() if isinstance(node.op, ast.Add) else ast.Add())
        elif isinstance(node, ast.Compare):
            yield assign(node, "ops", [ast.Gt() if isinstance(node.ops[0], ast.Lt) else ast.Lt(), *node.ops[1:]])
        elif isinstance(node, ast.Attribute):
            yield assign(node, "attr", node.attr + "_")
        elif isinstance(node, ast.FunctionDef) and node.args.defaults:
            yield assign(node.args, "defaults", [*node.args.defaults[:-1], ast.Constant(value=12345)])


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_changed_number_operator_or_default_of_the_method_is_seen(data: st.DataObject) -> None:
    path = FILES[data.draw(st.sampled_from(sorted(name for name in FILES if name not in ("backbones", "data"))))]
    content = path.read_bytes()
    tree = ast.parse(content)
    assert meaning(ast.unparse(tree).encode()) == meaning(content), "layout and comments alone"
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    tree.body = [statement for statement in tree.body if "TYPE_CHECKING" not in ast.unparse(statement)]
    before = meaning(ast.unparse(tree).encode())
    if places := list(sites(tree)):
        data.draw(st.sampled_from(places))()
        assert meaning(ast.unparse(tree).encode()) != before


def test_all_that_a_cell_is_made_by_is_hashed() -> None:
    graph = grimp.build_graph("diffup", "cluster")
    work = ("cluster.execution.run_cell", "cluster.execution.inputs")
    used = {name for module in work for name in graph.find_modules_directly_imported_by(module)}
    used = {name for name in used if name.startswith("diffup.") and not name.startswith("diffup.grid.")}
    named = {name.removeprefix("diffup.") for name in used}
    covered = {name for name in named if name in (*FILES, *NO_FIGURES)}
    assert named == covered
    for name in (
        "training.trainer",
        "training.losses",
        "models.uapf",
        "models.uqdd",
        "models.schedule",
        "evaluation.metrics",
        "backbones.timm",
        "data.layouts.coco",
    ):
        assert name in FILES
    for name in (
        "api",
        "models.card",
        "errors",
        "evaluation.drawing",
        "evaluation.panels",
        "data.report",
        "data.__main__",
        "grid.cell",
    ):
        assert name not in FILES


def test_no_module_of_the_method_is_imported_by_a_name_made_at_run_time() -> None:
    """Such an import could not be followed; that of plug-ins is of foreign code, which has a version of its own."""
    found = {name for name, path in FILES.items() if "import_module" in path.read_text(encoding="utf-8")}
    assert found == {"plugins"}
    relative = [n for p in FILES.values() for n in ast.walk(ast.parse(p.read_bytes())) if getattr(n, "level", 0)]
    assert not relative


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package."""
    return Path(shutil.copytree(ROOT, tmp_path / "diffup", ignore=shutil.ignore_patterns("__pycache__")))


def edit(package: Path, name: str, old: str, new: str) -> None:
    path = package / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "old", "new", "changes"),
    [
        ("training/trainer.py", "CLIP_NORM = 1.0", "CLIP_NORM = 2.0", True),
        ("training/losses.py", '"""', '"""More words. ', False),
        ("evaluation/metrics.py", "from __future__", "\n# a comment\nfrom __future__", False),
        ("result.py", "THRESHOLD = 0.5", "THRESHOLD = 0.4", False),
        ("errors.py", "USER_ERROR, BUG = 2, 1", "USER_ERROR, BUG = 3, 1", False),
        ("config.py", "learning_rate: float = 1e-3", "learning_rate: float = 2e-3", True),
        (
            "evaluation/evaluate.py",
            "from __future__ import annotations\n",
            "from __future__ import annotations\nNEW = 1\n",
            True,
        ),
    ],
)
def test_the_hash_of_the_package(package: Path, name: str, old: str, new: str, changes: bool) -> None:
    before = code_hash.__wrapped__(MODULES, package)
    assert before == code_hash() and len(before) == 12
    edit(package, name, old, new)
    assert (code_hash.__wrapped__(MODULES, package) != before) is changes


def test_shipped_weights_and_new_modules_are_in_the_hash(package: Path) -> None:
    before = code_hash.__wrapped__(MODULES, package)
    (package / "unused.py").write_text("NUMBER = 1\n")
    assert code_hash.__wrapped__(MODULES, package) == before
    edit(package, "training/losses.py", "import torch\n", "import torch\nfrom diffup import unused\n")
    with_new = code_hash.__wrapped__(MODULES, package)
    assert with_new != before
    (package / "unused.py").write_text("NUMBER = 2\n")
    assert code_hash.__wrapped__(MODULES, package) not in (before, with_new)
    edit(package, "training/losses.py", "import torch\nfrom diffup import unused\n", "import torch\n")
    assert code_hash.__wrapped__(MODULES, package) == before
    weights = package / "backbones" / "embedded_weights" / "tiny_resnet.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert code_hash.__wrapped__(MODULES, package) != before


def test_a_training_does_not_depend_on_the_evaluation(package: Path) -> None:
    both = [code_hash.__wrapped__(names, package) for names in (("training.trainer",), MODULES)]
    assert both[0] == source.training_hash()
    edit(
        package,
        "evaluation/evaluate.py",
        "from __future__ import annotations\n",
        "from __future__ import annotations\nNEW = 1\n",
    )
    assert code_hash.__wrapped__(("training.trainer",), package) == both[0]
    assert code_hash.__wrapped__(MODULES, package) != both[1]


def test_features_depend_on_what_encodes_and_reads(monkeypatch: pytest.MonkeyPatch, package: Path) -> None:
    def found() -> str:
        return cluster_source.encoding_hash.__wrapped__()

    monkeypatch.setattr(cluster_source, "reached", lambda names: reached(names, package))
    before = found()
    assert before == cluster_source.encoding_hash()
    edit(package, "evaluation/encode.py", '"""', '"""More words. ')
    edit(package, "training/losses.py", "import torch\n", "import torch\nNEW = 1\n")
    edit(package, "config.py", "steps: int = 500", "steps: int = 600")
    assert found() == before, "docstrings, losses and training are no part of it"
    edit(package, "evaluation/encode.py", "INFO_GRID = 40", "INFO_GRID = 41")
    assert found() != before
