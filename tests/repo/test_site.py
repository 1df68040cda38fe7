"""The documentation site builds without a warning, with every page in its contents and every reference resolved."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def pages(entries: object) -> list[str]:
    """Files in a navigation tree."""
    if isinstance(entries, str):
        return [entries]
    values = entries.values() if isinstance(entries, dict) else entries
    assert not isinstance(values, str) and hasattr(values, "__iter__")
    return [page for entry in values for page in pages(entry)]


def test_each_page_is_in_the_contents_once() -> None:
    shown = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    tables = set((DOCS / "results").glob("*/*.md")) - set((DOCS / "results").glob("*/README.md"))
    assert sorted(shown) == sorted(str(path.relative_to(DOCS)) for path in set(DOCS.rglob("*.md")) - tables)


@pytest.mark.slow
def test_it_builds(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr, built.stderr
    reference = (tmp_path / "site" / "reference" / "index.html").read_text()
    for name in ("DiffUp.from_pretrained", "DiffUp.segment", "Support", "Text", "Result"):
        assert f'id="diffup.{name}"' in reference, f"{name} has no entry"
