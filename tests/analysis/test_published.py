"""Published results: the shipped figures are sound, planted faults are found, and no printed figure is lost."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.published.table import (
    BIB,
    COLUMNS,
    FIGURE,
    bibliography,
    check_published,
    load_published,
    rows_for,
)


@pytest.fixture
def shipped() -> pd.DataFrame:
    return load_published()


def test_the_shipped_figures_are_sound(shipped: pd.DataFrame) -> None:
    assert check_published(shipped) == []
    assert tuple(shipped.columns) == COLUMNS
    assert shipped["value"].dtype == float
    assert set(shipped["fold"]) == {"0", "1", "2", "3", "mean"}
    assert set(shipped["status"]) == {"ok", "conflict", "folds_do_not_average"}


def test_every_status_is_needed(shipped: pd.DataFrame) -> None:
    """Were a contradiction or a wrong mean called ok, the check would name it; no other row would become a problem."""
    marked = shipped[shipped["status"] != "ok"]
    found = check_published(shipped.assign(status="ok"))
    assert sum("not marked as conflict" in problem for problem in found) == (marked["status"] == "conflict").sum()
    assert sum("but the folds average" in problem for problem in found) == 3
    assert len(found) == len(marked)


def test_no_status_hides_a_good_figure(shipped: pd.DataFrame) -> None:
    several = shipped.groupby(FIGURE)["value"].transform("nunique") > 1
    assert ((shipped["status"] == "conflict") == several).all()
    assert shipped.loc[several, "note"].str.contains("other value").all()


def test_every_key_is_in_the_bibliography_and_is_cited(shipped: pd.DataFrame) -> None:
    entries, problems = bibliography()
    assert problems == []
    assert set(entries) - set(shipped["key"]) == {"chen2024diffup"}
    assert set(shipped["key"]) <= set(entries)


@pytest.mark.latex
def test_bibtex_reads_the_bibliography(tmp_path: Path, require_program: Callable[[str], str]) -> None:
    (tmp_path / "references.bib").write_bytes(BIB.read_bytes())
    (tmp_path / "all.aux").write_text("\\citation{*}\n\\bibstyle{plain}\n\\bibdata{references}\n")
    done = subprocess.run([require_program("bibtex"), "all"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "Warning" not in done.stdout
    assert (tmp_path / "all.bbl").read_text().count("\\bibitem") == len(bibliography()[0])


def test_generalists_are_marked(shipped: pd.DataFrame) -> None:
    in_context = shipped[shipped["in_context"] == "yes"]
    assert {"SegGPT", "Painter"} <= set(in_context["method"])
    assert not set(in_context["method"]) & {"Matcher", "PerSAM", "GF-SAM", "INSID3"}
    assert not shipped["method"].str.contains("in-context").any()
    assert set(shipped.loc[shipped["method"] == "SegGPT", "in_context"]) == {"yes"}


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("value", 0.643, "looks like a fraction"),
        ("value", 164.3, "is no percentage"),
        ("value", float("nan"), "is no percentage"),
        ("key", "nobody2020nothing", "is not in references.bib"),
        ("dataset", "pascal-5i", "unknown dataset"),
        ("metric", "dice", "unknown metric"),
        ("annotation", "bbox", "unknown annotation"),
        ("fold", "4", "unknown fold"),
        ("protocol", "mine", "unknown protocol"),
        ("status", "fine", "unknown status"),
    ],
)
def test_a_wrong_figure_is_found(shipped: pd.DataFrame, column: str, value: str | float, problem: str) -> None:
    row = shipped.index[(shipped["method"] == "BAM") & (shipped["fold"] == "0")][0]
    shipped.loc[row, column] = value
    assert any("BAM" in found and problem in found for found in check_published(shipped))


def test_a_repeated_row_is_found(shipped: pd.DataFrame) -> None:
    twice = pd.concat([shipped, shipped.iloc[[100]]], ignore_index=True)
    (problem,) = check_published(twice)
    assert "duplicate" in problem and shipped["method"][100] in problem


def test_folds_that_do_not_average_are_found(shipped: pd.DataFrame) -> None:
    bam = (shipped["method"] == "BAM") & (shipped["backbone"] == "ResNet-50") & (shipped["dataset"] == "coco20i")
    row = shipped.index[bam & (shipped["fold"] == "2") & (shipped["shots"] == 1)]
    assert len(row) == 1
    shipped.loc[row, "value"] += 4
    (problem,) = check_published(shipped)
    assert "46.23, but the folds average 47.23" in problem


def test_a_status_without_a_reason_is_found(shipped: pd.DataFrame) -> None:
    row = shipped.index[shipped["status"] == "ok"][0]
    shipped.loc[row, "status"] = "conflict"
    (problem,) = check_published(shipped)
    assert "no other value" in problem


def test_a_damaged_bibliography_is_found(tmp_path: Path) -> None:
    bib = tmp_path / "own.bib"
    good = "@article{a2020,\n  author = {A},\n  title = {T},\n  year = {2020},\n}\n"
    bib.write_text(good)
    assert bibliography(bib) == ({"a2020": {"type": "article", "author": "A", "title": "T", "year": "2020"}}, [])
    bib.write_text(
        good + good + "@book{b2020,\n  title = {T},\n  year = {2020},\n}\n@article{c2020,\n  title = {T,\n}\n"
    )
    problems = " ".join(bibliography(bib)[1])
    for expected in ("a2020 appears twice", "unknown type @book", "b2020 has no author", "can't read: @article{c2020"):
        assert expected in problems
    with pytest.raises(ValueError, match="can't be read"):
        bibliography(tmp_path / "none.bib")


def test_a_missing_column_is_named(shipped: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="lack the column key"):
        check_published(shipped.drop(columns="key"))


def test_a_table_shows_folds_and_mean(shipped: pd.DataFrame) -> None:
    table = rows_for(shipped, dataset="coco20i", shots=1)
    row = table[(table["method"] == "BAM") & (table["backbone"] == "ResNet-50")]
    assert row[["0", "1", "2", "3", "mean"]].to_numpy().tolist() == [[43.4, 50.6, 47.5, 43.4, 46.23]]
    assert row[["protocol", "in_context", "key"]].to_numpy().tolist() == [["bam", "no", "lang2022bam"]]
    assert not row["conflict"].item() and row["averages"].item()


def test_a_table_keeps_contradictions_apart(shipped: pd.DataFrame) -> None:
    table = rows_for(shipped, dataset="pascal5i", shots=1)
    cyctr = table[(table["method"] == "CyCTR") & (table["backbone"] == "ResNet-50")]
    assert sorted(cyctr["mean"]) == [64.0, 64.2]
    assert cyctr["conflict"].all()
    for _, row in cyctr.iterrows():  # no row mixes the folds of two sources
        assert abs(row[["0", "1", "2", "3"]].mean() - row["mean"]) <= 0.05
    gfsam = table[table["method"] == "GF-SAM"]
    assert not gfsam["averages"].item() and not gfsam["conflict"].item()


@pytest.mark.parametrize("dataset", ["pascal5i", "coco20i", "fss1000", "coco2pascal"])
@pytest.mark.parametrize("shots", [1, 5])
def test_a_table_loses_no_figure(shipped: pd.DataFrame, dataset: str, shots: int) -> None:
    table = rows_for(shipped, dataset=dataset, shots=shots)
    chosen = shipped[(shipped["dataset"] == dataset) & (shipped["shots"] == shots)]
    chosen = chosen[(chosen["metric"] == "miou") & (chosen["annotation"] == "mask")]
    names = ["method", "backbone", "in_context", "protocol", "fold", "value"]
    long = table.melt(names[:4], ["0", "1", "2", "3", "mean"], "fold").dropna(subset="value")
    assert set(long[names].itertuples(index=False)) == set(chosen[names].itertuples(index=False))
    assert len(table)


def test_a_table_of_nothing_is_refused_or_empty(shipped: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="no published dataset 'msrc15'; there are: coco20i"):
        rows_for(shipped, dataset="msrc15", shots=1)
    assert rows_for(shipped, dataset="pascal5i", shots=3).empty


def test_the_command_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.csv"
    load_published().iloc[:5].to_csv(out, index=False)
    assert main(["published", "--file", str(out)]) == 0
    assert "in 5 rows of 3 methods: 3 ok, 2 conflict" in capsys.readouterr().out
    out.write_text(out.read_text().replace("62.3", "0.623"))
    assert main(["published", "--file", str(out)]) == 1
    assert "looks like a fraction" in capsys.readouterr().err
    assert main(["published", "--file", str(tmp_path / "none.csv")]) == 2
    assert "none.csv" in capsys.readouterr().err
    assert main(["published"]) == 0


def test_no_raw_figure_is_lost(shared_data: Path) -> None:
    """Each raw figure is one source of one row."""
    path = shared_data.parent / "reference" / "published_results.csv"
    if not path.is_file():
        pytest.skip(f"no shared data: {path} does not exist")
    raw = pd.read_csv(path, dtype=str, keep_default_na=False)
    shipped = load_published()
    assert shipped["source"].str.count(";").add(1).sum() == len(raw)
    places = ["fold", "shots"]
    values = set(raw.astype({"value": float})[[*places, "value"]].astype(str).itertuples(index=False, name=None))
    kept = set(shipped[[*places, "value"]].astype(str).itertuples(index=False, name=None))
    also = set(shipped["note"].str.extractall(r"also printed as ([\d.]+)")[0])
    assert kept <= values
    assert {value for *_, value in values - kept} <= also


def test_a_row_of_a_main_table_keeps_to_its_source() -> None:
    """Where sources contradict each other, the figures of one row are those that one source prints."""
    from analysis.tables.published import _of_source

    base = {"method": "M", "backbone": "B", "key": "k", "protocol": "", "in_context": "no"}
    one, two = {**base, "source": "a;b", "mean": 1.0}, {**base, "source": "c", "mean": 2.0}
    assert _of_source([one, two], {**base, "source": "b"}) is one
    assert _of_source([one, two], {**base, "source": "c;d"}) is two
    assert _of_source([one, two], {**base, "source": "e"}) is None
    assert _of_source([one], {**base, "source": "e"}) is one
    assert _of_source([one], {**base, "protocol": "hsnet", "source": "a"}) is None
