"""The options of the paper kit: columns, rows, intervals, two columns, figures as commands, wide tables split."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.macros import command_name, macros
from analysis.paper import Kit, compiled, document, main
from analysis.tables.latex import Layout, to_latex
from analysis.tables.select import ALL_COUNT, names_of, selected
from analysis.tables.table import Column, Number, Row, Table
from diffup.errors import UserError
from tests.helpers.stores import cell, write_store


def number(value: float, **more: float) -> Number:
    return Number(value=value, low=value - 1, high=value + 1, **more)  # type: ignore[arg-type]


def made(columns: int, *, stacked: bool = False, label: str = "resnet50", shots: tuple[int, ...] = (1, 5)) -> Table:
    """A table of some columns below each number of shots, of two methods."""
    heads = [Column((f"{k}-shot", "mean" if i == columns - 1 else f"fold {i}")) for k in shots for i in range(columns)]
    rows = [
        Row((label, name), tuple(number(60 + 5 * at + 0.1 * place) for place in range(len(heads))))
        for at, name in enumerate(("DiffUp", "prior mean"))
    ]
    return Table(
        name="main", caption="Main.", labels=("Backbone", "Method"), columns=tuple(heads), rows=tuple(rows),
        notes=("In brackets: 95% bootstrap interval.", "Bold: best."), stacked=stacked,
    )  # fmt: skip


def test_columns_and_rows_are_chosen_by_name() -> None:
    table, other = made(3), Table(name="other", caption="", labels=("Claim",), columns=(Column(("holds",)),), rows=())
    chosen, kept = selected([table, other], ["mean"], ["Diff*"])
    assert [names_of(column)[0] for column in chosen.columns] == ["1-shot / mean", "5-shot / mean"]
    assert [row.labels for row in chosen.rows] == [("resnet50", "DiffUp")]
    assert [entry for row in chosen.rows for entry in row.entries] == [table.rows[0].entries[i] for i in (2, 5)]
    assert kept == other, "names of other tables leave it whole"
    assert selected([table], [], []) == [table]
    (one,) = selected([table], ["5-shot / *"], [])
    assert len(one.columns) == 3
    assert chosen.notes == table.notes, "nothing is marked in it"
    best = replace(table.rows[0], entries=tuple(number(66, best=True) for _ in table.rows[0].entries))
    (left,) = selected([replace(table, rows=(best, table.rows[1]))], [], ["Diff*"])
    assert left.notes == (*table.notes, ALL_COUNT)
    assert selected([replace(table, rows=(best,))], [], ["Diff*"])[0].notes == table.notes, "none is left out"
    for columns, rows in ((["no such"], []), ([], ["nothing"])):
        with pytest.raises(UserError, match="no table has such a name"):
            selected([table], columns, rows)


def test_no_intervals_and_no_note_of_them() -> None:
    for stacked in (False, True):
        with_them, without = (
            to_latex(made(3, stacked=stacked)),
            to_latex(made(3, stacked=stacked), Layout(intervals=False)),
        )
        assert "[59.0, 61.0]" in with_them and "In brackets" in with_them
        assert "[" not in without.replace("[htbp]", "").replace("[4pt]", "") and "Bold: best." in without
        assert "60.0" in without


def test_a_wide_table_is_split_and_each_part_has_the_labels() -> None:
    """Every figure once; what shares a header stays together; the numbering goes on."""
    text = to_latex(made(6, stacked=True, label="vit_small_patch14_dinov2"))
    parts = text.split(r"\begin{table}")[1:]
    assert len(parts) == 2
    assert [re.findall(r"\\multicolumn\{\d\}\{c\}\{(.*?)\}", part) for part in parts] == [["1-shot"], ["5-shot"]]
    assert all(r"vit\_small\_patch14\_dinov2 & DiffUp" in part for part in parts)
    assert (text.count(r"\label{tab:main}"), text.count("(continued)"), text.count("Bold: best.")) == (1, 1, 1)
    for place in range(12):
        assert text.count(f"& {60 + 0.1 * place:.1f} ") == 1 and text.count(f"& {65 + 0.1 * place:.1f} ") == 1


def test_columns_that_are_wider_than_a_page_stand_alone_and_long_labels_are_wrapped() -> None:
    """A table whose columns can't be divided any further ends all the same."""
    columns = [Column((f"{name} {'x' * 120}",)) for name in "ab"]
    label = "DiffUp (resnet50) beats evidence, bank, objects on resnet50 (1-shot mask)"
    rows = [Row((label,), (number(60), number(61)))]
    text = to_latex(Table(name="claims", caption="C.", labels=("Claim",), columns=tuple(columns), rows=tuple(rows)))
    assert text.count(r"\begin{tabular}{p{198pt}c}") == 2 and text.count(rf"\raggedright {label} &") == 2
    assert r"\begin{tabular}{ll" in to_latex(made(2)), "short ones are not"


def test_intervals_go_below_before_a_table_is_split() -> None:
    beside, below = to_latex(made(2)), to_latex(made(8, shots=(1,)))
    assert r"60.0\ {\scriptsize" in beside
    assert r"60.0\ {\scriptsize" not in below and r"{\scriptsize [59.0, 61.0]} &" in below
    assert below.count(r"\begin{table}") == 1


