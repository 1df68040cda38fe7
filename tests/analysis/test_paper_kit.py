"""The rest of the paper kit: published figures, more tables, tracing, the document, and golden tables of a store."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.files import WRITTEN, replace_files
from analysis.paper import compiled, write_all
from analysis.printing import print_tables
from analysis.results import load_results
from analysis.tables.table import Number, Table
from diffup.config import SampleConfig
from tests.analysis.test_paper import entry, number, store, tables_of
from tests.analysis.test_tables import RENDERERS
from tests.helpers.stores import BETTER, CLIP, HOME, cell, grid, write_store

__all__ = ["store"]


@pytest.mark.slow
def test_published_figures_stand_apart(tmp_path: Path) -> None:
    """Below the project's own rows, cited, with protocol; never bold; what has no published figures says so."""
    cells = [replace(asked, dataset="pascal5i") for asked in grid()]
    table = tables_of(write_store(tmp_path / "pascal", cells))["main"]
    cited = [row for row in table.rows if row.cite]
    assert (
        cited and table.rows[-len(cited) :] == tuple(cited) and not any(row.cite for row in table.rows[: -len(cited)])
    )
    bib = (Path(__file__).resolve().parents[2] / "analysis" / "published" / "references.bib").read_text()
    for row in cited:
        assert f"{{{row.cite}," in bib and row.labels[1].count("(") == 1
        figures = [entry for entry in row.entries if isinstance(entry, Number)]
        assert figures and not any(entry.best or entry.second or entry.keys for entry in figures)
    assert any("DiffUp's authors' own figures are not available" in note for note in table.notes)
    assert any(row.labels[1].rstrip("‡").strip().endswith("†") for row in cited), "no in-context generalist is marked"
    own = tables_of(write_store(tmp_path / "shapes", grid()))["main"]
    assert not any("ublished" in note for note in own.notes)
    out = tmp_path / "out"
    assert "references.bib" in {path.name for path in write_all(tmp_path / "pascal", out, resamples=50)}
    assert "\\cite{" in (out / "main.tex").read_text() and "\\bibliography{" in (out / "paper.tex").read_text()


def test_cross_dataset_results_have_a_table_of_their_own(tmp_path: Path) -> None:
    cells = [replace(asked, dataset="pascal5i", trained_dataset="coco20i") for asked in grid()]
    tables = tables_of(write_store(tmp_path, cells))
    assert "cross_dataset" in tables and "main" not in tables
    assert "trained on coco20i with tiny_resnet" in tables["cross_dataset"].caption
    assert any(row.cite for row in tables["cross_dataset"].rows)


def test_shots_and_ablations_have_tables(tmp_path: Path) -> None:
    """Zero to ten shots; a sampler that shares DiffUp's checkpoint stands in the ablation and in no other table."""
    cells = [*grid(), *(cell(fold=fold, shots=10, method=m) for fold in (0, 1) for m in ("diffup", "prior_mean"))]
    cells += [cell(fold=fold, variant="steps_1", sample=SampleConfig(steps=1)) for fold in (0, 1)]
    tables = tables_of(write_store(tmp_path, cells))
    assert [column.header for column in tables["shots"].columns] == [(f"{k}-shot",) for k in (0, 1, 5, 10)]
    assert number(tables["shots"], ("mask", HOME, "DiffUp"), ("10-shot",)).episodes == 240
    assert entry(tables["shots"], ("box", HOME, "DiffUp"), ("10-shot",)) is None
    assert {row.labels for row in tables["ablations"].rows} >= {(HOME, "DiffUp"), (HOME, "steps_1")}
    assert number(tables["ablations"], (HOME, "steps_1"), ("1-shot mask",)).difference
    for name in ("main", "annotations", "shots"):
        assert not any("steps_1" in row.labels for row in tables[name].rows)


def test_the_upgrade_is_shown_beside_the_re_trained_reference(tmp_path: Path) -> None:
    again = [cell(fold=fold, backbone=BETTER, trained_on=BETTER, checkpoint=f"again{fold}") for fold in (0, 1)]
    table = tables_of(write_store(tmp_path, [*grid(), *again]))["upgrade"]
    name = next(row.labels[0] for row in table.rows if row.labels[0].startswith("1-shot mask"))
    gap = number(table, (name, BETTER), ("re-trained − swapped in",))
    assert gap.difference and gap.value == pytest.approx(
        number(table, (name, BETTER), ("re-trained",)).value
        - number(table, (name, BETTER), table.columns[0].header).value
    )
    assert entry(table, (name, CLIP), ("re-trained",)) is None


