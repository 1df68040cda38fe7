"""Quality estimates: the statistics against scipy and brute force, their intervals, tables and figures from a store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from analysis.calibration import auroc, estimates, iou_error, read_quality, spearman
from analysis.quality import Qualities, main, quality_tables, write_quality
from analysis.results import load_results
from analysis.tables.scores import studies
from analysis.tables.table import Number
from diffup.evaluation.metrics import STD_BINS, counts, episode_ious
from diffup.evaluation.scoring import Predicted, Prediction, score
from diffup.evaluation.stats import EpisodeCounts, episode_multiplicities
from diffup.grid.cell import Cell
from diffup.training.losses import batch_iou
from tests.helpers.stores import BETTER, HOME, cell, episodes, write_cell

FAST = 100
SIZE = (40, 50)


def _predictions(count: int, seed: int = 0) -> list[tuple[Prediction, np.ndarray]]:
    """Made-up masks whose errors gather where the deviation is high, and with a rival that knows less of them."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        truth = np.zeros(SIZE, np.uint8)
        truth[: rng.integers(8, 30), : rng.integers(10, 40)] = 1
        noise = rng.normal(0, rng.uniform(0.2, 1.2), SIZE)
        probability = 1 / (1 + np.exp(-(np.where(truth == 1, 1.0, -1.0) + 2 * noise)))
        deviation = 0.02 + 0.5 * np.exp(-2 * np.abs(probability - 0.5)) * rng.uniform(0.5, 1.5, SIZE)
        truth[-2:] = 255
        prior = np.clip(probability + rng.normal(0, 0.2, SIZE), 0, 1)
        tensors = [torch.from_numpy(a.astype(np.float32)) for a in (probability, deviation**2, prior)]
        made.append((Prediction(tensors[0], tensors[1], float(rng.uniform()), tensors[2]), truth))
    return made


def _weights(rng: np.random.Generator, rows: int, episodes: int) -> np.ndarray:
    return np.concatenate([np.ones((1, episodes)), rng.integers(0, 4, (rows, episodes))]).astype(np.float64)


