"""Weights files: found, identified, read without running anything, and refused with a message that helps."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from diffup.backbones import weights as weights_io


class Exploit:
    """Unpickling this creates the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.marker),)


def _model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_full_name_is_preferred_to_the_base_name_and_safetensors_to_pth(tmp_path: Path) -> None:
    name = "resnet50.a1_in1k"
    assert weights_io.find_weights(name, tmp_path) is None
    for file in ("resnet50.pth", "resnet50.safetensors", "resnet50.a1_in1k.pth"):
        (tmp_path / file).write_bytes(b"x")
        found = weights_io.find_weights(name, tmp_path)
        assert found is not None and found.name == file
    base = weights_io.find_weights("resnet50", tmp_path)
    assert base is not None and base.name == "resnet50.safetensors"
    assert weights_io.find_weights("resnet50.a2_in1k", tmp_path) == base
    assert weights_io.find_weights("resnet18", tmp_path) is None


def test_open_clip_files_are_named_by_model_and_tag(tmp_path: Path) -> None:
    (tmp_path / "ViT-B-16_openai.safetensors").write_bytes(b"x")
    found = weights_io.find_weights("open_clip:ViT-B-16/openai", tmp_path)
    assert found is not None and found.name == "ViT-B-16_openai.safetensors"
    assert weights_io.find_weights("open_clip:ViT-B-16/laion400m_e32", tmp_path) is None


def test_missing_weights_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere does not exist; give one that holds resnet50\.safetensors"):
        weights_io.find_weights("resnet50", tmp_path / "nowhere")


def test_identity_follows_the_file_and_its_normalisation(tmp_path: Path) -> None:
    name = "resnet50.a1_in1k"
    assert weights_io.weights_identity(name, weights_dir=tmp_path) == "hub"
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(b"one")
    # First 12 hex digits of sha256(b"one"): the same as sha256sum prints.
    assert weights_io.weights_identity(name, weights_dir=tmp_path) == "sha256:7692c3ad3540"
    sidecar = tmp_path / f"{name}.json"
    sidecar.write_text('{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}')
    half = weights_io.weights_identity(name, weights_dir=tmp_path)
    sidecar.write_text('{"std": [0.5, 0.5, 0.5], "mean": [0.5, 0.50, 0.5]}')
    assert weights_io.weights_identity(name, weights_dir=tmp_path) == half
    sidecar.write_text('{"mean": [0.4, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}')
    identities = {"sha256:7692c3ad3540", half, weights_io.weights_identity(name, weights_dir=tmp_path)}
    path.write_bytes(b"two")
    identities.add(weights_io.weights_identity(name, weights_dir=tmp_path))
    assert len(identities) == 4
    assert weights_io.weights_identity(name, weights_dir=tmp_path, weights="hub") == "hub"


def test_random_identities_name_their_seed() -> None:
    assert weights_io.weights_identity("resnet50", weights="random") == "random:0"
    assert weights_io.weights_identity("resnet50", weights="random:17") == "random:17"
    for bad in ("random:x", "random:-1", "best", ""):
        with pytest.raises(ValueError, match=r"random:SEED"):
            weights_io.weights_identity("resnet50", weights=bad)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"mean": [0.5], "std": [1, 1, 1]}', '{"mean": [0, 0, 0], "std": [1, 1, 0]}']
)
def test_malformed_normalisation_names_its_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "resnet50.safetensors").write_bytes(b"x")
    (tmp_path / "resnet50.json").write_text(text)
    with pytest.raises(ValueError, match=r"resnet50\.json"):
        weights_io.weights_identity("resnet50", weights_dir=tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["torch", "legacy", "pickle"])