@pytest.mark.slow
def test_every_number_can_be_traced(store: Path, tmp_path: Path) -> None:
    """The sidecar has every number of every table with its cells and episodes; a mean is that of its cells."""
    write_all(store, tmp_path, resamples=50)
    with (tmp_path / "numbers.csv").open() as file:
        rows = list(csv.DictReader(file))
    cells = load_results(store).cells.set_index("key")
    means = [row for row in rows if row["table"] == "main" and row["column"] == "1-shot / mean" and row["value"]]
    assert len(means) >= 4
    for row in means:
        keys = row["keys"].split()
        assert float(row["value"]) == pytest.approx(cells.loc[keys, "miou"].mean())
        assert int(row["episodes"]) == cells.loc[keys, "episodes"].sum()
    printed = (tmp_path / "tables.md").read_text()
    assert all(row["text"].replace("−", "-") in printed.replace("−", "-") for row in rows if row["value"])


@pytest.mark.latex
def test_the_paper_has_figures_and_compiles_by_itself(
    store: Path, tmp_path: Path, require_program: Callable[[str], str]
) -> None:
    require_program("latexmk")
    names = {path.name for path in write_all(store, tmp_path, resamples=50)}
    assert {"paper.pdf", "figure_upgrade.pdf", "figure_shots.csv", "report.html", "numbers.csv"} <= names
    text = require_program("pdftotext")
    shown = subprocess.run([text, str(tmp_path / "paper.pdf"), "-"], capture_output=True, text=True, check=True).stdout
    assert "Better backbones without re-training" in shown and "Figure 1" in shown