def test_spearman_is_that_of_the_resampled_episodes() -> None:
    """Ties and repeated episodes included."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 12, 40) / 12, rng.normal(size=40)
    weights = _weights(rng, 5, 40)
    for row, found in zip(weights.astype(int), spearman(x, y, weights)):
        assert found == pytest.approx(reference.spearmanr(np.repeat(x, row), np.repeat(y, row)).statistic)
    assert np.isnan(spearman(np.ones(40), y, weights)).all()


def test_auroc_of_histograms_is_that_of_the_pixels() -> None:
    """Against the Mann-Whitney statistic of the unbinned deviations, and exactly on the levels themselves."""
    rng = np.random.default_rng(1)
    level, wrong = rng.integers(0, 9, 500), rng.random(500) < 0.3
    count, hit = np.bincount(level, minlength=9)[None], np.bincount(level[wrong], minlength=9)[None]
    exact = reference.mannwhitneyu(level[wrong], level[~wrong]).statistic / (wrong.sum() * (~wrong).sum())
    assert auroc(count.astype(float), hit.astype(float))[0] == pytest.approx(exact)
    assert np.isnan(auroc(np.ones((1, 4)), np.zeros((1, 4)))).all()

    prediction, truth = _predictions(1)[0]
    [row] = score(Predicted.of(prediction), [truth], 0.5)
    assert prediction.variance is not None and prediction.prior is not None
    valid = truth != 255
    bad = ((prediction.probability.numpy() > 0.5) != (truth == 1))[valid]
    for name, sign, values in (
        ("std", 1, prediction.variance.numpy()),
        ("margin", -1, np.abs(prediction.prior.numpy() - 0.5)),
    ):
        values = sign * values[valid]
        exact = reference.mannwhitneyu(values[bad], values[~bad]).statistic / (bad.sum() * (~bad).sum())
        histograms = [np.array([row[f"{name}_{part}"]], dtype=float)[:, ::sign] for part in ("count", "wrong")]
        assert auroc(*histograms)[0] == pytest.approx(exact, abs=0.005)
        assert abs(exact - 0.5) > 0.1


def test_score_counts_valid_pixels_and_takes_extremes() -> None:
    """Ignored pixels are in no bin; probabilities of 1 and deviations beyond the range are in the last ones."""
    truth = np.array([[1, 1, 0, 255]], np.uint8)
    probability, variance = torch.tensor([[1.0, 0.2, 0.0, 0.9]]), torch.tensor([[0.0, 9.0, 0.04, 0.04]])
    [row] = score(Predicted.of(Prediction(probability, variance, 0.5, probability)), [truth], 0.5)
    assert sum(row["prob_count"]) == sum(row["std_count"]) == sum(row["margin_count"]) == 3
    assert row["prob_count"][-1] == row["prob_positive"][-1] == 1 and row["prob_sum"][-1] == 1.0
    assert row["std_count"][0] == 1 and row["std_wrong"][-1] == 1 and sum(row["std_wrong"]) == 1
    assert row["margin_count"][-1] == 2 and sum(row["margin_wrong"]) == 1
    assert row["fg_probability"] == pytest.approx(0.95)
    [empty] = score(Predicted.of(Prediction(torch.zeros(1, 4), None, float("nan"))), [truth], 0.5)
    assert empty["fg_probability"] == 0.0 and sum(empty["std_count"]) == 0 and len(empty["std_count"]) == STD_BINS


def test_iou_error_by_hand() -> None:
    predicted, true = np.array([0.05, 0.05, 0.95, 1.0]), np.array([0.05, 0.25, 0.75, 1.0])
    weights = np.array([[1.0, 1, 1, 1], [0, 2, 2, 0]])
    np.testing.assert_allclose(iou_error(predicted, true, weights), [(0.2 + 0.2) / 4, (0.4 + 0.4) / 4])


def test_resamples_are_clustered_and_stratified() -> None:
    """Episodes of one query occur equally often; each class keeps its number of query images drawn."""
    table = episodes(cell())
    counts = EpisodeCounts(
        table["episode"].to_numpy(),
        table["class_id"].to_numpy(),
        table["query"].to_numpy().astype(str),
        table[["inter_fg", "union_fg", "inter_bg", "union_bg"]].to_numpy(),
    )
    drawn = episode_multiplicities(counts, resamples=20, seed=3)
    for _, rows in table.groupby(["class_id", "query"]).indices.items():
        assert (drawn[:, rows] == drawn[:, rows[:1]]).all()
    for class_id, rows in table.groupby("class_id").indices.items():
        first = table.iloc[rows].drop_duplicates("query").index
        assert (drawn[:, first].sum(axis=1) == len(first)).all(), class_id


def _with_estimates(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """The made-up episodes with columns of quality: a predicted IoU near the truth, a rival farther from it."""
    rng = np.random.default_rng(seed)
    iou = table["inter_fg"] / table["union_fg"]
    rows = [score(Predicted.of(prediction), [truth], 0.5)[0] for prediction, truth in _predictions(8, seed)]
    picked = pd.DataFrame([rows[i % len(rows)] for i in range(len(table))])
    picked = picked.drop(columns=["inter_fg", "union_fg", "inter_bg", "union_bg", "predicted_iou"])
    picked["predicted_iou"] = np.clip(iou + rng.normal(0, 0.05, len(table)) + 0.03, 0, 1)
    picked["fg_probability"] = np.clip(iou + rng.normal(0, 0.3, len(table)), 0, 1)
    kept = table.drop(columns=["predicted_iou"])
    return pd.concat([kept.reset_index(drop=True), picked], axis=1)


def _grid() -> list[Cell]:
    return [
        cell(fold=fold, backbone=backbone, train_seed=seed)
        for fold in (0, 1)
        for backbone in (HOME, BETTER)
        for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    for asked in [*_grid(), cell(method="prior_mean")]:
        write_cell(root, asked, episodes_of=lambda c: _with_estimates(episodes(c), c.train_seed))
    return root


def test_tables_have_a_row_a_backbone_and_paired_differences(store: Path) -> None:
    results = load_results(store)
    (study,) = studies(results, resamples=FAST)
    qualities = Qualities(results, study)
    iou, pixels = quality_tables(qualities)
    assert not qualities.warnings
    assert [row.labels for row in iou.rows] == [("1-shot mask", name, "DiffUp") for name in (HOME, BETTER)]
    for row in (*iou.rows, *pixels.rows):
        for entry in row.entries:
            assert isinstance(entry, Number) and entry.low <= entry.high and entry.seeds == 2 and entry.episodes == 240
            assert len(entry.keys) == 4
    ours, rival, gap, bias, error = iou.rows[0].entries
    assert all(isinstance(entry, Number) for entry in (ours, rival, gap, bias, error))
    assert ours.value - rival.value == pytest.approx(gap.value) and gap.low > 0  # type: ignore[union-attr]
    assert bias.value == pytest.approx(0.03, abs=0.01) and bias.difference  # type: ignore[union-attr]
    std, prior, difference = pixels.rows[0].entries[:3]
    assert std.value - prior.value == pytest.approx(difference.value)  # type: ignore[union-attr]


def test_figures_of_a_run_are_those_of_its_pixels(store: Path) -> None:
    """AUROC and calibration error of the whole run against sums by hand."""
    asked = _grid()[0]
    counts = load_results(store).counts[asked.key()]
    quality = read_quality(store, [asked.key()], [counts], resamples=FAST, seed=0, stream=0)
    found = estimates(quality, threshold=0.5, sample="x")
    table = pd.read_parquet(store / asked.key() / "episodes.parquet")
    count, wrong = (np.stack(table[f"std_{part}"].to_list()).sum(axis=0) for part in ("count", "wrong"))
    level = np.arange(STD_BINS)
    bad, good = np.repeat(level, wrong), np.repeat(level, count - wrong)
    exact = reference.mannwhitneyu(bad, good).statistic / (len(bad) * len(good))
    assert found["auroc_std"].value == pytest.approx(exact)
    hits, total = (np.stack(table[name].to_list()).sum(axis=0) for name in ("prob_positive", "prob_sum"))
    gaps = np.abs(hits - total)
    assert found["probability_error"].value <= gaps.sum() / count.sum() + 1e-9
    # The rival's margin is the model's own with noise.
    assert found["auroc_own"].value > found["auroc_prior"].value
    assert np.isnan(estimates(quality, threshold=0.4, sample="x")["auroc_own"].value)


def test_everything_is_written(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--results", str(store), "--out", str(tmp_path), "--resamples", str(FAST)]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    expected = {f"quality_{name}.{ending}" for name in ("iou", "pixels") for ending in ("tex", "md", "html", "csv")}
    assert names == expected | {f"quality_1_shot_mask.{ending}" for ending in ("png", "pdf", "csv")}
    assert (tmp_path / "quality_1_shot_mask.png").stat().st_size > 20_000
    assert "0." in (tmp_path / "quality_iou.md").read_text()
    for name in ("iou", "pixels"):
        assert "?" not in (tmp_path / f"quality_{name}.tex").read_text().replace("mask is?", "").replace("wrong?", "")
    capsys.readouterr()
    assert main(["--results", str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
    assert "no results directory" in capsys.readouterr().err


def test_cells_of_an_earlier_version_are_named_and_shown_as_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their tables lack the histograms; the remedy is in the warning."""
    old, new = cell(backbone=HOME), cell(backbone=BETTER)
    write_cell(tmp_path, old)
    write_cell(tmp_path, new, episodes_of=lambda c: _with_estimates(episodes(c)))
    write_quality(tmp_path, tmp_path / "out", resamples=FAST)
    warned = capsys.readouterr().err
    assert old.key() in warned and "--force other-code" in warned and new.key() not in warned
    row = next(line for line in (tmp_path / "out" / "quality_iou.md").read_text().splitlines() if f"| {HOME} " in line)
    assert "–" in row
    only_prior = tmp_path / "prior"
    write_cell(only_prior, replace(cell(method="prior_mean")))
    with pytest.raises(ValueError, match="no evaluation of a trained model"):
        write_quality(only_prior, tmp_path / "out2", resamples=FAST)


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=60, deadline=None)
def test_the_loss_and_the_metric_mean_the_same_iou(seed: int, found: float, void: float) -> None:
    """Nothing to find and nothing found, or nothing but void, is 1 in both."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(np.array([0, 1], np.uint8), (4, 3, 5), p=[1 - found, found])
    truth[rng.random(truth.shape) < void] = 255
    prediction = rng.random(truth.shape) < rng.choice([0.0, 0.5])
    planes = (torch.from_numpy(plane.astype(np.float32)) for plane in (prediction, truth == 1, truth != 255))
    rows = np.array([counts(p, t) for p, t in zip(prediction, truth)])
    np.testing.assert_allclose(batch_iou(*planes).numpy(), episode_ious(rows[:, 0], rows[:, 1]), rtol=1e-6)
