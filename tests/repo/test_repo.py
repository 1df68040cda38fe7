"""The project's files agree with each other, and nothing in them belongs to one machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import diffup

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("diffup", "experiments", "cluster", "analysis")
# Import name -> name of the distribution, where they differ.
DISTRIBUTIONS = {"PIL": "pillow", "skimage": "scikit-image", "open_clip": "open-clip-torch"}
# Modules of diffup that are themselves imported by functions only.
LATE = ("diffup/backbones/open_clip.py", "diffup/demo/app.py")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """The ``[project]`` table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    """Distribution -> exact version of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.fixture(scope="module")
def tracked(require_program: Any) -> list[Path]:
    """Files under version control that are there."""
    done = subprocess.run([require_program("git"), "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"not a git checkout: {done.stderr.strip()}")
    return [path for path in (ROOT / name for name in done.stdout.split("\0") if name) if path.is_file()]


def test_every_requirement_is_pinned_within_its_range(project: dict[str, Any], pins: dict[str, str]) -> None:
    """Else `pip install -c constraints.txt` fails, or installs what nobody tested."""
    texts = project["dependencies"] + [text for extra in project["optional-dependencies"].values() for text in extra]
    for requirement in map(Requirement, texts):
        version = pins.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} of pyproject.toml is not in constraints.txt"
        assert requirement.specifier.contains(version), f"constraints.txt has {requirement.name} {version}"


def imported(nodes: Iterable[ast.AST]) -> set[str]:
    """Distributions that import statements name."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
    top = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - set(PACKAGES)
    return {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in top}


def test_every_imported_distribution_is_a_requirement(project: dict[str, Any]) -> None:
    """A package that came along with another one can leave with it.

    What a module of diffup imports when it is imported is a dependency; what functions import may be an extra.
    """

    def required(texts: Iterable[str]) -> set[str]:
        return {canonicalize_name(Requirement(text).name) for text in texts}

    core, extras = required(project["dependencies"]), project["optional-dependencies"]
    all_but_dev = core | required(extras["clip"] + extras["demo"] + extras["platform"])
    missing = []
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        late = not path.is_relative_to(ROOT / "diffup") or path.relative_to(ROOT).as_posix() in LATE
        absent = imported(ast.walk(tree)) - all_but_dev | (set() if late else imported(tree.body) - core)
        missing += [f"{path.relative_to(ROOT)} imports {name}" for name in sorted(absent)]
    assert not missing


def test_the_version_is_the_same_everywhere(project: dict[str, Any]) -> None:
    """In the package, in the changelog's first entry and in the citation."""
    assert "version" in project["dynamic"]
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert versions and versions[0] == diffup.__version__
    assert f"\nversion: {diffup.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_nothing_belongs_to_one_machine(tracked: list[Path]) -> None:
    """No path of the machine it was written on, no address of a package registry."""
    pattern = re.compile(
        rb"/(?:wor[k]|hom[e]|roo[t])/|/tm[p]/[a-z_]+/|https?://[^ ]*(?:py[p]i\.|pythonhoste[d]|npm[j]s|deb\.debia[n])"
    )
    found = []
    for path in tracked:
        data = path.read_bytes()
        if b"\0" not in data[:8192]:
            lines = enumerate(data.splitlines(), start=1)
            found += [f"{path.relative_to(ROOT)}:{number}" for number, line in lines if pattern.search(line)]
    assert not found


def test_a_submitted_job_stays_below_rays_limit(tracked: list[Path]) -> None:
    """`ray job submit --working-dir .` refuses a zip of more than 100 MiB."""
    assert sum(path.stat().st_size for path in tracked) < 50 * 2**20


def test_rayignore_keeps_code_and_package_data() -> None:
    """An unanchored ``data/`` or ``weights/`` would take diffup/data or the embedded weights out of a job."""
    patterns = [line for line in (ROOT / ".rayignore").read_text().splitlines() if line and not line.startswith("#")]
    assert not {"data", "data/", "weights", "weights/", "diffup/"} & set(patterns)


def test_the_tree_in_contributing_is_the_real_one() -> None:
    """What it names exists, and it names every module; ``python -m tools.source_tree`` writes it."""
    tree = re.search(r"## Where things are\n.*?```\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.DOTALL)
    assert tree, "CONTRIBUTING.md has no file tree under '## Where things are'"
    folders: list[str] = []
    named = set()
    for line in tree[1].splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name] if name.endswith("/") else []
        named.add("".join(folders[: depth + 1]) + ("" if name.endswith("/") else name))
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert not {name for name in modules if not name.endswith("__init__.py")} - named