@pytest.mark.latex
def test_a_document_that_does_not_compile_is_a_warning(
    store: Path, tmp_path: Path, require_program: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    require_program("latexmk")
    (tmp_path / "paper.tex").write_text("\\documentclass{article}\\begin{document}\\nonsense\\end{document}")
    assert compiled(tmp_path) == []
    assert "does not compile (! Undefined control sequence" in capsys.readouterr().err


@pytest.mark.latex
def test_tables_say_which_packages_they_need(
    store: Path, tmp_path: Path, require_program: Callable[[str], str]
) -> None:
    """In the first lines of tables.tex: with these they compile, without any one of them they don't."""
    pdflatex = require_program("pdflatex")
    write_all(write_store(tmp_path / "pascal", [replace(cell(), dataset="pascal5i")]), tmp_path / "cited", resamples=50)
    assert (
        "% Published figures are cited: \\bibliography{references}" in (tmp_path / "cited" / "tables.tex").read_text()
    )
    write_all(store, tmp_path, resamples=50)
    first, second, *_ = (tmp_path / "tables.tex").read_text().splitlines()
    named = re.findall(r"\\usepackage\{(\w+)\}", first)
    assert first.startswith("%") and sorted(named) == ["booktabs", "graphicx"] and second == "\\input{main}"

    def compiles(packages: list[str]) -> bool:
        lines = [r"\documentclass{article}", *(rf"\usepackage{{{name}}}" for name in packages)]
        lines += [r"\begin{document}", r"\input{tables}", r"\end{document}"]
        (tmp_path / "mine.tex").write_text("\n".join(lines))
        asked = [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "mine.tex"]
        return subprocess.run(asked, cwd=tmp_path, capture_output=True, timeout=60).returncode == 0

    assert compiles(named)
    assert not any(compiles([other for other in named if other != name]) for name in named)


@pytest.mark.latex
def test_a_users_latexmkrc_does_not_change_the_paper(
    store: Path, tmp_path: Path, require_program: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    require_program("latexmk")
    (tmp_path / ".latexmkrc").write_text("$out_dir = 'build'; $pdf_mode = 0;\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    write_all(store, tmp_path / "out", resamples=50)
    assert (tmp_path / "out" / "paper.pdf").read_bytes()[:5] == b"%PDF-"


@pytest.mark.slow
def test_a_second_grid_in_a_folder_keeps_the_first_ones_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tables are of all cells of the folder; what the first write alone had is gone, what others put there stays."""
    root, out = tmp_path / "store", tmp_path / "store" / "tables"
    first, second = [cell(), cell(method="prior_mean")], [cell(backbone=BETTER), cell(dataset="msrc15")]
    write_store(root, first)
    print_tables(root, [asked.key() for asked in first])
    assert HOME in (out / "main.csv").read_text() and (out / "claims.csv").is_file()
    (out / "mine.tex").write_text("mine")
    (out / "tables.md").write_text("edited")
    (out / "claims.md").write_text("edited")
    write_store(root, second)
    capsys.readouterr()
    print_tables(root, [asked.key() for asked in second])
    printed = capsys.readouterr().out
    assert BETTER in printed and "msrc15" in printed and f"{HOME} | prior mean" not in printed
    names = {path.name for path in out.iterdir()}
    assert {"main-shapes4i.csv", "main-msrc15.csv"} <= names and not {"main.csv", "main.tex", "claims.csv"} & names
    both = (out / "main-shapes4i.csv").read_text()
    assert HOME in both and "prior mean" in both and BETTER in both
    assert (out / "mine.tex").read_text() == "mine" and (out / "claims.md").read_text() == "edited"
    assert (out / "tables.md").read_text() != "edited"
    fresh = {path.name: path.read_bytes() for path in write_all(root, tmp_path / "fresh")}
    assert names - set(fresh) == {"mine.tex", "claims.md", "tables.kept.md"}
    assert (out / "tables.kept.md").read_text() == "edited"
    assert all((out / name).read_bytes() == content for name, content in fresh.items())


def test_files_are_replaced_even_after_a_kill(tmp_path: Path) -> None:
    """The list is there before the files are; it is never taken for names outside the folder."""
    replace_files(tmp_path / "out", {"a.csv": b"1", "b.csv": b"2"})
    listed = (tmp_path / "out" / WRITTEN).read_text()
    replace_files(tmp_path / "out", {"c.csv": b"3"})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["c.csv", WRITTEN]
    (tmp_path / "out" / "a.csv").write_bytes(b"1")  # as a process left it that was killed before it removed the rest
    (tmp_path / "out" / WRITTEN).write_text(listed)
    (tmp_path / "a.csv").write_bytes(b"1")
    replace_files(tmp_path / "out", {})
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name != "c.csv"] == [WRITTEN]
    digest = hashlib.sha256(b"1").hexdigest()
    for damaged in ("", "[]", '{"files": 3}', json.dumps({"files": {"../a.csv": digest}})):
        (tmp_path / "out" / WRITTEN).write_text(damaged)
        replace_files(tmp_path / "out", {})
    assert (tmp_path / "a.csv").is_file()


def test_files_of_another_origin_are_kept_under_another_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "paper.tex").write_text("mine")
    replace_files(out, {"paper.tex": b"1", "a.csv": b"1"})
    assert (out / "paper.tex").read_bytes() == b"1" and (out / "paper.kept.tex").read_text() == "mine"
    assert "paper.tex was not written by this command, or edited since: it is now paper.kept.tex" in caplog.text
    (out / "paper.tex").write_text("edited")
    replace_files(out, {"paper.tex": b"2", "a.csv": b"2"})
    assert (out / "paper.kept2.tex").read_text() == "edited" and not (out / "a.kept.csv").exists()


GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Table]:
    """One fold, names with ``_ % &``, 0 shots, a missing cell, a tie, and a method that is worse."""
    name = {"dataset": "my_data 50% & more"}
    cells = [cell(**name), cell(**name, method="prior_mean"), replace(cell(**name), variant="a_b%", checkpoint="c")]
    cells += [cell(**name, backbone=CLIP), cell(**name, backbone=CLIP, shots=0, annotation="text")]
    gone = cell(**name, backbone=CLIP, method="prior_mean")
    root = write_store(tmp_path_factory.mktemp("awkward"), [*cells, gone], missing=lambda asked: asked == gone)
    return tables_of(root)


@pytest.mark.parametrize("suffix", ["tex", "md", "html"])
@pytest.mark.parametrize("name", ["main", "annotations", "upgrade"])
def test_golden_tables_of_a_store(awkward: dict[str, Table], name: str, suffix: str) -> None:
    """From cells to the last character; ``DIFFUP_GOLDEN=1`` writes the files anew: look at the difference."""
    path, text = GOLDEN / f"store_{name}.{suffix}", RENDERERS[suffix](awkward[name])
    if os.environ.get("DIFFUP_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
