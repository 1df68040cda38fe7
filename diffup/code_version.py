"""The version of the code behind a number: a hash of parsed source of some modules and all that they import.

What can't change a number is left out: comments, docstrings, layout, annotations of functions, imports for the type
checker, the message of a `UserError`.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

PACKAGE = "diffup"
ROOT = Path(__file__).parent
WEIGHTS = "backbones/embedded_weights"  # shipped with the package
# What a cell's figures are made by; their own imports follow.
MODULES = (
    "backbones.load", "data.class_names", "data.dataset", "episodes.cue_source", "episodes.episode",
    "episodes.manifest", "episodes.protocols", "episodes.sampling", "evaluation.adapter", "evaluation.encode",
    "evaluation.evaluate", "evaluation.metrics", "evaluation.priors", "models.checkpoint", "models.diffup",
    "models.flops", "training.sampler", "training.trainer",
)  # fmt: skip
# Imported by these, but no figure depends on them: messages, model cards, pictures, and this file.
NO_FIGURES = ("code_version", "errors", "evaluation.drawing", "evaluation.panels", "models.card")
HASH_DIGITS = 12
NOT_HASHED = ("kind", "type_comment", "type_ignores")  # fields of a node that have no effect


@lru_cache(maxsize=8)
def code_hash(modules: tuple[str, ...] = MODULES, root: Path = ROOT) -> str:
    """First 12 hex digits of the sha256 of the `meaning` of modules, of all that they import, and of shipped weights.

    Args:
        modules: dotted names below ``diffup``.
        root: folder of the package.
    """
    weights = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (root / WEIGHTS).iterdir()}
    return hash_of(reached(modules, root), extra=repr(sorted(weights.items())))


def training_hash() -> str:
    """`code_hash` of what a training is made by: editing the evaluation does not change it."""
    return code_hash(("training.trainer",))


def hash_of(files: Mapping[str, Path], *, extra: str = "") -> str:
    """The hash of the `meaning` of some files and of a text."""
    digest = hashlib.sha256(extra.encode())
    for name, path in sorted(files.items()):
        digest.update(f"\n{name} {_read(path.read_bytes())[0]}".encode())
    return digest.hexdigest()[:HASH_DIGITS]


def meaning(source: bytes) -> str:
    """What a module computes: equal for sources that differ in comments, docstrings or layout alone."""
    return _read(source)[0]


def reached(modules: Iterable[str], root: Path = ROOT) -> dict[str, Path]:
    """The files of modules and of all that they import from the package, by dotted name below it, sorted."""
    found: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = _file(root, name)
        if path is not None and name not in found and name not in NO_FIGURES:
            found[name] = path
            waiting += _read(path.read_bytes())[1]
    return dict(sorted(found.items()))


def _file(root: Path, name: str) -> Path | None:
    """The file of a module or package; None if the name is that of a class or function."""
    base = root.joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@lru_cache(maxsize=256)
def _read(source: bytes) -> tuple[str, tuple[str, ...]]:
    """A module's `meaning`, and what it may import from the package, as dotted names below it."""
    tree = _Meaning().visit(ast.parse(source))
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # ``from diffup import losses`` and ``from diffup.training.losses import step_loss``
            names += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    own = tuple(name.removeprefix(f"{PACKAGE}.") for name in names if name.startswith(f"{PACKAGE}."))
    return _plain(tree), own


class _Meaning(ast.NodeTransformer):
    """Drops what has no effect on what a module computes."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """Docstrings, and strings that describe a variable."""
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Pass(self, node: ast.Pass) -> None:
        """What is left of a body without docstring may be empty: no code runs here."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        """Imports for the type checker."""
        visited = self.generic_visit(node)
        assert isinstance(visited, ast.If)
        return visited.orelse if ast.unparse(node.test).endswith("TYPE_CHECKING") else visited

    def visit_arg(self, node: ast.arg) -> ast.AST:
        """Types of arguments."""
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Types of results."""
        node.returns = None
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """Messages for users."""
        if isinstance(node.exc, ast.Call) and getattr(node.exc.func, "id", "") == "UserError":
            node.exc.args = []
        return self.generic_visit(node)


def _plain(node: Any) -> str:
    """A tree as text that is the same in all versions of Python: fields that are empty, or new ones, are left out."""
    if isinstance(node, ast.AST):
        fields = [(name, value) for name, value in ast.iter_fields(node) if name not in NOT_HASHED]
        return f"{type(node).__name__}({','.join(f'{n}={_plain(v)}' for n, v in fields if v is not None and v != [])})"
    if isinstance(node, list):
        return f"[{','.join(_plain(each) for each in node)}]"
    return repr(node)
