"""Tables in documents are those of the committed CSV files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from analysis.embed import embedded, main
from analysis.tables.table import to_csv
from tests.analysis.test_tables import HARD

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted({ROOT / "README.md", *(ROOT / "docs").rglob("*.md")})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_show_the_committed_figures(path: Path) -> None:
    """``python -m analysis embed README.md docs/*.md docs/results/*.md`` writes them anew."""
    text = path.read_text(encoding="utf-8")
    assert embedded(text, path.parent) == text


def test_the_readme_has_a_table_with_intervals() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("<!-- table: docs/results/unseen.csv")[2].partition("<!-- end of table -->")[0]
    assert len(re.findall(r" [+−]\d+\.\d \[[+−]\d+\.\d, [+−]\d+\.\d\]", table)) == 10, "five backbones, 1 and 5 shots"


def test_a_changed_figure_is_found_and_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hard.csv").write_text(to_csv(HARD))
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- table: hard.csv | columns: text / 0-shot, holds -->\n<!-- end of table -->\nb\n")
    assert main(["--check", str(page)]) == 1
    assert main([str(page)]) == 0
    text = page.read_text()
    assert "| 41.2 [39.0, 43.5] |" in text and "fold 0" not in text and text.endswith("<!-- end of table -->\nb\n")
    assert "prior mean" not in text, "a row without any of the columns"
    assert main(["--check", str(page)]) == 0
    page.write_text(text.replace("41.2", "91.2"))
    assert main(["--check", str(page)]) == 1
    capsys.readouterr()
    for asked, message in (
        ("no.csv", "No such file"),
        ("hard.csv | columns: x", "no column 'x'; there are text / 0-shot"),
        ("hard.csv | rows: x", "unknown option 'rows'"),
    ):
        page.write_text(f"<!-- table: {asked} -->\n<!-- end of table -->")
        assert main([str(page)]) == 2
        assert message in capsys.readouterr().err