def test_malicious_pickle_is_refused_and_nothing_executed(tmp_path: Path, form: str) -> None:
    marker, path = tmp_path / "executed", tmp_path / "resnet50.pth"
    document = {"conv1.weight": torch.zeros(1), "payload": Exploit(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(document))
    else:
        torch.save(document, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(ValueError, match=r"resnet50\.pth is refused.*nothing in it was executed"):
        weights_io.load_state_dict(path)
    assert not marker.exists()
    # The exploit is a real one: a reader that trusts the file runs it.
    torch.load(path, weights_only=False) if form != "pickle" else pickle.loads(path.read_bytes())
    assert marker.exists()


def test_malicious_pickle_named_safetensors_is_refused_too(tmp_path: Path) -> None:
    marker, path = tmp_path / "executed", tmp_path / "resnet50.safetensors"
    path.write_bytes(pickle.dumps(Exploit(marker)))
    with pytest.raises(ValueError, match=r"resnet50\.safetensors can't be read"):
        weights_io.load_state_dict(path)
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_truncated_file_is_refused(tmp_path: Path, suffix: str, keep: float) -> None:
    path, state = tmp_path / f"resnet50{suffix}", {"weight": torch.randn(400)}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    whole = path.read_bytes()
    assert torch.equal(weights_io.load_state_dict(path)["weight"], state["weight"])
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(ValueError, match=rf"resnet50\{suffix} (can't be read|is refused)"):
        weights_io.load_state_dict(path)


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ([torch.zeros(2)], "but a list"),
        (torch.zeros(2), "but a Tensor"),
        ({"epoch": 3, "lr": 0.1}, "not tensors: epoch, lr"),
        ({"weight": torch.zeros(2), "note": "hello"}, "not tensors: note"),
        ({}, "nothing in it"),
        ({3: torch.zeros(1)}, "not tensors: 3"),
    ],
)
def test_file_that_is_no_state_dict_is_refused(tmp_path: Path, document: object, told: str) -> None:
    path = tmp_path / "resnet50.pth"
    torch.save(document, path)
    with pytest.raises(ValueError, match=rf"resnet50\.pth is not a state dict.*{told}.*save"):
        weights_io.load_state_dict(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_archive_is_refused_with_a_message(tmp_path: Path) -> None:
    path = tmp_path / "ViT-B-16_openai.pt"
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"ViT-B-16_openai\.pt .*state dict"):
        weights_io.load_state_dict(path)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_usual_wrappers_are_taken_off(tmp_path: Path, wrap: object, prefix: str) -> None:
    state = _model().state_dict()
    path = tmp_path / "x.pth"
    torch.save(wrap({f"{prefix}{key}": value for key, value in state.items()}), path)  # type: ignore[operator]
    loaded = weights_io.load_state_dict(path)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_state_dict_that_does_not_fit_names_the_keys(tmp_path: Path) -> None:
    model, path = _model(), tmp_path / "resnet50.pth"
    before = weights_io.state_hash(model)
    state = dict(_model().state_dict())
    del state["1.bias"]
    state["0.weight"] = torch.zeros(5, 3)
    state |= {f"extra.{i}": torch.zeros(1) for i in range(9)}
    with pytest.raises(ValueError, match=r"resnet50\.pth does not fit") as caught:
        weights_io.fit_state_dict(model, state, path)
    message = str(caught.value)
    assert "missing: 1.bias" in message
    assert "0.weight (5, 3) instead of (4, 3)" in message
    assert "extra.3 and 5 more" in message and "extra.4" not in message
    assert weights_io.state_hash(model) == before, "a refused file must leave the model as it was"


def test_classifier_may_be_missing_surplus_or_of_another_size(tmp_path: Path) -> None:
    body, path = {"0.weight": torch.ones(4, 3), "0.bias": torch.ones(4)}, tmp_path / "x.pth"
    for head in ({}, {"1.weight": torch.ones(9, 4)}, {"1.weight": torch.ones(7, 7), "1.bias": torch.ones(7)}):
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        weights_io.fit_state_dict(model, body | head, path, heads=("1",))
        assert torch.equal(model.state_dict()["0.weight"], torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"unexpected: 1x\.weight"):
        weights_io.fit_state_dict(model, body | {"1x.weight": torch.ones(1)}, path, heads=("1",))


def test_batch_counters_are_no_weights(tmp_path: Path) -> None:
    state = {key: value for key, value in _model().state_dict().items() if not key.endswith("num_batches_tracked")}
    model = _model()
    weights_io.fit_state_dict(model, state, tmp_path / "x.pth")
    assert torch.equal(model.state_dict()["0.weight"], state["0.weight"])


def test_state_hash_sees_every_weight_but_the_classifier() -> None:
    torch.manual_seed(0)
    model = _model()
    hashes = {weights_io.state_hash(model)}
    for key, value in model.state_dict().items():  # these share memory with the model
        if not key.endswith("num_batches_tracked"):
            value.view(-1)[-1] += 1
            hashes.add(weights_io.state_hash(model))
    assert len(hashes) == 7
    headless = weights_io.state_hash(model, heads=("0",))
    model.state_dict()["0.weight"][0, 0] += 1
    assert weights_io.state_hash(model, heads=("0",)) == headless
    assert all(len(digest) == weights_io.HASH_LENGTH for digest in hashes)
    assert weights_io.state_hash(model.to(torch.bfloat16)) not in hashes
