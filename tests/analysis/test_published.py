"""Published results: the shipped figures are sound, planted faults are found, and a raw collection loses nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from analysis.published.table import (
    BIB,
    COLUMNS,
    FIGURE,
    PUBLISHED,
    RAW,
    bibliography,
    check_published,
    load_published,
    main,
    normalise,
    rows_for,
)

HSNET = ("HSNet", "ICCV", "2021", "pascal-5i", "RN50", "mask", "1")
PRINTED = {"0": "64.3", "1": "70.7", "2": "60.3", "3": "60.5", "mean": "64.0"}


def raw_rows(
    source: str, values: dict[str, str] = PRINTED, start: tuple[str, ...] = HSNET, metric: str = "miou"
) -> list[tuple[str, ...]]:
    """Raw figures of one result as one source prints them."""
    return [(*start, fold, metric, value, source) for fold, value in values.items()]


def raw_frame(*results: list[tuple[str, ...]]) -> pd.DataFrame:
    return pd.DataFrame([row for rows in results for row in rows], columns=list(RAW))


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


def test_figures_are_spelled_in_our_words() -> None:
    made = normalise(raw_frame(raw_rows("HSNet paper, read_file id 123; strict few-shot, Table 2")))
    assert tuple(made.columns) == COLUMNS
    assert check_published(made) == []
    for column, value in {
        "key": "min2021hsnet", "dataset": "pascal5i", "backbone": "ResNet-50", "protocol": "hsnet",
        "in_context": "no", "source": "HSNet paper [strict few-shot, Table 2]", "status": "ok", "note": "",
    }.items():  # fmt: skip
        assert set(made[column]) == {value}, column
    box = normalise(raw_frame(raw_rows("a", {"mean": "50"}, (*HSNET[:5], "bbox", "1"), "fbiou")))
    assert box[["annotation", "metric"]].to_numpy().tolist() == [["box", "fb_iou"]]


def test_sources_that_agree_share_a_row() -> None:
    made = normalise(raw_frame(raw_rows("a"), raw_rows("b"), raw_rows("c", {"mean": "64.02"})))
    assert len(made) == 5
    assert set(made.loc[made["fold"] != "mean", "source"]) == {"a;b"}
    mean = made[made["fold"] == "mean"].iloc[0]
    assert (mean["value"], mean["source"], mean["status"]) == (64.02, "c;a;b", "ok")
    assert mean["note"] == "also printed as 64.0"


def test_sources_that_disagree_are_kept_and_marked() -> None:
    made = normalise(raw_frame(raw_rows("a"), raw_rows("b", {"mean": "63.5"})))
    means = made[made["fold"] == "mean"]
    assert means[["value", "status"]].to_numpy().tolist() == [[63.5, "conflict"], [64.0, "conflict"]]
    assert means["note"].tolist() == ["other value 64.0 (a)", "other value 63.5 (b)"]
    assert set(made.loc[made["fold"] != "mean", "status"]) == {"ok"}
    assert check_published(made) == []


def test_a_mean_that_is_not_that_of_its_folds_is_marked() -> None:
    made = normalise(raw_frame(raw_rows("a", {**PRINTED, "mean": "64.2"})))
    mean = made[made["fold"] == "mean"].iloc[0]
    assert (mean["value"], mean["status"], mean["note"]) == (
        64.2,
        "folds_do_not_average",
        "the printed folds average 63.95",
    )
    near = normalise(raw_frame(raw_rows("a", {**PRINTED, "mean": "64.1"})))
    assert set(near["status"]) == {"ok"}


def test_both_faults_of_a_mean_are_named() -> None:
    made = normalise(raw_frame(raw_rows("a", {**PRINTED, "mean": "65.0"}), raw_rows("b")))
    means = made[made["fold"] == "mean"].set_index("value")["status"]
    assert means.to_dict() == {64.0: "conflict", 65.0: "conflict;folds_do_not_average"}
    assert check_published(made) == []


def test_an_unstated_backbone_is_named_by_its_figures() -> None:
    start = (*HSNET[:4], "unstated in table", *HSNET[5:])
    same = normalise(raw_frame(raw_rows("a"), raw_rows("b", PRINTED, start)))
    assert set(same["backbone"]) == {"ResNet-50"} and len(same) == 5
    other = normalise(raw_frame(raw_rows("a"), raw_rows("b", {**PRINTED, "0": "64.4"}, start)))
    assert set(other["backbone"]) == {"ResNet-50", "unstated"} and len(other) == 10
    deeper = (*HSNET[:4], "RN101", *HSNET[5:])
    either = normalise(raw_frame(raw_rows("a"), raw_rows("c", PRINTED, deeper), raw_rows("b", {"mean": "64.0"}, start)))
    assert either.loc[either["source"] == "b", "backbone"].tolist() == ["unstated"]


def test_one_method_by_two_protocols_is_two_results() -> None:
    both = [raw_rows(f"figure; {style}-style resize protocol") for style in ("HSNet", "PFENet")]
    made = normalise(raw_frame(*both))
    assert made.groupby("protocol").size().to_dict() == {"hsnet": 5, "pfenet": 5}
    assert set(made["status"]) == {"ok"}
    assert check_published(made) == []


def test_a_generalist_is_apart_from_the_method_it_is_named_after() -> None:
    start = ("HSNet [in-context]", *HSNET[1:])
    made = normalise(raw_frame(raw_rows("a"), raw_rows("b", {"mean": "68.7"}, start)))
    assert set(made["method"]) == {"HSNet"} and set(made["status"]) == {"ok"}
    assert made.loc[made["in_context"] == "yes", "protocol"].tolist() == [""]


def test_panets_own_coco_folds_are_another_data_set() -> None:
    start = ("PANet", "ICCV", "2019", "coco-20i", "VGG16", "mask", "1")
    made = normalise(raw_frame(raw_rows("review; PANet own COCO split", {"mean": "20.9"}, start)))
    assert made["dataset"].tolist() == ["coco20i_panet"]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("method", "NoSuchNet", "unknown method 'NoSuchNet'"),
        ("dataset", "cityscapes", "unknown dataset 'cityscapes'"),
        ("metric", "dice", "unknown metric 'dice'"),
        ("value", "n/a", "correct the raw file"),
    ],
)
def test_what_a_raw_file_may_not_hold(column: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        normalise(raw_frame(raw_rows("a")).assign(**{column: value}))


def test_a_missing_column_is_named(shipped: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="lack the column fold"):
        normalise(raw_frame(raw_rows("a")).drop(columns="fold"))
    with pytest.raises(ValueError, match="lack the column key"):
        check_published(shipped.drop(columns="key"))


def test_the_order_of_the_raw_rows_does_not_matter() -> None:
    raw = raw_frame(raw_rows("a"), raw_rows("b", {"mean": "63.5"}), raw_rows("c", {**PRINTED, "0": "60.0"}))
    mixed = raw.sample(frac=1, random_state=0)
    shown = [name for name in COLUMNS if name not in ("source", "note")]
    pd.testing.assert_frame_equal(normalise(raw)[shown], normalise(mixed)[shown])


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


def test_the_command_makes_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, out = tmp_path / "raw.csv", tmp_path / "out.csv"
    raw_frame(raw_rows("a"), raw_rows("b", {"mean": "63.5"})).to_csv(raw, index=False)
    assert main(["--raw", str(raw), "--out", str(out)]) == 0
    assert "6 printed figures in 6 rows of 1 methods: 4 ok, 2 conflict" in capsys.readouterr().out
    out.write_text(out.read_text().replace("64.3", "0.643"))
    assert main(["--check", "--file", str(out)]) == 1
    assert "looks like a fraction" in capsys.readouterr().err
    assert main(["--check", "--file", str(tmp_path / "none.csv")]) == 2
    assert "none.csv" in capsys.readouterr().err
    assert main(["--check"]) == 0


def test_no_raw_figure_is_lost(shared_data: Path, tmp_path: Path) -> None:
    """Each raw figure is one source of one row, and the shipped file is what the command makes of the raw one."""
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
    out = tmp_path / "published.csv"
    assert main(["--raw", str(path), "--out", str(out)]) == 0
    assert out.read_bytes() == PUBLISHED.read_bytes()


def test_a_row_of_a_main_table_keeps_to_its_source() -> None:
    """Where sources contradict each other, the figures of one row are those that one source prints."""
    from analysis.published.rows import _of_source

    base = {"method": "M", "backbone": "B", "key": "k", "protocol": "", "in_context": "no"}
    one, two = {**base, "source": "a;b", "mean": 1.0}, {**base, "source": "c", "mean": 2.0}
    assert _of_source([one, two], {**base, "source": "b"}) is one
    assert _of_source([one, two], {**base, "source": "c;d"}) is two
    assert _of_source([one, two], {**base, "source": "e"}) is None
    assert _of_source([one], {**base, "source": "e"}) is one
    assert _of_source([one], {**base, "protocol": "hsnet", "source": "a"}) is None
