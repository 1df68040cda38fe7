"""From a store to a paper: the right cells in the right places, and a document that LaTeX compiles."""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.build import collect
from analysis.paper import main, main_markdown, write_all
from analysis.results import load_results, where
from analysis.tables.differences import claims_table
from analysis.tables.html import to_html
from analysis.tables.latex import to_latex
from analysis.tables.main import upgrade_table
from analysis.tables.places import MethodKey, Task
from analysis.tables.scores import Study, studies
from analysis.tables.table import Number, Table, figure, to_markdown
from diffup.config import InputConfig, SampleConfig
from diffup.grid.cell import Cell
from tests.analysis.test_tables import EMPTY, HARD, WIDE
from tests.helpers.stores import BETTER, CLIP, HOME, cell, grid, write_cell, write_store

FAST = 200


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up grid on two folds, one cell of which is missing."""
    return write_store(tmp_path_factory.mktemp("store"), grid(), missing=is_missing)


def is_missing(asked: Cell) -> bool:
    """DiffUp with 5 masks on fold 1 with the third backbone."""
    place = (asked.fold, asked.shots, asked.annotation, asked.backbone, asked.variant)
    return place == (1, 5, "mask", CLIP, "diffup")


def tables_of(root: Path) -> dict[str, Table]:
    """All tables of a store by name."""
    return {table.name: table for part in collect(load_results(root), resamples=FAST) for table in part.tables}


def entry(table: Table, labels: tuple[str, ...], header: tuple[str, ...]) -> Number | str | None:
    """One entry of a table."""
    column = [column.header for column in table.columns].index(header)
    return next(row for row in table.rows if row.labels == labels).entries[column]


def number(table: Table, labels: tuple[str, ...], header: tuple[str, ...]) -> Number:
    """One entry that must be a number."""
    found = entry(table, labels, header)
    assert isinstance(found, Number)
    return found


def test_main_table_shows_folds_mean_and_fb_iou(store: Path) -> None:
    """Figures are those of the store; the mean is of the folds; cells are named."""
    cells = load_results(store).cells
    table = tables_of(store)["main"]
    assert [column.header for column in table.columns[:4]] == [
        ("1-shot", "fold 0"),
        ("1-shot", "fold 1"),
        ("1-shot", "mean"),
        ("1-shot", "FB-IoU"),
    ]
    stored = where(cells, backbone=HOME, variant="diffup", annotation="mask", shots=1).sort_values("fold")
    folds = [number(table, (HOME, "DiffUp"), ("1-shot", f"fold {fold}")) for fold in (0, 1)]
    assert [fold.value for fold in folds] == pytest.approx(stored["miou"].tolist())
    mean = number(table, (HOME, "DiffUp"), ("1-shot", "mean"))
    assert mean.value == pytest.approx(stored["miou"].mean())
    assert number(table, (HOME, "DiffUp"), ("1-shot", "FB-IoU")).value == pytest.approx(stored["fb_iou"].mean())
    assert mean.keys == tuple(stored["key"])
    assert mean.episodes == 240
    assert mean.low < mean.value < mean.high
    assert mean.high - mean.low < min(fold.high - fold.low for fold in folds)


def test_missing_cells_are_dashes(store: Path) -> None:
    """The fold is missing, and so is the mean; the other fold is there."""
    table = tables_of(store)["main"]
    assert number(table, (CLIP, "DiffUp"), ("5-shot", "fold 0")).value > 0
    assert entry(table, (CLIP, "DiffUp"), ("5-shot", "fold 1")) is None
    assert entry(table, (CLIP, "DiffUp"), ("5-shot", "mean")) is None
    assert "–" in main_markdown(store, resamples=FAST)


def test_training_backbone_comes_first_and_methods_are_named(store: Path) -> None:
    """Rows by backbone, the method before its baseline."""
    assert [row.labels for row in tables_of(store)["main"].rows] == [
        (HOME, "DiffUp"),
        (HOME, "prior mean"),
        (BETTER, "DiffUp"),
        (BETTER, "prior mean"),
        (CLIP, "DiffUp"),
        (CLIP, "prior mean"),
    ]


def test_upgrade_is_paired_with_the_training_backbone(store: Path) -> None:
    """Δ is the difference of the two figures, its interval narrower than either, and the baseline has its own."""
    table = tables_of(store)["upgrade"]
    here, home = ("1-shot mask", BETTER), ("1-shot mask", HOME)
    gain = number(table, here, ("Δ to training backbone",))
    ours, before = (number(table, labels, ("DiffUp",)) for labels in (here, home))
    assert gain.value == pytest.approx(ours.value - before.value)
    assert set(gain.keys) == {*ours.keys, *before.keys}
    assert gain.high - gain.low < 0.8 * (ours.high - ours.low)
    assert gain.excludes_zero
    assert ours.best and not before.best
    assert entry(table, home, ("Δ to training backbone",)) == "reference"
    prior = number(table, here, ("prior mean",)).value - number(table, home, ("prior mean",)).value
    assert number(table, here, ("Δ of prior mean",)).value == pytest.approx(prior)
    lead = number(table, here, ("DiffUp − prior mean",))
    assert lead.value == pytest.approx(ours.value - number(table, here, ("prior mean",)).value)


def test_annotations_show_text_and_its_control(store: Path) -> None:
    """Wrong names are a column beside the text, not a row."""
    table = tables_of(store)["annotations"]
    right, wrong, gap = (
        number(table, (CLIP, "DiffUp"), ("text", name)) for name in ("0-shot", "wrong names", "difference")
    )
    assert gap.value == pytest.approx(right.value - wrong.value)
    assert gap.low > 10
    assert entry(table, (HOME, "DiffUp"), ("text", "0-shot")) is None
    assert {row.labels[1] for row in table.rows} == {"DiffUp", "prior mean"}
    headers = [column.header[0] for column in table.columns]
    assert list(dict.fromkeys(headers)) == ["text", "mask", "box", "scribble"]


def test_claims_and_their_verdicts(store: Path) -> None:
    """Each difference with a verdict that is its interval's."""
    table = tables_of(store)["claims"]
    verdicts = {row.labels[0]: row.entries[3] for row in table.rows}
    assert verdicts == {
        f"DiffUp beats prior mean on {HOME} (1-shot mask)": "yes",
        f"{BETTER} beats {HOME}, trained on {HOME} (1-shot mask)": "yes",
        f"{CLIP} beats {HOME}, trained on {HOME} (1-shot mask)": "yes",
        f"right class names beat wrong ones on {CLIP} (0-shot text)": "yes",
    }


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, "no"), (0.1, "yes"), (-0.1, "reversed"), (None, "not run")])
def test_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: float | None, verdict: str) -> None:
    """No difference, a better upgrade, a worse one, and one that has not been run."""
    monkeypatch.setattr("tests.helpers.stores.quality", lambda c: 0.5 + (shift or 0) * (c.backbone == BETTER))
    cells = [cell(), cell(backbone=BETTER)]
    write_store(tmp_path, cells, missing=lambda c: shift is None and c == cells[1])
    table = claims_table(studies(load_results(tmp_path), resamples=FAST)[0])
    assert table is not None
    assert table.rows[0].entries[3] == verdict


