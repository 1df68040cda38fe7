"""Checkpoints: saved and loaded again, the model card, the hub, and folders that hold none."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError

from diffup import DiffUp, Support
from diffup.config import ModelConfig
from diffup.data.dataset import Dataset
from diffup.evaluation.encode import Encoder
from diffup.models.diffup import DiffUpNet
from tests.helpers.trained import CELL, INPUT, example, same


def test_saved_and_loaded_again_it_is_the_same(model: DiffUp, results: Path, data: Dataset, tmp_path: Path) -> None:
    model.save(tmp_path / "mine")
    original = results / CELL.key() / "checkpoint"
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / "mine" / name).read_bytes() == (original / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == sorted(
        path.name for path in original.iterdir()
    )
    query, support, mask = example(data)
    again = DiffUp.load(tmp_path / "mine")
    same(again.segment(query, [Support(support, mask)]), model.segment(query, [Support(support, mask)]))


def test_one_built_by_hand_can_be_saved_too(model: DiffUp, tmp_path: Path) -> None:
    bare = dataclasses.replace(INPUT, companion="", companion_weights="")
    made = DiffUp(Encoder(model.encoder.backbone, bare), DiffUpNet(ModelConfig(decoder_grid=16, width=16)))
    made.save(tmp_path)
    assert DiffUp.load(tmp_path).encoder.config == bare
    assert "not recorded" in (tmp_path / "README.md").read_text()


def test_the_model_card_says_what_it_is(results: Path, data: Dataset) -> None:
    text = (results / CELL.key() / "checkpoint" / "README.md").read_text()
    card: Any = ModelCard(text)
    assert card.data.license == "mit"
    assert card.data.pipeline_tag == "image-segmentation"
    assert card.data.library_name == "diffup"
    assert "few-shot-segmentation" in (card.data.tags)
    left_out = ", ".join(data.classes[c] for c in data.folds[1])
    for fact in (
        f"| backbone | tiny_resnet ({CELL.weights}) |",
        "| protocol | paired |",
        "| data set | shapes4i |",
        "| fold left out | 1 |",
        f"| classes left out | {left_out} |",
        f"| training cell | {CELL.key()} |",
        "steps = 3",
        f"torch = {torch.__version__.split('+')[0]}",
        "DiffUp.load(",
        "Text on photographs is unverified",
    ):
        assert fact in text, fact
    trained = next(line for line in text.splitlines() if line.startswith("| classes trained on"))
    assert not [name for name in left_out.split(", ") if name in trained]


def test_a_checkpoint_comes_from_the_hub(model: DiffUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model.save(tmp_path / "snapshot")
    asked: list[tuple[str, Any]] = []

    def fake(repo_id: str, *, allow_patterns: list[str], **options: Any) -> str:
        asked.append((repo_id, allow_patterns))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    assert DiffUp.load("someone/diffup-birds").encoder.backbone.name == "tiny_resnet"
    assert asked == [("someone/diffup-birds", ["config.json", "model.safetensors", "bank.safetensors", "README.md"])]


def test_offline_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"'someone/diffup-birds'.*could not be downloaded.*Offline, copy") as raised:
        DiffUp.load("someone/diffup-birds")
    assert isinstance(raised.value.__cause__, LocalEntryNotFoundError)


def test_folders_that_hold_no_checkpoint_are_named(results: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no checkpoint"):
        DiffUp.load(tmp_path)
    for name in (tmp_path / "none", "no/such/folder", "./none", "none"):
        with pytest.raises(ValueError, match="neither a folder nor a Hugging Face hub id"):
            DiffUp.load(name)
    shutil.copytree(results / CELL.key() / "checkpoint", tmp_path / "old")
    config = tmp_path / "old" / "config.json"
    document = json.loads(config.read_text())
    config.write_text(json.dumps({**document, "facts": {}}))
    with pytest.raises(ValueError, match=r"old does not say how its images are to be encoded.*'cell'"):
        DiffUp.load(tmp_path / "old")


def test_a_training_backbone_that_is_gone_leaves_a_way_out(model: DiffUp, tmp_path: Path) -> None:
    facts = json.loads(json.dumps(model.facts))
    facts["cell"] |= {"backbone": "resnet18", "weights": "sha256:000000000000"}
    DiffUp(model.encoder, model.net, facts).save(tmp_path)
    with pytest.raises(ValueError, match=r"resnet18.*backbone='resnet18' takes whatever weights.*any other backbone"):
        DiffUp.load(tmp_path)
    assert DiffUp.load(tmp_path, "tiny_regnet").encoder.backbone.name == "tiny_regnet"
    facts["cell"]["input"] |= {"companion_weights": "sha256:000000000000"}
    DiffUp(model.encoder, model.net, facts).save(tmp_path)
    with pytest.raises(ValueError, match=r"tiny_clip.*companion=''"):
        DiffUp.load(tmp_path, "tiny_regnet")
