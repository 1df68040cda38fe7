"""What protocols do to one checkpoint's figures: the grid, and the table with its differences."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from analysis.__main__ import main
from analysis.tables.protocol_spread import spread_tables
from analysis.tables.table import Number, to_markdown
from diffup.episodes.protocols import PROTOCOLS, get_protocol
from diffup.grid.axes import Backbone
from diffup.grid.cell import Cell, TrainingCell
from diffup.grid.datasets import Data
from experiments import protocol_study
from tests.helpers.stores import cell, write_store

FAST = 200


def data(protocol: str) -> Data:
    return Data(name="birds", protocol=protocol, protocol_hash=get_protocol(protocol).hash())


def test_one_checkpoint_a_fold_is_tested_under_every_protocol_and_seed() -> None:
    parts = [data(name) for name in protocol_study.PROTOCOLS]
    cells = protocol_study.grid(parts, Backbone(name="resnet50", weights="hub"), folds=(0, 2))
    training = [c for c in cells if isinstance(c, TrainingCell)]
    tests = [c for c in cells if isinstance(c, Cell)]
    assert [(c.fold, c.protocol) for c in training] == [(0, "paired"), (2, "paired")]
    assert {c.checkpoint for c in tests} - {""} == {c.key() for c in training}
    assert Counter(c.protocol for c in tests) == {n: 8 * len(PROTOCOLS[n].seeds) for n in protocol_study.PROTOCOLS}
    assert len(tests) == 2 * 52, "as the docstring says"
    assert {c.protocol: c.episodes for c in tests} == {n: PROTOCOLS[n].episode_count("birds") for n in PROTOCOLS}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    cells = []
    for fold in (0, 1):
        for seed in range(3):
            other = {"protocol": "bam", "protocol_hash": "bbbbbbbbbbbb", "episode_seed": seed, "fold": fold}
            cells += [cell(**other), cell(**other, method="prior_mean")]
        cells += [cell(fold=fold), cell(fold=fold, method="prior_mean")]
    return write_store(tmp_path, cells)


def test_the_table_tells_protocols_apart_and_names_the_best_seed(store: Path) -> None:
    (table,) = spread_tables(store, resamples=FAST)
    rows = {row.labels[:2]: row for row in table.rows}
    assert len(rows) == 4
    paired, bam = (rows["DiffUp on tiny_resnet", name] for name in ("paired (123456789abc)", "bam (bbbbbbbbbbbb)"))
    assert (paired.labels[2], bam.labels[2]) == ("1", "3")
    assert paired.entries[1:] == (None, None)
    mean, gap, best = bam.entries
    assert isinstance(mean, Number) and isinstance(gap, Number) and isinstance(best, Number)
    assert gap.difference and gap.value == pytest.approx(mean.value - paired.entries[0].value)  # type: ignore[union-attr]
    assert best.value > mean.value, "the best of three seeds flatters"
    assert mean.episodes == 2 * 3 * 120
    text = to_markdown(table)
    assert "best seed" in text and "not paired" in text


def test_an_unpaired_interval_is_wider_than_a_paired_one_of_equal_cells(tmp_path: Path) -> None:
    """The same cell under two names of protocols: a paired difference would be exactly 0 wide."""
    cells = [cell(), cell(protocol="copy", protocol_hash="cccccccccccc")]
    (table,) = spread_tables(write_store(tmp_path, cells), resamples=FAST)
    gap = table.rows[1].entries[1]
    assert isinstance(gap, Number)
    assert gap.low < 0 < gap.high and gap.high - gap.low > 1


def test_a_missing_seed_leaves_a_dash_and_one_protocol_no_table(tmp_path: Path) -> None:
    cells = [cell(), *(cell(protocol="bam", protocol_hash="b" * 12, episode_seed=seed) for seed in (0, 1))]
    last = cells[-1].key()
    (table,) = spread_tables(write_store(tmp_path / "gap", cells, missing=lambda c: c.key() == last), resamples=FAST)
    assert table.rows[1].entries[2] is None
    with pytest.raises(ValueError, match="under several protocols"):
        spread_tables(write_store(tmp_path / "one", [cell()]), resamples=FAST)


def test_checkpoints_of_two_data_sets_are_not_two_protocols(tmp_path: Path) -> None:
    cells = [cell(), cell(trained_dataset="birds", classes="tested", tested=(0, 1, 2, 3))]
    with pytest.raises(ValueError, match="under several protocols"):
        spread_tables(write_store(tmp_path, cells), resamples=FAST)


def test_the_command_writes_every_format(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["spread", "--results", str(store), "--out", str(out), "--resamples", str(FAST)]) == 0
    assert {path.name for path in out.iterdir()} == {
        f"protocols-shapes4i.{suffix}" for suffix in ("md", "tex", "html", "csv")
    }
