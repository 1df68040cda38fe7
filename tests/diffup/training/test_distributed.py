"""A step divided into micro-batches or among processes is the same step; bfloat16 and the GPU stay close to it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor

import diffup.training.losses as losses
import diffup.training.trainer as training
from diffup.config import InputConfig, ModelConfig, SampleConfig, TrainConfig
from diffup.episodes.cue_source import CueSource
from diffup.episodes.sampling import paired_episodes
from diffup.evaluation.encode import Encoder, FeatureCache
from diffup.evaluation.evaluate import Evaluation, predict
from diffup.models.checkpoint import load_checkpoint
from diffup.models.diffup import DiffUpNet
from diffup.training.distributed import ProcessGroup
from diffup.training.sampler import EpisodeSampler, Step
from diffup.training.trainer import add_gradients, train
from tests.helpers.toy import ToyBackbone, ToyDataset

INPUT = InputConfig(input_size=64, feature_grid=8, feature_dtype="float32")
MODEL = ModelConfig(decoder_grid=16, width=16)
WHOLE = TrainConfig(steps=5, batch_size=4, max_shots=3)
CPU = torch.device("cpu")


def make_sampler(config: TrainConfig, device: str = "cpu") -> EpisodeSampler:
    dataset, backbone = ToyDataset(), ToyBackbone()
    features = FeatureCache(Encoder(backbone, INPUT, backbone, device), dataset.image)  # type: ignore[arg-type]
    pools = {c: dataset.pool(c) for c in (2, 3, 4, 5)}
    return EpisodeSampler(CueSource(dataset, INPUT), features, pools, 0, 0, MODEL, config)  # type: ignore[arg-type]


def make_step(config: TrainConfig, *, feed_back: bool) -> Step:
    """A whole step with void pixels, many in some episodes and few in others."""
    step = make_sampler(config).step(0)
    share = torch.linspace(0.2, 1.0, len(step)).view(-1, 1, 1)
    valid = torch.rand(step.valid_BRR.shape, generator=torch.Generator().manual_seed(0)) < share
    return dataclasses.replace(step, valid_BRR=valid.float(), feed_back=feed_back)


def gradient(step: Step, config: TrainConfig, shares: list[slice] | None = None) -> tuple[float, Tensor]:
    """Loss and gradient of a step by a model whose output layers are no longer zero."""
    torch.manual_seed(0)
    model = DiffUpNet(MODEL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    loss = sum(float(add_gradients(model, step[rows], config, CPU)) for rows in shares or [slice(None)])
    return loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def run(folder: Path, config: TrainConfig, group: ProcessGroup | None = None, device: str = "cpu") -> None:
    sampler = make_sampler(config, device)
    train(sampler, folder, facts={}, progress=False, group=group or ProcessGroup(), device=device)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def check_close(one: Path, two: Path) -> None:
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, atol=1e-4, rtol=0, msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder, WHOLE)
    return folder


@pytest.mark.parametrize("feed_back", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_gradients_of_micro_batches_are_those_of_the_whole_step(feed_back: bool, batch_size: int) -> None:
    step = make_step(WHOLE, feed_back=feed_back)
    parts = dataclasses.replace(WHOLE, batch_size=batch_size, accumulate=4 // batch_size)
    loss, expected = gradient(step, WHOLE)
    divided, found = gradient(step, parts)
    assert divided == pytest.approx(loss, abs=1e-5)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_gradients_of_shares_add_up_to_those_of_the_whole_step(size: int) -> None:
    step = make_step(WHOLE, feed_back=True)
    loss, expected = gradient(step, WHOLE)
    divided, found = gradient(step, WHOLE, ProcessGroup(0, size).shares(4))
    assert divided == pytest.approx(loss, abs=1e-5)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_accumulation_ends_in_the_checkpoint_of_the_large_batch(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, dataclasses.replace(WHOLE, batch_size=2, accumulate=2))
    check_close(whole, tmp_path)


@pytest.mark.parametrize(("count", "size"), [(4, 1), (7, 3), (8, 8), (16, 5)])
def test_shares_cover_a_step_evenly(count: int, size: int) -> None:
    shares = ProcessGroup(0, size).shares(count)
    assert [i for rows in shares for i in range(count)[rows]] == list(range(count))
    lengths = [rows.stop - rows.start for rows in shares]
    assert len(lengths) == size and max(lengths) - min(lengths) <= 1


def test_more_processes_than_episodes_are_refused() -> None:
    with pytest.raises(ValueError, match="5 processes can't share steps of 4 episodes"):
        ProcessGroup(0, 5).shares(4)


def member(rank: int, folder: Path, config: TrainConfig, dies_at: int) -> None:
    """One process of a group of two; `dies_at`: the call of step_loss at which it is interrupted."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / f'meet{dies_at}'}", rank=rank, world_size=2)
    group = ProcessGroup.current()
    assert (group.rank, group.size) == (rank, 2)
    calls, honest = 0, losses.step_loss

    def dying(*args: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == dies_at:
            raise KeyboardInterrupt
        return honest(*args)

    losses.step_loss, training.SAVE_EVERY = dying, 2  # type: ignore[assignment]
    try:
        run(folder if rank == 0 else folder / "must not be used", config, group)
    except KeyboardInterrupt:
        assert dies_at
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_end_in_the_checkpoint_of_one(whole: Path, tmp_path: Path) -> None:
    mp.spawn(member, args=(tmp_path, WHOLE, 0), nprocs=2)  # type: ignore[attr-defined]
    check_close(whole, tmp_path)
    assert not (tmp_path / "must not be used").exists()
    assert not (tmp_path / "state.pt").exists()


@pytest.mark.slow
def test_what_two_processes_began_one_may_finish(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mp.spawn(member, args=(tmp_path, WHOLE, 4), nprocs=2)  # type: ignore[attr-defined]
    assert (tmp_path / "state.pt").exists()
    steps: list[int] = []
    honest = EpisodeSampler.step

    def counted(sampler: EpisodeSampler, step: int) -> Any:
        steps.append(step)
        return honest(sampler, step)

    monkeypatch.setattr(EpisodeSampler, "step", counted)
    run(tmp_path, WHOLE)
    assert steps == [2, 3, 4]
    check_close(whole, tmp_path)


@pytest.mark.parametrize("feed_back", [False, True])
def test_bfloat16_gives_nearly_the_same_gradient_to_every_weight(feed_back: bool) -> None:
    """A cast that is kept from the prediction that is fed back would leave weights without gradient."""
    step = make_step(WHOLE, feed_back=feed_back)
    loss, expected = gradient(step, WHOLE)
    rough, found = gradient(step, dataclasses.replace(WHOLE, precision="bfloat16"))
    assert found.shape == expected.shape
    assert rough == pytest.approx(loss, rel=0.03)
    assert rough != loss
    assert float(torch.nn.functional.cosine_similarity(found, expected, dim=0)) > 0.98


def test_bfloat16_keeps_float32_weights(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, dataclasses.replace(WHOLE, precision="bfloat16"))
    assert {value.dtype for value in weights(tmp_path).values()} == {torch.float32}
    assert any(not torch.equal(value, weights(whole)[name]) for name, value in weights(tmp_path).items())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_trains_and_segments_as_the_cpu_does(whole: Path, tmp_path: Path, precision: str) -> None:
    run(tmp_path, dataclasses.replace(WHOLE, precision=precision), device="cuda")
    if precision == "float32":
        check_close(whole, tmp_path)
    dataset = ToyDataset()
    episodes = paired_episodes({c: dataset.pool(c) for c in (0, 1)}, fold=0, shots=2, episodes=4, seed=0)
    found = {}
    for device in ("cpu", "cuda"):
        sampler = make_sampler(WHOLE, device)
        for annotation in ("mask", "box+text"):
            what = Evaluation(
                model=load_checkpoint(tmp_path).to(device), sample=SampleConfig(), annotation=annotation, shots=2,
                class_indices=(0, 1),
            )  # fmt: skip
            made = predict(what, episodes, sampler.cues, sampler.features)
            found[device, annotation] = torch.stack([p.probability for p in made])
    for annotation in ("mask", "box+text"):
        torch.testing.assert_close(found["cuda", annotation], found["cpu", annotation], atol=1e-2, rtol=0)
