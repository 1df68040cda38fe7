"""A training resumes its own state and no other: not of another configuration, data, backbone, seed or code."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cluster.execution import inputs as opened
from cluster.execution.run_cell import WorkContext, execute
from diffup.config import InputConfig, ModelConfig, TrainConfig
from diffup.episodes.cue_source import CueSource
from diffup.errors import UserError
from diffup.evaluation.encode import Encoder, FeatureCache
from diffup.grid.cell import TrainingCell
from diffup.training.distributed import ProcessGroup
from diffup.training.sampler import EpisodeSampler
from diffup.training.state import identity, resumable
from diffup.training.trainer import Paused, paused_at, train
from tests.helpers.toy import ToyBackbone, ToyDataset

INPUT = InputConfig(input_size=48, feature_grid=8, feature_dtype="float32")
MODEL = ModelConfig(decoder_grid=16, width=16)
TRAIN = TrainConfig(steps=4, batch_size=2, max_shots=2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything that a training depends on."""

    model: ModelConfig = MODEL
    config: TrainConfig = TRAIN
    input: InputConfig = INPUT
    seed: int = 0
    fold: int = 0
    classes: tuple[int, ...] = (2, 3, 4, 5)
    fingerprint: str = "toytoytoytoy"
    weights: str = "toy"

    def sampler(self) -> EpisodeSampler:
        dataset, backbone = ToyDataset(), ToyBackbone()
        dataset.fingerprint, backbone.loaded_hash = self.fingerprint, self.weights
        encoder = Encoder(backbone, self.input, backbone)  # type: ignore[arg-type]
        features = FeatureCache(encoder, dataset.image)
        pools = {c: dataset.pool(c) for c in self.classes}
        cues = CueSource(dataset, self.input)  # type: ignore[arg-type]
        return EpisodeSampler(cues, features, pools, self.fold, self.seed, self.model, self.config)

    def train(self, folder: Path, **more: Any) -> dict[str, float]:
        return train(self.sampler(), folder, facts={}, progress=False, **more)

    def identity(self) -> dict[str, str]:
        return identity(self.sampler())


FIRST = Setting()
OTHERS = {
    "TrainConfig.learning_rate": Setting(config=dataclasses.replace(TRAIN, learning_rate=1e-2)),
    "TrainConfig.steps": Setting(config=dataclasses.replace(TRAIN, steps=5)),
    "TrainConfig.flip": Setting(config=dataclasses.replace(TRAIN, flip=False)),
    "TrainConfig.cue_weights": Setting(config=dataclasses.replace(TRAIN, cue_weights=(1.0, 0.0, 0.0, 0.0))),
    "ModelConfig.bit_scale": Setting(model=dataclasses.replace(MODEL, bit_scale=0.2)),
    "ModelConfig.schedule": Setting(model=dataclasses.replace(MODEL, schedule="plain")),
    "InputConfig.boxes": Setting(input=dataclasses.replace(INPUT, boxes="whole")),
    "InputConfig.prompts": Setting(input=dataclasses.replace(INPUT, prompts=("{}",))),
    "seed": Setting(seed=1),
    "fold": Setting(fold=1),
    "training images": Setting(classes=(2, 3, 4)),
    "dataset": Setting(fingerprint="another data"),
    "backbone": Setting(weights="other weights"),
}


def pause(setting: Setting, folder: Path) -> Path:
    """A training that was interrupted after two steps; returns its state."""
    with pytest.raises(Paused), paused_at(2):
        setting.train(folder)
    return folder / "state.pt"


