"""Training and evaluation on a toy: determinism, resumption, honesty about labels, and that it learns at all."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import diffup.training.losses as losses
import diffup.training.trainer as training
from diffup.config import InputConfig, ModelConfig, SampleConfig, TrainConfig
from diffup.episodes.cue_source import CueSource
from diffup.episodes.protocols import get_protocol
from diffup.episodes.sampling import paired_episodes
from diffup.evaluation.encode import Encoder, FeatureCache
from diffup.evaluation.evaluate import Evaluation, episode_noise, evaluate, predict, prompt_indices
from diffup.evaluation.panels import panel
from diffup.models.checkpoint import load_checkpoint
from diffup.training.sampler import EpisodeSampler
from diffup.training.trainer import Paused, paused_at, train
from tests.helpers.disks import full_disk
from tests.helpers.toy import ToyBackbone, ToyDataset

INPUT = InputConfig(input_size=64, feature_grid=8, feature_dtype="float32")
MODEL = ModelConfig(decoder_grid=16, width=16)
TRAIN = TrainConfig(steps=6, batch_size=2, max_shots=3)
FOLD = 0


def setting(text: bool = True) -> tuple[ToyDataset, CueSource, FeatureCache]:
    dataset, backbone = ToyDataset(), ToyBackbone()
    encoder = Encoder(backbone, INPUT, backbone if text else None)  # type: ignore[arg-type]
    return dataset, CueSource(dataset, INPUT), FeatureCache(encoder, dataset.image)  # type: ignore[arg-type]


def run(folder: Path, steps: int = 6, seed: int = 0, model: ModelConfig = MODEL) -> tuple[ToyDataset, dict[str, float]]:
    dataset, cues, features = setting()
    config = TrainConfig(steps=steps, batch_size=2, max_shots=3)
    pools = {c: dataset.pool(c) for c in range(6) if c not in dataset.folds[FOLD]}
    sampler = EpisodeSampler(cues, features, pools, FOLD, seed, model, config)
    return dataset, train(sampler, folder, facts={}, progress=False)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def evaluation(folder: Path | None, annotation: str = "mask", shots: int = 1, *, deranged: bool = False) -> Evaluation:
    sample = SampleConfig() if folder is not None else SampleConfig(method="prior_mean")
    model = None if folder is None else load_checkpoint(folder)
    classes = ToyDataset.folds[FOLD]
    return Evaluation(
        model=model, sample=sample, annotation=annotation, shots=shots, class_indices=classes, fold=FOLD,
        deranged=deranged,
    )  # fmt: skip


def manifest(dataset: ToyDataset, count: int = 12, shots: int = 3) -> list:
    pools = {c: dataset.pool(c) for c in dataset.folds[FOLD]}
    return paired_episodes(pools, fold=FOLD, shots=shots, episodes=count, seed=0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    run(folder)
    return folder


def test_same_seed_same_bytes_and_other_seed_other_bytes(checkpoint: Path, tmp_path: Path) -> None:
    run(tmp_path / "again")
    run(tmp_path / "other", seed=1)
    assert digest(tmp_path / "again") == digest(checkpoint)
    assert digest(tmp_path / "other") != digest(checkpoint)


def test_interrupted_training_ends_in_the_same_bytes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY", 2)
    calls = {"n": 0}
    honest = losses.step_loss

    def dying(*args: object) -> torch.Tensor:
        calls["n"] += 1
        if calls["n"] == 6:
            raise KeyboardInterrupt
        return honest(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(losses, "step_loss", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert (tmp_path / "state.pt").exists()
    assert not (tmp_path / "model.safetensors").exists()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    torch.save({**state, "seconds": 1000.0}, tmp_path / "state.pt")
    _, metrics = run(tmp_path)
    assert metrics["seconds"] > 1000 and metrics["steps_per_s"] < 0.01, "the time before the interruption counts"
    assert calls["n"] == 6 + 2, "the second run must go on from step 4"
    assert digest(tmp_path) == digest(checkpoint)
    assert not (tmp_path / "state.pt").exists()


@pytest.mark.parametrize("save_every", [2, 100])  # while it writes its state, and its checkpoint
def test_a_full_disk_ends_a_training_with_its_number_and_the_next_goes_on(
    save_every: int, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY", save_every)
    with monkeypatch.context() as patch, pytest.raises(OSError) as caught:
        full_disk(patch)
        run(tmp_path)
    assert caught.value.errno == errno.ENOSPC  # by which `cluster.execution.worker` knows that it may pass
    assert not list(tmp_path.iterdir())
    run(tmp_path)
    assert digest(tmp_path) == digest(checkpoint)


def test_paused_training_ends_in_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    paused = []
    for _ in range(2):
        with pytest.raises(Paused) as pause, paused_at(2, 5, 6):
            run(tmp_path)
        paused.append(pause.value.step)
        assert (tmp_path / "state.pt").exists()
        assert json.loads((tmp_path / "config.json").read_text())["facts"]["unfinished"] == "2 of 6 steps"
        assert digest(tmp_path) != digest(checkpoint)
    assert paused == [2, 2], "a pause it stands at is a pause again: what was to be done there may not have been"
    with pytest.raises(Paused, match="paused after 5 steps"), paused_at(5, 6):
        run(tmp_path)
    with paused_at(2, 6):
        run(tmp_path)
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / name).read_bytes() == (checkpoint / name).read_bytes(), name
    assert not (tmp_path / "state.pt").exists()


def test_nobody_pauses_a_training_from_outside(checkpoint: Path, tmp_path: Path) -> None:
    with paused_at(3):
        pass
    run(tmp_path)
    assert digest(tmp_path) == digest(checkpoint)


def test_no_novel_class_is_looked_at_in_training(tmp_path: Path) -> None:
    dataset, _ = run(tmp_path)
    assert dataset.asked == {2, 3, 4, 5}


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": "plain"},
        {"schedule": "prior_centred"},
        {"one_step": True},
        {"uapf": False},
        {"scm": False},
        {"dqm_error": False},
        {"dqm_iou": False},
        {"self_conditioning": False},
        {"query_infos": False},
        {"residual": False},
        {"bound": 1.5},
        {"base": "evidence"},
        {"base": "evidence", "uapf": False},
    ],
)
def test_every_variant_trains_and_segments(change: dict, tmp_path: Path) -> None:
    model = ModelConfig(**{"decoder_grid": 16, "width": 16, **change})
    run(tmp_path, steps=2, model=model)
    dataset, cues, features = setting()
    for result in predict(evaluation(tmp_path), manifest(dataset, 2), cues, features):
        assert torch.isfinite(result.probability).all()
        assert 0 <= result.predicted_iou <= 1


def test_draws_are_used_again_mirrored_and_distorted_anew() -> None:
    dataset, cues, features = setting()
    pools = {c: dataset.pool(c) for c in (2, 3, 4, 5)}
    config = TrainConfig(steps=9, batch_size=2, draws=3, virtual_backbones=False)
    drawn: list[object] = []

    def keep(key: object, kind: type, make: Callable[[], Any]) -> Any:
        drawn.append(key)
        return make()

    sampler = EpisodeSampler(cues, features, pools, FOLD, 0, MODEL, config, keep)
    batches = [sampler.step(step) for step in range(9)]
    assert len(set(map(repr, drawn))) == 3
    for step in range(3):
        first, second, third = batches[step], batches[step + 3], batches[step + 6]
        assert torch.equal(first.prior_BKSPhw.flip(-1), second.prior_BKSPhw)
        assert torch.equal(first.truth_BRR.flip(-1), second.truth_BRR)
        assert torch.equal(first.prior_BKSPhw, third.prior_BKSPhw)
        assert not torch.equal(first.noise_BRR, third.noise_BRR)
    config = dataclasses.replace(config, virtual_backbones=True)
    distorted = EpisodeSampler(cues, features, pools, FOLD, 0, MODEL, config)
    assert not torch.equal(distorted.step(0).prior_BKSPhw, distorted.step(6).prior_BKSPhw)


def test_small_and_large_objects_are_drawn_equally_often() -> None:
    dataset, cues, features = setting()
    pools = {c: dataset.pool(c) for c in (2, 3, 4, 5)}
    config = TrainConfig(steps=1, batch_size=2, balance_sizes=True)
    sampler = EpisodeSampler(cues, features, pools, FOLD, 0, MODEL, config)
    rng = np.random.default_rng(0)
    picked = [sampler._picked(rng, sorted(pools), 2) for _ in range(4000)]
    weights = {(c, image): w for c, row in sampler.queries.items() for image, w in zip(pools[c], row, strict=True)}
    drawn = Counter((c, ids[0]) for c, ids in picked)
    total = sum(weights.values())
    for pair, weight in weights.items():
        expected = 4000 * weight / total
        assert abs(drawn[pair] - expected) <= 5 * expected**0.5 + 1
    assert all(len(set(ids)) == len(ids) == 3 and set(ids) <= set(pools[c]) for c, ids in picked)


@pytest.mark.slow
def test_training_lowers_the_loss(tmp_path: Path) -> None:
    dataset, cues, features = setting()
    config = TrainConfig(steps=60, batch_size=4, max_shots=2, ema=0.9, learning_rate=3e-3, virtual_backbones=False)
    pools = {c: dataset.pool(c) for c in (2, 3, 4, 5)}
    losses: list[float] = []
    train(
        EpisodeSampler(cues, features, pools, FOLD, 0, MODEL, config), tmp_path, facts={}, progress=False,
        report=lambda step, loss: losses.append(loss),
    )  # fmt: skip
    assert losses[-1] < 0.8 * losses[4]


@pytest.mark.parametrize(
    ("annotation", "shots"), [("mask", 1), ("box", 2), ("scribble", 3), ("text", 0), ("mask+text", 1)]
)
def test_every_annotation_gives_a_full_table(checkpoint: Path, annotation: str, shots: int) -> None:
    dataset, cues, features = setting()
    what = evaluation(checkpoint, annotation, shots)
    table = evaluate(what, manifest(dataset), cues, features, progress=False)
    assert len(table) == 12
    assert (table["union_fg"] >= table["inter_fg"]).all()
    assert (table["supports"].map(len) == shots).all()
    pixels = table["prob_count"].map(sum)
    assert (pixels == 48 * 64).all()
    for name in ("std_count", "margin_count"):
        assert (table[name].map(sum) == pixels).all()
    wrong = pixels - table["inter_fg"] - table["inter_bg"]
    for name in ("std_wrong", "margin_wrong"):
        assert (table[name].map(sum) == wrong).all()


@pytest.mark.parametrize("name", ["pfenet", "bam", "panet"])
def test_predictions_and_labels_meet_at_the_protocols_size(checkpoint: Path, name: str) -> None:
    dataset, cues, features = setting()
    protocol = get_protocol(name)
    what = dataclasses.replace(evaluation(checkpoint), protocol=protocol)
    episodes = manifest(dataset, 6)
    table = evaluate(what, episodes, cues, features, progress=False)
    for row, episode in zip(table.to_dict("records"), episodes, strict=True):
        truth = dataset.mask(episode.query, episode.class_index)
        size = protocol.label_size(dataset.name, truth.shape)
        expected = F.interpolate(torch.from_numpy(truth)[None, None].float(), size=size, mode="nearest")
        assert sum(row["prob_count"]) == int((expected != 255).sum())
        assert sum(row["prob_positive"]) == int((expected == 1).sum())
    panel(what, episodes[0], predict(what, episodes[:1], cues, features)[0], cues)


def test_masks_do_not_depend_on_the_batch(checkpoint: Path) -> None:
    dataset, cues, features = setting()
    what, episodes = evaluation(checkpoint), manifest(dataset, 6)
    together = predict(what, episodes, cues, features)
    for episode, one in zip(episodes, together, strict=True):
        alone = predict(what, [episode], cues, features)[0]
        torch.testing.assert_close(alone.probability, one.probability, atol=1e-4, rtol=0)


def test_query_truth_reaches_nothing_but_the_score(checkpoint: Path) -> None:
    """Poison the masks of all queries: predictions must not change by a byte."""
    dataset, cues, features = setting()
    what, episodes = evaluation(checkpoint), manifest(dataset, 6)
    supports = {e.supports[0] for e in episodes}
    episodes = [e for e in episodes if e.query not in supports]
    assert episodes
    clean = predict(what, episodes, cues, features)

    poisoned, poisoned_cues, poisoned_features = setting()
    honest = poisoned.mask
    queries = {e.query for e in episodes}

    def mask(image_id: str, class_index: int) -> np.ndarray:
        return np.ones((48, 64), np.uint8) if image_id in queries else honest(image_id, class_index)

    poisoned.mask = mask  # type: ignore[method-assign]
    for before, after in zip(clean, predict(what, episodes, poisoned_cues, poisoned_features), strict=True):
        assert torch.equal(before.probability, after.probability)
        assert before.predicted_iou == after.predicted_iou


def test_right_names_beat_wrong_names_without_any_support() -> None:
    dataset, cues, features = setting()
    episodes = manifest(dataset)
    right = evaluate(evaluation(None, "text", 0), episodes, cues, features, progress=False)
    wrong = evaluate(evaluation(None, "text", 0, deranged=True), episodes, cues, features, progress=False)
    assert right["inter_fg"].sum() > 2 * wrong["inter_fg"].sum()


def test_episode_noise_belongs_to_the_episode() -> None:
    assert torch.equal(episode_noise(0, 1, 5, 8), episode_noise(0, 1, 5, 8))
    assert not torch.equal(episode_noise(0, 1, 5, 8), episode_noise(0, 1, 6, 8))
    assert not torch.equal(episode_noise(0, 1, 5, 8), episode_noise(1, 1, 5, 8))


def test_derangement_leaves_no_class_in_place() -> None:
    wrong = prompt_indices((3, 5, 8), deranged=True)
    assert sorted(wrong.values()) == [3, 5, 8]
    assert all(c != name for c, name in wrong.items())
    with pytest.raises(ValueError, match="at least two classes"):
        prompt_indices((3,), deranged=True)


def test_damaged_checkpoint_is_named(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(tmp_path)


def test_features_are_encoded_once_and_the_cache_is_bounded() -> None:
    dataset, _, features = setting(text=False)
    ids = dataset.image_ids[:6]
    features.get(ids)
    features.get(ids)
    assert features.encoded == 6
    small = FeatureCache(features.encoder, dataset.image, limit_bytes=2 * features.get(ids[:1])[0].nbytes())
    assert len(small.get(ids)) == 6
    assert len(small._kept) == 2
