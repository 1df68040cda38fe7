"""Whatever a store lawfully holds, the paper kit writes what there is and never stops half way."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from analysis import paper
from diffup.config import InputConfig, SampleConfig
from diffup.grid.cell import Cell
from tests.helpers.stores import BETTER, CLIP, HOME, cell, grid, write_store

TEXT = cell(backbone=CLIP, shots=0, annotation="text")
ADAPTER = SampleConfig(method="adapter", function="a.b:c", function_version="1")
ODD = "데이터 <b>&_%é|"
STORES: dict[str, list[Cell]] = {
    "nothing finished": grid(),
    "one backbone": [cell(), cell(method="prior_mean")],
    "0 shots alone": [TEXT, replace(TEXT, variant="wrong_names", input=InputConfig(class_names="deranged"))],
    "a baseline alone": [cell(method="prototype")],
    "a foreign method": [
        cell(), replace(cell(method="prior_mean"), backbone="own", weights="own", variant="mine", sample=ADAPTER),
    ],
    "several studies": [
        cell(), replace(cell(), protocol="hsnet", protocol_hash="h"), replace(cell(), dataset="pascal5i"),
        replace(cell(), trained_dataset="coco20i", dataset="pascal5i"),
    ],
    "single episodes": [
        cell(episodes=1), cell(method="prior_mean", episodes=1), cell(episodes=3, backbone=BETTER),
    ],
    "odd names": [replace(cell(), dataset=ODD, variant="ünï|*_%<i>"), replace(cell(method="prior_mean"), dataset=ODD)],
    "seeds": [
        *(cell(train_seed=seed, episode_seed=e) for seed in (0, 1) for e in (0, 1)),
        *(cell(method="prior_mean", episode_seed=e) for e in (0, 1)),
    ],
    "a fold is missing": grid(range(3)),
    "two training backbones": [
        cell(trained_on=home, backbone=backbone, checkpoint=f"of {home}")
        for home in (HOME, BETTER) for backbone in (HOME, BETTER, CLIP)
    ],
    "several weights": [cell(), cell(weights="hub"), cell(backbone=BETTER, weights="random:3")],
}  # fmt: skip
MISSING: dict[str, Callable[[Cell], bool]] = {
    "nothing finished": lambda _: True,
    "a fold is missing": lambda asked: asked.fold == 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STORES)
def test_the_paper_kit_takes_any_store(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "compiled", lambda out: [])  # TeX has tests of its own
    root = write_store(tmp_path / "store", STORES[name], missing=MISSING.get(name, lambda _: False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert paper.main(["--results", str(root), "--out", str(tmp_path / "out"), "--resamples", "20"]) == 0
    text = (tmp_path / "out" / "report.html").read_text()
    assert all(asked.key() in text for asked in STORES[name])
    assert (tmp_path / "out" / "numbers.csv").read_text().count("\n") > 1


@pytest.mark.latex
def test_odd_names_compile(tmp_path: Path, require_program: Callable[[str], str]) -> None:
    require_program("latexmk")
    write_store(tmp_path / "store", STORES["odd names"])
    assert paper.main(["--results", str(tmp_path / "store"), "--out", str(tmp_path / "out"), "--resamples", "20"]) == 0
    assert (tmp_path / "out" / "paper.pdf").is_file()


def test_held_out_classes_stay_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path / "store", [replace(cell(), classes="held_out", hold_out=2)])
    assert paper.main(["--results", str(tmp_path / "store"), "--out", str(tmp_path / "out")]) == 2
    assert "holds no evaluation cell" in capsys.readouterr().err