def study_of(root: Path) -> Study:
    """The only study of a store."""
    (study,) = studies(load_results(root), resamples=FAST)
    return study


def test_training_seeds_are_averaged_and_their_spread_kept_apart(tmp_path: Path) -> None:
    """Mean ± std over seeds; the interval is of the mean over the episodes; a baseline is compared with each seed."""
    write_store(tmp_path, grid(folds=(0,), seeds=(0, 1, 2)))
    study = study_of(tmp_path)
    home, prior = (s for s in study.methods if s.backbone == HOME)
    task = Task(1, "mask")
    found = study.number(home, task)
    stored = where(load_results(tmp_path).cells, backbone=HOME, variant="diffup", shots=1, annotation="mask")
    assert found is not None
    assert (found.seeds, found.episodes, len(found.keys)) == (3, 120, 3)
    assert found.value == pytest.approx(stored["miou"].mean())
    assert found.std == pytest.approx(stored["miou"].std())
    lead, base = study.difference((home, task), (prior, task)), study.number(prior, task)
    assert lead is not None and base is not None
    assert lead.value == pytest.approx(found.value - base.value)
    assert lead.std == pytest.approx(found.std)
    assert base.std is None
    upgrade = upgrade_table(study)
    assert upgrade is not None
    assert any("±" in note for note in upgrade.notes)


