"""The container files: what they copy is in the repository, and they install by its constraints and extras."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "cluster" / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
APPTAINER = (DEPLOY / "diffup.def").read_text()


def test_what_is_copied_is_there() -> None:
    copied = [name for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.M) for name in line.split()[:-1]]
    copied += [line.split()[0] for line in APPTAINER.split("%files")[1].split("%post")[0].splitlines() if line.strip()]
    assert copied and [name for name in copied if not (ROOT / name).exists()] == []


def test_extras_are_those_of_the_project() -> None:
    known = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    for text in (DOCKERFILE, APPTAINER):
        [extras] = re.findall(r"pip install .*-c \S*constraints.txt .*\[([\w,]+)\]", text)
        assert set(extras.split(",")) <= known


def test_python_is_one_that_the_project_supports() -> None:
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    for text in (DOCKERFILE, APPTAINER):
        [version] = re.findall(r"(?:FROM|From:) python:([\d.]+)-slim", text)
        assert needed == f">={version}"
