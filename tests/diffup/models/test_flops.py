"""Costs: parameters and operations counted from the architecture, and the table that shows them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from analysis.results import COSTS, load_results
from analysis.tables.costs import cost_table
from analysis.tables.scores import Study, studies
from analysis.tables.table import Number
from diffup.backbones.load import load_backbone
from diffup.backbones.weights import weights_identity
from diffup.config import InputConfig, ModelConfig, SampleConfig
from diffup.models.diffup import DiffUpNet
from diffup.models.flops import backbone_cost, decoder_cost, matching_cost, method_cost
from tests.helpers.stores import BETTER, HOME, cell, write_store

SIDE, GRID = 64, 8


@pytest.mark.parametrize("name", ["tiny_resnet", "tiny_regnet", "tiny_clip"])
def test_a_backbone_costs_what_a_real_pass_takes(name: str) -> None:
    """Counted without weights or data, it is what the loaded backbone really does."""
    backbone = load_backbone(name, weights_identity(name))
    with FlopCounterMode(display=False) as counter:
        backbone.stages(torch.zeros(1, 3, SIDE, SIDE))
    found = backbone_cost(name, SIDE)
    assert found["encode_gflops"] == pytest.approx(counter.get_total_flops() / 1e9, rel=1e-3)
    assert 0 < found["backbone_mparams"] < 3


def test_a_resnet50_costs_what_the_literature_says() -> None:
    """25.6 million parameters and 4.1 GMACs, twice as many operations, at 224 pixels."""
    found = backbone_cost("resnet50", 224)
    assert found["backbone_mparams"] == pytest.approx(25.56, abs=0.01)
    assert found["encode_gflops"] == pytest.approx(8.2, abs=0.2)


def test_matching_grows_with_supports_and_text_needs_none() -> None:
    one, five = (matching_cost("tiny_resnet", GRID, k)["prior_gflops"] for k in (1, 5))
    assert 0 < one < five < 5 * one + 1e-9
    assert matching_cost("tiny_resnet", GRID, 0) == {"prior_gflops": 0.0}


def test_decoding_grows_with_steps_and_leaves_the_random_state_alone() -> None:
    model = ModelConfig()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    found = {steps: decoder_cost(model, SampleConfig(steps=steps), 1, GRID) for steps in (1, 4)}
    assert torch.equal(torch.get_rng_state(), before)
    assert found[1]["decode_gflops"] < found[4]["decode_gflops"] < 5 * found[1]["decode_gflops"]
    parameters = sum(parameter.numel() for parameter in DiffUpNet(model).parameters())
    assert found[1]["decoder_mparams"] == pytest.approx(parameters / 1e6)


def test_a_training_free_method_has_no_decoder() -> None:
    config = InputConfig(input_size=SIDE, feature_grid=GRID)
    free = method_cost("tiny_resnet", config, None, SampleConfig(method="prior_mean"), 1, 0)
    assert set(free) == {"backbone_mparams", "encode_gflops", "prior_gflops"}
    assert set(method_cost("tiny_resnet", config, ModelConfig(), SampleConfig(), 1, 1)) == set(COSTS)


def test_the_table_shows_costs_and_hours(tmp_path: Path) -> None:
    cells = [cell(backbone=backbone, shots=shots) for backbone in (HOME, BETTER) for shots in (1, 5)]
    (study,) = studies(load_results(write_store(tmp_path, [*cells, cell(method="prior_mean")])), resamples=50)
    assert cost_table(study) is None
    known = dict(zip(COSTS, (25.5, 16.7, 2.3, 0.3, 0.4)))
    frame = study.cells.assign(**known, device="cuda:0", seconds=1800.0)
    frame.loc[frame["trained_on"] == "", ["decoder_mparams", "decode_gflops"]] = float("nan")
    table = cost_table(Study(frame, study.counts, (), 50))
    assert table is not None
    columns = {" ".join(column.header).strip(): i for i, column in enumerate(table.columns)}
    rows = {row.labels[:2]: row.entries for row in table.rows}
    assert set(rows) == {(HOME, "DiffUp"), (BETTER, "DiffUp"), (HOME, "prior mean")}
    entries = rows[HOME, "DiffUp"]
    values = {name: entry.value for name, i in columns.items() if isinstance(entry := entries[i], Number)}
    assert values["parameters (M) backbone"] == 25.5 and values["GFLOPs decode"] == 0.4
    assert values["time GPU hours"] == 1.0, "two cells of half an hour"
    assert values["time ms an episode"] == pytest.approx(1000 * 1800 / 120)
    assert rows[HOME, "prior mean"][columns["GFLOPs decode"]] is None


def test_a_study_of_several_protocols_is_refused(tmp_path: Path) -> None:
    """What may not stand in one table is never put into one."""
    cells = [cell(), replace(cell(), protocol="hsnet", protocol_hash="x")]
    results = load_results(write_store(tmp_path, cells))
    assert len(studies(results)) == 2
    with pytest.raises(ValueError, match=r"protocol hsnet, paired: group them with analysis.tables.scores.studies"):
        Study(results.cells, results.counts)