def steps_of(setting: Setting, folder: Path, **more: Any) -> list[int]:
    """The steps that a training does; it ends."""
    done: list[int] = []
    setting.train(folder, report=lambda step, loss: done.append(step), **more)
    return done


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def paused(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return pause(FIRST, tmp_path_factory.mktemp("paused")).read_bytes()


@pytest.fixture
def state(paused: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "state.pt"
    path.write_bytes(paused)
    return path


def test_the_same_training_resumes(state: Path) -> None:
    assert steps_of(Setting(), state.parent) == [3, 4]


@pytest.mark.parametrize("name", OTHERS)
def test_the_state_of_another_training_is_refused_and_kept(name: str, state: Path, paused: bytes) -> None:
    for more in ({}, {"other_code": lambda why: None}):
        with pytest.raises(UserError) as caught:
            OTHERS[name].train(state.parent, **more)
        message = str(caught.value)
        assert str(state) in message and "delete the file to start over" in message
        assert f"{name} is {OTHERS[name].identity()[name]} here and {FIRST.identity()[name]} in the state" in message
        assert state.read_bytes() == paused and not (state.parent / "model.safetensors").exists()


@pytest.mark.parametrize("part", ["model", "config", "input"])
def test_every_field_of_every_configuration_is_part_of_the_identity(part: str) -> None:
    sampler, before = FIRST.sampler(), FIRST.identity()
    for field in dataclasses.fields(getattr(FIRST, part)):
        changed = copy.copy(getattr(FIRST, part))
        object.__setattr__(changed, field.name, "another")
        sampler.cues.config = changed if part == "input" else INPUT
        sampler.model, sampler.config = changed if part == "model" else MODEL, changed if part == "config" else TRAIN
        after = identity(sampler)
        assert [name for name in after if name in before and after[name] != before[name]] == [
            f"{type(changed).__name__}.{field.name}"
        ]


def other_code(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    torch.save({**state, "code": "0123456789ab"}, path)


def no_identity(path: Path) -> None:
    """As written before states said whose they are."""
    state = torch.load(path, weights_only=True)
    torch.save({name: value for name, value in state.items() if name not in ("identity", "code")}, path)


@pytest.mark.parametrize(("change", "word"), [(other_code, "0123456789ab"), (no_identity, "did not record its code")])
def test_a_state_of_other_code_is_refused_or_dropped_with_a_warning(
    change: Callable[[Path], None], word: str, state: Path, tmp_path: Path
) -> None:
    change(state)
    kept = state.read_bytes()
    with pytest.raises(UserError, match=f"{word}.*Delete it to start over"):
        FIRST.train(state.parent)
    assert state.read_bytes() == kept
    told: list[str] = []
    assert steps_of(FIRST, state.parent, other_code=told.append) == [1, 2, 3, 4]
    assert len(told) == 1 and word in told[0] and "started over" in told[0] and "step 2" in told[0]
    FIRST.train(tmp_path / "afresh")
    assert weights(state.parent) == weights(tmp_path / "afresh")


def test_a_state_of_other_code_is_dropped_even_if_that_code_knew_other_fields(state: Path) -> None:
    kept = torch.load(state, weights_only=True)
    names = {**kept["identity"], "TrainConfig.removed": "1"}
    torch.save({**kept, "identity": names, "code": "0123456789ab"}, state)
    assert steps_of(FIRST, state.parent, other_code=lambda why: None) == [1, 2, 3, 4]


@pytest.mark.parametrize("size", [0, 10, 1000])
def test_a_damaged_state_is_named(state: Path, size: int) -> None:
    state.write_bytes(state.read_bytes()[:size])
    with pytest.raises(UserError, match=r"cannot be resumed.*Delete it to start over"):
        FIRST.train(state.parent)


def test_a_state_that_the_storage_does_not_give_is_no_damaged_state(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: object, **more: object) -> object:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(torch, "load", failing)
    with pytest.raises(OSError, match="Input/output error") as caught:
        FIRST.train(state.parent)
    assert caught.value.errno == 5


CELL = TrainingCell(
    dataset="toy", fold=0, backbone="resnet18", weights="random:0", input=INPUT, model=MODEL, train=TRAIN
)  # fmt: skip


@pytest.fixture
def cells_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state of a cell's training, interrupted after two steps."""
    monkeypatch.setattr(opened, "_open", lambda path: ToyDataset())
    monkeypatch.setattr(opened, "_backbone", lambda *where: ToyBackbone())
    opened._features.cache_clear()
    with pytest.raises(Paused), paused_at(2):
        execute(CELL, context(tmp_path))
    return tmp_path / CELL.key() / "checkpoint" / "state.pt"


def context(root: Path) -> WorkContext:
    return WorkContext(results=root, datasets={"toy": "nowhere"})


@pytest.mark.parametrize("change", [other_code, no_identity])
def test_a_cell_starts_over_after_other_code_and_says_so(
    change: Callable[[Path], None], cells_state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(cells_state)
    outcome = execute(CELL, context(tmp_path))
    (warning,) = outcome.provenance["warnings"]
    assert "started over" in warning and f"warning: cell {CELL.key()}: {warning}" in capsys.readouterr().err
    execute(CELL, context(tmp_path / "afresh"))
    assert weights(cells_state.parent) == weights(tmp_path / "afresh" / CELL.key() / "checkpoint")


def test_a_cell_resumes_its_own_state_without_a_word(cells_state: Path, tmp_path: Path) -> None:
    assert "warnings" not in execute(CELL, context(tmp_path)).provenance


def test_a_cell_whose_data_or_weights_changed_meanwhile_is_refused(
    cells_state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyBackbone, "loaded_hash", "another")
    opened._features.cache_clear()
    with pytest.raises(UserError, match=r"backbone is .*another.* here and .* in the state"):
        execute(CELL, context(tmp_path))
    assert cells_state.exists()


def member(rank: int, folder: Path, rates: tuple[float, float], result: str) -> None:
    """A process of a group of two; writes what it is refused with."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / f'meet-{result}'}", rank=rank, world_size=2)
    try:
        config = dataclasses.replace(TRAIN, learning_rate=rates[rank])
        what = Setting(config=config).identity()
        try:
            resumable(folder / "state.pt", what, ProcessGroup.current())
            found = "resumed"
        except UserError as error:
            found = str(error)
        (folder / f"{result}-{rank}").write_text(found)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rates", "word"),
    [
        ((1e-3, 1e-3), "resumed"),
        ((1e-2, 1e-2), "TrainConfig.learning_rate is 0.01 here and 0.001 in the state"),
        ((1e-3, 1e-2), "TrainConfig.learning_rate is 0.01 in process 1 and 0.001 in process 0"),
    ],
)
def test_all_processes_of_a_group_are_refused_alike(rates: tuple[float, float], word: str, state: Path) -> None:
    mp.spawn(member, args=(state.parent, rates, "found"), nprocs=2)  # type: ignore[attr-defined]
    found = [(state.parent / f"found-{rank}").read_text() for rank in (0, 1)]
    assert found[0] == found[1] and word in found[0]
