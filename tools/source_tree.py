"""The file tree in CONTRIBUTING.md, one line per module, from the first sentences of docstrings.

python -m tools.source_tree            # rewrite it
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "CONTRIBUTING.md"
PACKAGES = ("diffup", "experiments", "cluster", "analysis", "tools", "benchmarks")
TREE = re.compile(r"(## Where things are\n.*?```\n)(.*?)(```)", re.DOTALL)
INDENT, COLUMN, WIDTH = 2, 24, 128


def summary(path: Path) -> str:
    """The first sentence of a module's docstring, up to a semicolon, or as much of it as fits a line."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    sentence = re.split(r"(?<=[^.])\.(?=\s|$)|;\s", " ".join(docstring.split("\n\n")[0].split()))[0]
    if len(sentence) > WIDTH - COLUMN:
        sentence = re.sub(r" \([^)]*\)?", "", sentence)
    while len(sentence) > WIDTH - COLUMN and re.search("[,:] ", sentence):
        sentence = re.split(r"[,:] (?!.*[,:] )", sentence)[0]
    return re.sub(r"``?", "", sentence)


def lines(folder: Path, depth: int = 0) -> list[str]:
    """A folder's line, those of its modules, then of its sub-packages; nothing for a folder without modules."""
    modules = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
    if not modules:
        return []
    about = folder / "__init__.py"
    made = [_line(f"{folder.name}/", summary(about) if about.is_file() else "", depth)]
    made += [_line(path.name, summary(path), depth + 1) for path in modules]
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        made += lines(inner, depth + 1)
    return made


def _line(name: str, text: str, depth: int) -> str:
    return f"{' ' * INDENT * depth}{name}".ljust(COLUMN - 1) + f" {text}".rstrip()


def tree() -> str:
    """The whole tree."""
    return "\n".join(line for package in PACKAGES for line in lines(ROOT / package)) + "\n"


def main() -> int:
    """Rewrite the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(TREE.sub(lambda found: found[1] + tree() + found[3], text, count=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