def test_two_columns_take_narrow_tables_and_wide_ones_go_across() -> None:
    narrow = to_latex(made(1), Layout(two_column=True, intervals=False))
    wide = to_latex(made(4), Layout(two_column=True))
    assert r"\begin{table}[htbp]" in narrow and r"\begin{table*}[htbp]" in wide and r"\end{table*}" in wide
    assert "table*" not in to_latex(made(4))
    text = document([], [], cited=False, kit=Kit(layout=Layout(two_column=True), title="A & B"), words="79.0 %")
    assert r"\documentclass[a4paper,twocolumn]{article}" in text and r"\title{A \& B}" in text and r"79.0 \%" in text
    assert "landscape" not in text


def test_every_figure_is_a_command() -> None:
    assert command_name("main", "resnet50", "DiffUp", "1-shot / Δ mean") == "duMainResnetFiveZeroDiffUpOneShotDeltaMean"
    table = made(2)
    text = macros([table, made(2)])  # of equal names
    found = re.findall(r"\\newcommand\{\\([A-Za-z]+)\}\{(.*?)\}(?: %|\n)", text)
    assert len({name for name, _ in found}) == len(found) == 2 * 2 * 8
    figures = dict(found)
    assert figures["duMainResnetFiveZeroDiffUpOneShotMean"] == "60.1"
    assert figures["duMainResnetFiveZeroDiffUpOneShotMeanCI"] == "[59.1, 61.1]"
    assert "% main / resnet50 / DiffUp / 1-shot / mean" in text
    odd = Table(
        name="t", caption="", labels=("L",), columns=(Column(("a%b",)),), rows=(Row(("x\n%é",), (number(-1),)),)
    )
    alike = [replace(odd, rows=(Row((name,), (number(1),)),)) for name in ("my_net", "my net")]
    alone, both = (re.findall(r"\\newcommand\{\\(\w+)\}", macros(tables)) for tables in (alike[:1], alike))
    assert len(set(both)) == 4 and not set(alone) & set(both), "no name may come to mean another figure"
    lines = macros([odd]).splitlines()
    assert all(line.startswith(("%", r"\newcommand")) for line in lines) and "$-$1.0" in lines[-2]


def test_options_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The document has what was asked for, the CSV everything; a wrong name is one line and nothing is written."""
    monkeypatch.setattr("analysis.paper.compiled", lambda out: [])
    store = write_store(tmp_path / "store", [cell(fold=f, method=m) for f in (0, 1) for m in ("diffup", "prior_mean")])
    asked = ["--results", str(store), "--resamples", "20", "--out", str(tmp_path / "out")]
    assert (
        main([*asked, "--columns", "mean", "--rows", "DiffUp*", "--no-intervals", "--two-column", "--title", "X"]) == 0
    )
    text = (tmp_path / "out" / "main.tex").read_text()
    assert "fold 0" not in text and "prior mean" not in text and "DiffUp" in text
    assert (
        "fold 0" in (tmp_path / "out" / "main.csv").read_text()
        and "prior mean" in (tmp_path / "out" / "main.csv").read_text()
    )
    assert "duMainTinyResnetPriorMeanOneShotMean" in (tmp_path / "out" / "numbers.tex").read_text()
    paper = (tmp_path / "out" / "paper.tex").read_text()
    assert r"\title{X}" in paper and "twocolumn" in paper and r"\input{numbers}" in paper
    capsys.readouterr()
    assert main([*asked[:-1], str(tmp_path / "none"), "--columns", "meen"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and "'meen'" in error[0] and not (tmp_path / "none").exists()


@pytest.mark.latex
@pytest.mark.parametrize("layout", [Layout(), Layout(two_column=True, intervals=False)], ids=["one", "two"])
def test_the_document_compiles_in_portrait_and_commands_are_usable(
    layout: Layout, tmp_path: Path, require_program: Callable[[str], str]
) -> None:
    require_program("latexmk")
    tables = [made(6, stacked=True), made(1)]
    for name, table in zip("ab", tables):
        (tmp_path / f"{name}.tex").write_text(to_latex(table, layout).replace("tab:main", f"tab:{name}"))
    (tmp_path / "tables.tex").write_text("\\input{a}\\input{b}")
    (tmp_path / "numbers.tex").write_text(macros(tables))
    text = document([], [], cited=False, kit=Kit(layout=layout, title="A title"), words="Words.")
    (tmp_path / "paper.tex").write_text(
        text.replace("Words.", r"Words: \duMainResnetFiveZeroDiffUpOneShotMean{} points.")
    )
    (made_pdf,) = compiled(tmp_path)
    info = subprocess.run([require_program("pdfinfo"), made_pdf], capture_output=True, text=True).stdout
    width, height = map(float, re.search(r"Page size:\s+([\d.]+) x ([\d.]+)", info).groups())  # type: ignore[union-attr]
    assert width < height and int(re.search(r"Pages:\s+(\d+)", info)[1]) <= 2  # type: ignore[index]
    shown = subprocess.run([require_program("pdftotext"), made_pdf, "-"], capture_output=True, text=True).stdout
    assert "A title" in shown and re.search(r"Words: 6\d\.\d\s+points", shown)
