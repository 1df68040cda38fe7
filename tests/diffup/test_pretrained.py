"""Checkpoints by name: the shipped one, saving, and publishing on the hub."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffup import DiffUp, Support
from diffup.data.dataset import Dataset
from diffup.errors import UserError
from diffup.evaluation.bank import BankImages
from diffup.models import checkpoint
from tests.helpers.trained import CELL, example, same


@pytest.fixture
def shipped(model: DiffUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose checkpoint is `model`'s."""
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path / "checkpoints")
    model.save_pretrained(tmp_path / "checkpoints" / "base")
    return tmp_path / "checkpoints" / "base"


def trained_on(folder: Path, backbone: str, weights: str) -> None:
    """Change what a checkpoint says that it was trained on."""
    document = json.loads((folder / "config.json").read_text())
    document["facts"]["cell"] |= {"backbone": backbone, "weights": weights}
    (folder / "config.json").write_text(json.dumps(document))


def test_load_and_save_are_from_pretrained_and_save_pretrained() -> None:
    assert DiffUp.load.__func__ is DiffUp.from_pretrained.__func__  # type: ignore[attr-defined]
    assert DiffUp.save is DiffUp.save_pretrained


def test_base_is_the_shipped_checkpoint_whatever_the_working_directory_holds(
    shipped: Path, model: DiffUp, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    query, support, mask = example(data)
    loaded = DiffUp.from_pretrained("base")
    same(loaded.segment(query, [Support(support, mask)]), model.segment(query, [Support(support, mask)]))
    with pytest.raises(UserError, match="base holds no checkpoint"):
        DiffUp.from_pretrained("./base")


def test_without_its_files_base_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path)
    with pytest.raises(UserError, match=r"checkpoint 'base' is not part of this installation.*hub id"):
        DiffUp.from_pretrained("base")


def test_other_weights_of_the_backbone_do_for_base_and_for_no_other_checkpoint(
    shipped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained_on(shipped, "tiny_resnet", "sha256:0123456789ab")
    with caplog.at_level(logging.INFO, logger="diffup"):
        assert DiffUp.from_pretrained("base").encoder.backbone.weights == CELL.weights
    assert "sha256:0123456789ab" in caplog.text and CELL.weights in caplog.text
    with pytest.raises(UserError, match="backbone='tiny_resnet' takes whatever weights"):
        DiffUp.from_pretrained(shipped)


def test_where_its_backbone_can_not_be_had_base_says_what_to_do(shipped: Path, tmp_path: Path) -> None:
    trained_on(shipped, "resnet50", "sha256:0123456789ab")
    for weights_dir in (None, tmp_path):
        with pytest.raises(UserError, match=r"--weights-dir.*trained on this backbone; any other backbone works too"):
            DiffUp.from_pretrained("base", weights_dir=weights_dir)
    assert DiffUp.from_pretrained("base", "tiny_regnet").encoder.backbone.name == "tiny_regnet"


def test_weights_and_banks_that_can_not_be_used_are_named(shipped: Path) -> None:
    weights, good = shipped / "model.safetensors", load_file(shipped / "model.safetensors")
    name, tensor = next(iter(good.items()))
    for bad in (torch.full_like(tensor, float("nan")), tensor.to(torch.int8)):
        save_file(good | {name: bad}, weights)
        with pytest.raises(UserError, match=f"not finite, or whole numbers, in {name}"):
            DiffUp.from_pretrained("base")
    save_file(good, weights)
    picture = BankImages.of([(np.zeros((8, 8, 3), np.uint8), None)] * 2, CELL.input.encoder)
    for count, grid in ((1, picture.objects_Nhw[:1]), (2, picture.objects_Nhw[:1]), (2, picture.objects_Nhw[:, :1])):
        broken = dataclasses.replace(picture, pictures=picture.pictures[:count], objects_Nhw=grid.contiguous())
        (shipped / "bank.safetensors").write_bytes(broken.dumped())
        with pytest.raises(UserError, match=rf"{count} pictures, with objects of shape"):
            DiffUp.from_pretrained("base")


def test_files_of_another_origin_are_not_overwritten(model: DiffUp, tmp_path: Path) -> None:
    for name in ("README.md", "config.json"):
        (tmp_path / name).write_text('{"mine": 1}')
        with pytest.raises(UserError, match=f"holds a {name} of other origin; choose another folder"):
            model.save(tmp_path)
        (tmp_path / name).unlink()
    assert not list(tmp_path.iterdir())
    model.save(tmp_path)
    model.save(tmp_path)


class Hub:
    """A hub that keeps what was uploaded to it."""

    def __init__(self, fail: Exception | None = None) -> None:
        self.fail, self.calls, self.files = fail, dict[str, Any](), dict[str, bytes]()

    def __call__(self, token: str | bool | None = None) -> Hub:
        self.calls["token"] = token
        return self

    def create_repo(self, repo_id: str, **asked: Any) -> Any:
        if self.fail:
            raise self.fail
        self.calls["created"] = {"repo_id": repo_id, **asked}
        return type("Repo", (), {"repo_id": f"me/{repo_id}" if "/" not in repo_id else repo_id})

    def upload_folder(self, *, folder_path: str, **asked: Any) -> str:
        self.calls["uploaded"] = asked
        self.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        return f"https://hub.example/{asked['repo_id']}/commit/1"


def test_a_checkpoint_is_published_as_it_is_saved(
    model: DiffUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    address = model.push_to_hub("me/birds", private=True, token="secret", branch="v2", create_pr=True)
    assert address == "https://hub.example/me/birds/commit/1"
    assert hub.calls["token"] == "secret"
    assert hub.calls["created"] == {"repo_id": "me/birds", "private": True, "exist_ok": True}
    asked = hub.calls["uploaded"]
    assert (asked["repo_id"], asked["revision"], asked["create_pr"]) == ("me/birds", "v2", True)
    assert model.save_pretrained(tmp_path / "birds") is None
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "birds").iterdir()}
    assert set(hub.files) == {"model.safetensors", "config.json", "README.md"}
    published = model.save_pretrained(tmp_path / "birds", push_to_hub=True, commit_message="First")
    assert published == "https://hub.example/me/birds/commit/1"
    assert hub.calls["created"]["repo_id"] == "birds" and hub.calls["uploaded"]["commit_message"] == "First"


@pytest.mark.parametrize("error", [OSError("no network"), huggingface_hub.errors.HFValidationError("bad name")])
def test_what_the_hub_refuses_is_told(model: DiffUp, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub(error))
    with pytest.raises(UserError, match=r"'me/birds' could not be published.*(no network|bad name).*token") as raised:
        model.push_to_hub("me/birds", token="secret")
    assert "secret" not in str(raised.value)


def test_the_hub_is_asked_for_the_revision(model: DiffUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model.save_pretrained(tmp_path)
    asked: dict[str, Any] = {}

    def download(repo_id: str, **options: Any) -> str:
        asked.update(options, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = DiffUp.from_pretrained("me/birds", revision="v2", token="secret", local_files_only=True)
    assert (asked["repo_id"], asked["revision"], asked["token"], asked["local_files_only"]) == (
        "me/birds", "v2", "secret", True,
    )  # fmt: skip
    image = np.zeros((32, 32, 3), np.uint8)
    assert loaded.segment(image, [Support(image, (0, 0, 9, 9), "box")]).mask.shape == (32, 32)