def test_episode_seeds_are_pooled(tmp_path: Path) -> None:
    """Two manifests of a fold are one larger one."""
    write_store(tmp_path, [cell(episode_seed=seed, episodes=40) for seed in (0, 1)])
    study = study_of(tmp_path)
    found = study.number(study.methods[0], Task(1, "mask"))
    assert found is not None
    assert (found.episodes, len(found.keys), found.std) == (80, 2, None)


def test_cells_of_unequal_length_are_compared_on_what_they_share(tmp_path: Path) -> None:
    """The shorter manifest is the beginning of the longer one."""
    write_store(tmp_path, [cell(episodes=120), cell(method="prior_mean", episodes=60)])
    study = study_of(tmp_path)
    ours, prior = study.methods
    gap = study.difference((ours, Task(1, "mask")), (prior, Task(1, "mask")))
    assert gap is not None
    assert gap.episodes == 60
    assert gap.excludes_zero


def test_other_manifests_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal identity and other episodes: some other code drew them."""
    write_cell(tmp_path, cell())
    monkeypatch.setattr("tests.helpers.stores.POOL", 20)
    write_cell(tmp_path, cell(method="prior_mean"))
    study = study_of(tmp_path)
    ours, prior = study.methods
    with pytest.raises(ValueError, match="different manifests"):
        study.difference((ours, Task(1, "mask")), (prior, Task(1, "mask")))


def test_protocols_and_data_are_never_mixed(tmp_path: Path) -> None:
    """Each gets its own tables, whose names tell them apart."""
    cells = [cell(), cell(protocol_hash="ffffffffffff"), cell(dataset="msrc15")]
    write_store(tmp_path / "store", cells)
    names = {path.name for path in write_all(tmp_path / "store", tmp_path / "out", resamples=FAST)}
    assert {name for name in names if name.startswith("main") and name.endswith(".csv")} == {
        "main-shapes4i-paired-aaaabbbbcccc-123456789abc.csv",
        "main-shapes4i-paired-aaaabbbbcccc-ffffffffffff.csv",
        "main-msrc15-paired-aaaabbbbcccc-123456789abc.csv",
    }


def test_two_cells_of_one_place(tmp_path: Path) -> None:
    """The latest launch's cell stands in the table; the other is named with what differs."""
    old = replace(cell(), sample=SampleConfig(steps=8))
    write_cell(tmp_path, old, finished="2025-03-01T00:00:00+00:00")
    write_store(tmp_path, [cell()])
    (part,) = collect(load_results(tmp_path), resamples=FAST)
    (row,), warnings = part.tables[0].rows, part.study.warnings
    assert isinstance(row.entries[0], Number)
    assert row.entries[0].keys == (cell().key(),)
    assert len(warnings) == 1
    assert f"{old.key()} (for {cell().key()})" in warnings[0]
    assert "differ from them in sample.steps" in warnings[0]


def test_a_control_belongs_to_its_checkpoint(tmp_path: Path) -> None:
    """Wrong names of one variant are not those of another."""
    text = cell(backbone=CLIP, shots=0, annotation="text")
    other = replace(text, variant="one_step", checkpoint="0123456789ab")
    wrong = replace(other, variant="wrong_names", input=InputConfig(class_names="deranged"))
    write_store(tmp_path, [text, other, wrong, cell(backbone=CLIP)])
    table = tables_of(tmp_path)["annotations"]
    assert entry(table, (CLIP, "DiffUp"), ("text", "wrong names")) is None
    assert number(table, (CLIP, "one-step decoder"), ("text", "wrong names")).value > 0


def test_one_fold_needs_no_mean(tmp_path: Path) -> None:
    """One column a figure, and the note says which fold."""
    table = tables_of(write_store(tmp_path, [cell(fold=2)]))["main"]
    assert [column.header for column in table.columns] == [("1-shot", "mIoU"), ("1-shot", "FB-IoU")]
    assert "fold 2 only" in table.notes[0]


def test_notes_name_what_made_the_table(store: Path) -> None:
    """Protocol and hash, data, folds, episodes, seeds, commit and code."""
    note = tables_of(store)["main"].notes[0]
    for fact in ("paired (123456789abc)", "aaaabbbbcccc", "folds 0, 1", "120 episodes", "0123456789ab", "feedfacecafe"):
        assert fact in note


def test_nothing_finished_is_a_table_of_dashes(tmp_path: Path) -> None:
    """A grid that was only planned."""
    write_store(tmp_path, grid(folds=(0,)), missing=lambda _: True)
    for table in tables_of(tmp_path).values():
        assert not [entry for row in table.rows for entry in row.entries if isinstance(entry, Number)]
    assert "no cell of this table has finished" in tables_of(tmp_path)["main"].notes[0]


