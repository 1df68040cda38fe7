"""Tables as text: golden files for everything a table can hold, and the rules of its entries."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.tables.html import to_html
from analysis.tables.latex import PAGE_LINES, escape_latex, to_latex
from analysis.tables.table import Column, Number, Row, Table, figure, from_csv, interval, to_csv, to_markdown

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
RENDERERS: dict[str, Callable[[Table], str]] = {"tex": to_latex, "md": to_markdown, "html": to_html, "csv": to_csv}

HARD = Table(
    name="hard",
    caption="Names with _ % & | * and a missing cell",
    labels=("Backbone", "Method"),
    columns=(
        Column(("text", "0-shot")),
        Column(("text", "difference")),
        Column(("mask & box", "fold 0"), minor=True),
        Column(("mask & box", "mean")),
        Column(("", "holds")),
    ),
    rows=(
        Row(
            ("res_net|50%", "DiffUp"),
            (
                Number(value=41.25, low=39.0, high=43.5, episodes=300, keys=("aaaaaaaaaaaa",)),
                Number(
                    value=12.04, low=9.96, high=14.0, episodes=300, keys=("aaaaaaaaaaaa", "bbbbbbbbbbbb"),
                    difference=True,
                ),
                Number(value=60.0, low=58.0, high=62.04, episodes=300, keys=("cccccccccccc",), best=True),
                Number(value=61.5, low=59.5, high=63.5, std=0.449, seeds=3, episodes=600, keys=("c", "d"), best=True),
                "yes",
            ),
        ),
        Row(
            ("res_net|50%", "prior mean, α=1 & #2"),
            (
                None,
                Number(value=-0.04, low=-2.0, high=2.0, difference=True),
                Number(value=float("nan")),
                Number(value=5.0, second=True),
                None,
            ),
        ),
        Row(
            ("[ViT*<B>\\16]", "DiffUp"),
            (None, Number(value=-3.0, low=-4.0, high=-2.0, difference=True, p=0.001), None, None, "reference"),
        ),
        Row(("RN50, published", "Pan & Net_2 †"), (Number(value=40.0), None, None, Number(value=44.4), None), "pan20"),
    ),
    notes=("Protocol paired, 95% & more_less.", "* marks differences whose interval excludes 0."),
)  # fmt: skip
WIDE = replace(HARD, name="hard_stacked", stacked=True)
EMPTY = Table(name="empty", caption="Nothing finished", labels=("Backbone",), columns=(Column(("mIoU",)),), rows=(
    Row(("a",), (None,)), Row(("b",), (None,)),
))  # fmt: skip


@pytest.mark.parametrize(
    ("table", "suffix"),
    [
        *((HARD, suffix) for suffix in RENDERERS),
        (WIDE, "tex"),
        *((EMPTY, suffix) for suffix in RENDERERS),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_golden(table: Table, suffix: str) -> None:
    """The text to the last character. ``DIFFUP_GOLDEN=1`` writes the files anew: look at the difference."""
    path, text = GOLDEN / f"{table.name}.{suffix}", RENDERERS[suffix](table)
    if os.environ.get("DIFFUP_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("entry", "text", "span"),
    [
        (None, "–", ""),
        (Number(value=float("nan"), low=1.0, high=2.0), "–", ""),
        (Number(value=41.25, low=39.0, high=43.449), "41.2", "[39.0, 43.4]"),
        (Number(value=3.0, low=-0.5, high=4.0, difference=True), "+3.0", "[−0.5, +4.0]"),
        (Number(value=-0.04, low=-0.04, high=0.04, difference=True), "0.0", "[0.0, 0.0]"),
        ("yes", "yes", ""),
    ],
)
def test_text_of_an_entry(entry: Number | str | None, text: str, span: str) -> None:
    """One decimal, a real minus sign, no signed zero, a dash for what is missing."""
    assert figure(entry) == text
    assert interval(entry) == span


def test_csv_keeps_every_digit_and_the_cells() -> None:
    """So that a reader can trace a printed figure to the cells it comes from."""
    rows = list(csv.DictReader(io.StringIO(to_csv(HARD))))
    assert len(rows) == len(HARD.rows) * len(HARD.columns)
    difference = next(row for row in rows if row["column"] == "text / difference")
    assert float(difference["value"]) == 12.04
    assert difference["keys"].split() == ["aaaaaaaaaaaa", "bbbbbbbbbbbb"]
    assert (difference["excludes_0"], difference["text"]) == ("yes", "+12.0")
    missing = [row for row in rows if row["text"] == "–" and not row["value"]]
    assert len(missing) == 8
    assert {row["backbone"] for row in rows} == {"res_net|50%", "[ViT*<B>\\16]", "RN50, published"}


def test_markdown_is_aligned_and_fits() -> None:
    """Every line of a table has one width; what is minor gives way where there is no room."""
    lines = [line for line in to_markdown(HARD).splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    assert "58.0, 62.0" in lines[2]
    narrow = to_markdown(HARD, fit=len(lines[0]) - 1)
    assert "58.0, 62.0" not in narrow
    assert "**60.0**" in narrow
    narrowest = to_markdown(HARD, fit=20)
    assert "fold 0" not in narrowest
    assert "**61.5** ±0.4 [59.5, 63.5]" in narrowest
    assert "Protocol" not in to_markdown(HARD, notes=False)


def test_latex_specials_are_escaped() -> None:
    """Whatever a name holds, LaTeX reads it as text; letters its fonts lack do not stop it."""
    assert escape_latex(r"a_b%c&d#e$f{g}h~i^j\k") == (
        r"a\_b\%c\&d\#e\$f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k"
    )
    assert escape_latex("−0.5 – é Ж") == "$-$0.5 -- é ?"


def test_long_tables_continue_on_another_page() -> None:
    """Groups stay whole, and no row is lost."""
    rows = tuple(Row((f"group {i // 6}", f"row {i}"), (Number(value=float(i)),)) for i in range(72))
    table = Table(name="long", caption="Long", labels=("A", "B"), columns=(Column(("x",)),), rows=rows, notes=("n",))
    text = to_latex(table)
    pages = text.split(r"\begin{table}")[1:]
    assert len(pages) == 2
    assert all(text.count(f"row {i} &") == 1 for i in range(72))
    assert pages[0].count("row ") == PAGE_LINES // 6 * 6
    assert (text.count(r"\label{tab:long}"), text.count("(continued)")) == (1, 1)


@pytest.mark.parametrize("table", [HARD, EMPTY], ids=lambda table: table.name)
def test_a_table_comes_back_from_its_csv(table: Table) -> None:
    """So that committed figures can be shown again, in another format."""
    again = from_csv(to_csv(table), caption=table.caption)
    assert to_csv(again) == to_csv(table)
    plain = replace(again, notes=table.notes)
    assert to_markdown(plain) == to_markdown(table)
    assert to_latex(plain) == to_latex(table)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "table,backbone,column,value\nmain,a,b,1\n"])
def test_another_csv_is_no_table(text: str) -> None:
    with pytest.raises(ValueError, match="not a table of this project"):
        from_csv(text)
