"""Identity: keys are frozen, survive a round trip, and depend on nothing but identity."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffup.config import (
    FEATURE_DTYPES,
    PRECISIONS,
    SCHEDULES,
    InputConfig,
    ModelConfig,
    SampleConfig,
    TrainConfig,
)
from diffup.fields import ADDED_LATER
from diffup.grid.cell import KEY_LENGTH, AnyCell, Cell, TrainingCell, cell_from_dict, cell_to_dict

PLACE: dict[str, Any] = {"dataset": "shapes4i", "fold": 0, "backbone": "tiny_resnet", "weights": "sha256:0123456789ab"}
FROZEN: dict[str, AnyCell] = {
    "TRAIN": TrainingCell(**PLACE),
    "ONE_STEP": TrainingCell(**PLACE, variant="one_step", model=ModelConfig(one_step=True), train_seed=1),
    "MASK": Cell(**PLACE, shots=1, annotation="mask", trained_on="tiny_resnet", checkpoint="0" * 12),
    "MIX": Cell(
        **PLACE, shots=5, annotation="mask+text", checkpoint="0" * 12, input=InputConfig(companion="tiny_clip")
    ),
    "TEXT": Cell(**PLACE, shots=0, annotation="text", checkpoint="0" * 12, variant="wrong_names"),
    "PRIOR": Cell(**PLACE, shots=1, annotation="box", sample=SampleConfig(method="prior_mean"), episodes=300),
}
INTERDEPENDENT = ("checkpoint", "annotation", "shots", "episodes", "classes", "hold_out")
# A change here means that results made before are no longer found: raise CELL_VERSION and say so in the changelog.
KEYS: dict[str, str] = {
    "TRAIN": "a22287fc84bb",
    "ONE_STEP": "0b352919ab32",
    "MASK": "262c26667170",
    "MIX": "f69a059ece66",
    "TEXT": "61d843d53586",
    "PRIOR": "398ac1757220",
}

positive = st.integers(1, 4096)
inputs = st.builds(
    InputConfig,
    input_size=positive,
    feature_grid=positive,
    feature_dtype=st.sampled_from(FEATURE_DTYPES),
    prompts=st.lists(st.text(max_size=8).filter(lambda t: "{}" not in t).map(lambda t: t + "{}"), min_size=1).map(tuple)
    .filter(lambda prompts: all(prompt.count("{}") == 1 for prompt in prompts)),
    class_names=st.sampled_from(["given", "deranged"]),
    scribble_width=st.floats(1e-3, 1),
    companion=st.sampled_from(["", "tiny_clip"]),
)  # fmt: skip
models = st.builds(
    ModelConfig,
    decoder_grid=st.integers(1, 64).map(lambda n: 4 * n),
    width=positive,
    schedule=st.sampled_from(SCHEDULES),
    bit_scale=st.floats(1e-3, 10),
    one_step=st.booleans(),
    scm=st.booleans(),
    bound=st.floats(0, 9),
)
trains = st.builds(
    TrainConfig,
    steps=positive,
    learning_rate=st.floats(1e-9, 1),
    ema=st.floats(0, 1, exclude_max=True),
    precision=st.sampled_from(PRECISIONS),
    accumulate=st.integers(1, 8),
    hold_out=st.integers(0, 5),
    draws=st.integers(0, 9),
    cue_weights=st.tuples(st.floats(0.1, 9), st.floats(0, 9), st.floats(0, 9), st.floats(0, 9)),
)
words = st.text(min_size=1, max_size=20)
shared = {"dataset": words, "fold": st.integers(0, 9), "backbone": words, "weights": words, "input": inputs}
training_cells = st.builds(TrainingCell, **shared, variant=words, model=models, train=trains, train_seed=st.integers())
evaluation_cells = st.builds(
    Cell,
    **shared,
    shots=st.integers(1, 10),
    annotation=st.sampled_from(["mask", "box", "mask+text", "mask+box+scribble"]),
    checkpoint=words,
    sample=st.builds(SampleConfig, steps=st.integers(1, 8), threshold=st.floats(0.01, 0.99)),
    episode_seed=st.integers(),
    episodes=positive,
)


@pytest.mark.parametrize("name", FROZEN)
def test_keys_are_frozen(name: str) -> None:
    assert FROZEN[name].key() == KEYS[name]


@given(training_cells | evaluation_cells)
def test_round_trip_through_json_keeps_cell_and_key(cell: AnyCell) -> None:
    again = cell_from_dict(json.loads(json.dumps(cell_to_dict(cell))))
    assert again == cell
    assert again.key() == cell.key()
    assert len(cell.key()) == KEY_LENGTH
    assert int(cell.key(), 16) >= 0


@given(training_cells | evaluation_cells)
def test_key_depends_on_every_plain_field(cell: AnyCell) -> None:
    for item in dataclasses.fields(cell):
        value = getattr(cell, item.name)
        if item.name in INTERDEPENDENT or not isinstance(value, str | int):
            continue
        change: dict[str, Any] = {item.name: f"{value}x" if isinstance(value, str) else value + 1}
        changed = dataclasses.replace(cell, **change)
        assert changed.key() != cell.key(), item.name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shots": 0, "annotation": "mask"}, "0 shots go with annotation 'text'"),
        ({"shots": 1, "annotation": "text"}, "need a visual cue"),
        ({"annotation": "lasso"}, "unknown cue 'lasso'"),
        ({"annotation": "mask+mask"}, "names a cue twice"),
        ({"checkpoint": ""}, "needs the key of a training cell"),
        ({"episodes": 0}, "episodes must be 1 or more"),
        ({"fold": -1}, "fold must be 0 or more"),
        ({"classes": "base"}, "classes must be one of novel, held_out"),
        ({"classes": "held_out"}, "hold_out is the number of held-out classes"),
        ({"hold_out": 2}, "hold_out is the number of held-out classes"),
        ({"weights": ""}, r"Cell\.weights is empty"),
    ],
)
def test_impossible_cells_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(FROZEN["MASK"], **change)


def test_unknown_fields_are_refused() -> None:
    document = cell_to_dict(FROZEN["MASK"])
    with pytest.raises(ValueError, match="does not fit this version"):
        cell_from_dict({**document, "colour": "red"})
    with pytest.raises(ValueError, match="kind None"):
        cell_from_dict({name: value for name, value in document.items() if name != "kind"})


@pytest.mark.parametrize("name", FROZEN)
def test_documents_from_before_a_field_was_added_name_the_same_cell(name: str) -> None:
    def earlier(value: Any) -> Any:
        if not dataclasses.is_dataclass(value):
            return value
        items = [item for item in dataclasses.fields(value) if not item.metadata.get(ADDED_LATER)]
        return {item.name: earlier(getattr(value, item.name)) for item in items}

    document = {"kind": cell_to_dict(FROZEN[name])["kind"], **earlier(FROZEN[name])}
    assert document != cell_to_dict(FROZEN[name])
    assert cell_from_dict(json.loads(json.dumps(document))).key() == KEYS[name]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("TRAIN", {"train": TrainConfig(precision="bfloat16")}),
        ("TRAIN", {"train": TrainConfig(accumulate=2)}),
        ("TRAIN", {"train": TrainConfig(hold_out=3)}),
        ("PRIOR", {"classes": "held_out", "hold_out": 3}),
        ("PRIOR", {"sample": SampleConfig(method="prior_mean", snap=True)}),
        ("PRIOR", {"sample": SampleConfig(method="adapter", function="a:b", function_version="1")}),
    ],
)
def test_a_field_that_was_added_later_counts_where_it_is_used(name: str, change: dict[str, Any]) -> None:
    assert dataclasses.replace(FROZEN[name], **change).key() != KEYS[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "float16"}, "precision must be one of float32, bfloat16"),
        ({"accumulate": 0}, "accumulate must be positive"),
        ({"hold_out": -1}, "hold_out must be 0 or more"),
    ],
)
def test_impossible_trainings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**change)