@pytest.mark.slow
def test_command(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names what it wrote and how to use it; the CSV holds the store's figures; again, it writes the same bytes."""
    assert main(["--results", str(store), "--out", str(tmp_path / "a"), "--resamples", "50"]) == 0
    names, told = capsys.readouterr().out.split("\n\n")
    printed = [f"{stem}{kind}" for stem, *kinds in map(str.split, names.splitlines()) for kind in kinds]
    assert sorted(printed) == sorted(str(path) for path in (tmp_path / "a").iterdir())
    assert f"\\input{{{tmp_path / 'a'}/main}}" in told
    with (tmp_path / "a" / "main.csv").open() as file:
        rows = {
            row["keys"]: float(row["value"]) for row in csv.DictReader(file) if " " not in row["keys"] and row["keys"]
        }
    figures = load_results(store).cells.set_index("key")["miou"]
    assert len(rows) == 2 * 3 * 2 * 2 - 1
    assert all(np.isclose(figures[key], value) for key, value in rows.items())
    assert r"1-shot mask, mIoU in \%; in brackets 95\% intervals." in (tmp_path / "a" / "paper.tex").read_text()
    write_all(store, tmp_path / "b", resamples=50)
    assert all((tmp_path / "b" / path.name).read_bytes() == path.read_bytes() for path in (tmp_path / "a").iterdir())


def test_one_launch_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cells of other launches in the same store stay out of its tables."""
    write_store(tmp_path / "store", [cell()])
    write_cell(tmp_path / "store", cell(backbone=BETTER))
    arguments = ["--results", str(tmp_path / "store"), "--resamples", "20", "--out"]
    assert main([*arguments, str(tmp_path / "all")]) == 0
    assert main([*arguments, str(tmp_path / "one"), "--launch", "grid"]) == 0
    assert BETTER in (tmp_path / "all" / "main.csv").read_text()
    assert BETTER not in (tmp_path / "one" / "main.csv").read_text()
    assert HOME in (tmp_path / "one" / "main.csv").read_text()
    assert main([*arguments, str(tmp_path / "two"), "--launch", "grit"]) == 2
    assert "no launch 'grit'" in capsys.readouterr().err


def test_wrong_usage(tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2 and one line that says what to do."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for arguments, message in (
        (["--results", str(tmp_path / "no"), "--out", str(tmp_path)], "no results directory"),
        (["--results", str(tmp_path / "empty"), "--out", str(tmp_path)], "holds no evaluation cell; run a grid first"),
        (["--results", str(store), "--out", str(tmp_path / "file")], "choose another --out"),
        (["--results", str(store), "--out", str(tmp_path), "--resamples", "0"], "--resamples must be 1 or more"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_markdown_for_a_terminal(store: Path) -> None:
    """The main table and the claims, at most 130 characters a line."""
    text = main_markdown(store, resamples=FAST)
    assert "DiffUp beats prior mean" in text and "* Bold: the best" in text and "* Holds: yes" in text
    assert max(map(len, text.splitlines())) <= 130


@pytest.mark.latex
def test_the_paper_compiles(store: Path, tmp_path: Path, require_program: Callable[[str], str]) -> None:
    """With a real LaTeX: no error, no overfull line, every table on some page, and names as they were given."""
    require_program("pdflatex")
    latexmk, pdftotext = require_program("latexmk"), require_program("pdftotext")
    write_all(store, tmp_path, resamples=FAST)
    hard = [replace(table, name=f"golden{i}") for i, table in enumerate((HARD, WIDE, EMPTY))]
    golden = Path(__file__).resolve().parents[1] / "golden"
    for table, made in zip(hard, (HARD, WIDE, EMPTY)):
        shutil.copy(golden / f"{made.name}.tex", tmp_path / f"{table.name}.tex")
    with (tmp_path / "tables.tex").open("a") as file:
        file.writelines(f"\\input{{{table.name}}}\n" for table in hard)
    command = [latexmk, "-pdf", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, errors="replace")
    assert done.returncode == 0, done.stdout[-3000:]
    log = (tmp_path / "paper.log").read_text(errors="replace")
    assert "Overfull" not in log
    assert "too large for page" not in log
    text = subprocess.run([pdftotext, "-layout", "paper.pdf", "-"], cwd=tmp_path, capture_output=True, text=True).stdout
    for expected in ("Main results on shapes4i", "Better backbones", "Annotations on", "Paired differences", "95%"):
        assert expected in text
    for expected in ("% & | * and a missing cell", "[ViT*<B>\\16]", "50%"):  # "_" is a rule in these fonts, not text
        assert expected in text


def test_weights_distinguish_methods(tmp_path: Path) -> None:
    """One backbone with two sets of weights is two rows, and their labels say which."""
    write_store(tmp_path, [cell(), cell(weights="sha256:111111111111")])
    labels = [row.labels[0] for row in tables_of(tmp_path)["main"].rows]
    assert labels == [f"{HOME} [sha256:000000000000]", f"{HOME} [sha256:111111111111]"]
    assert len({MethodKey("a", "b", "c", "d", "e"), MethodKey("a", "x", "c", "d", "e")}) == 2


def few(root: Path, *, reason: str = "no episode of class 3 (1 of 4 classes): use more episodes") -> Path:
    """Three methods on two folds of four classes; on fold 1, three episodes, so that one class has none."""
    for fold, count in ((0, 120), (1, 3)):
        for method in ("diffup", "prior_mean", "prototype"):
            undefined = {"miou": reason} if fold else None
            write_cell(root, cell(fold=fold, method=method, episodes=count), undefined=undefined)
    return root


def test_an_undefined_mean_hides_nothing_else(tmp_path: Path) -> None:
    """mIoU is a dash where a class has no episode, FB-IoU is there, and the foot says why."""
    root = few(tmp_path)
    tables = tables_of(root)
    main = tables["main"]
    here = (HOME, "DiffUp")
    assert number(main, here, ("1-shot", "fold 0")).value > 0
    for header in ("fold 1", "mean"):
        missing = entry(main, here, ("1-shot", header))
        assert isinstance(missing, Number) and np.isnan(missing.value) and figure(missing) == "–"
    stored = where(load_results(root).cells, variant="diffup")
    assert number(main, here, ("1-shot", "FB-IoU")).value == pytest.approx(stored["fb_iou"].mean())
    assert not any("no cell of this table has finished" in note for note in main.notes)
    assert (
        "Undefined figures are shown as –. mIoU: no episode of class 3 (1 of 4 classes): use more episodes (3 cells)."
        in main.notes
    )
    assert {row.entries[3] for row in tables["claims"].rows} == {"undefined"}
    assert "±" not in to_markdown(main) and "nan" not in to_markdown(main) + to_latex(main) + to_html(main)


def test_undefined_figures_stop_nothing(tmp_path: Path) -> None:
    """Tables, figures and the report are written, and no figure draws what is undefined."""
    root = few(tmp_path / "store")
    write_cell(root, cell(fold=1, backbone=BETTER, episodes=3), undefined={"miou": "no episode"})
    write_cell(root, cell(fold=0, backbone=BETTER))
    write_all(root, tmp_path / "out", resamples=50)
    drawn = "".join(path.read_text() for path in (tmp_path / "out").glob("figure_*.csv"))
    assert drawn and "nan" not in drawn.lower()
    assert "no episode of class 3" in (tmp_path / "out" / "report.html").read_text()


def test_a_difference_over_fewer_classes_is_undefined(tmp_path: Path) -> None:
    """The shorter of two manifests lacks a class: what they share says nothing of the mean over all."""
    write_cell(tmp_path, cell(episodes=120))
    write_cell(tmp_path, cell(method="prior_mean", episodes=3), undefined={"miou": "no episode of class 3"})
    study = study_of(tmp_path)
    ours, prior = study.methods
    task = Task(1, "mask")
    gap, pooled = (study.difference((ours, task), (prior, task), metric) for metric in ("miou", "fb_iou"))
    assert gap is not None and pooled is not None and np.isnan(gap.value) and pooled.value == pooled.value


def test_one_complete_manifest_of_several_makes_the_mean_defined(tmp_path: Path) -> None:
    """Episode seeds are pooled: a class that one of them lacks is in the other."""
    write_cell(tmp_path, cell(episodes=40))
    write_cell(tmp_path, cell(episodes=3, episode_seed=1), undefined={"miou": "no episode of class 3"})
    study = study_of(tmp_path)
    found = study.number(study.methods[0], Task(1, "mask"))
    assert found is not None and found.value > 0 and found.episodes == 43
