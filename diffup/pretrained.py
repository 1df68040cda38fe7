"""A checkpoint with a backbone: found, loaded, saved and published. Behind `DiffUp.from_pretrained` and its like."""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from diffup.backbones.load import Backbone, load_backbone, usable_device
from diffup.config import EncoderConfig
from diffup.errors import UserError
from diffup.evaluation.bank import BankImages
from diffup.evaluation.encode import Encoder
from diffup.files import as_path, write_in_full
from diffup.models.checkpoint import (
    BANK,
    BASE,
    CARD,
    CONFIG,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
    trained_with,
)
from diffup.models.diffup import DiffUpNet
from diffup.support import check_names

LOG = logging.getLogger(__name__)
COMMIT = "Upload a DiffUp checkpoint"


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """What `DiffUp` is made of; see its attributes."""

    encoder: Encoder
    net: DiffUpNet
    facts: Mapping[str, Any] | None
    bank: BankImages | None


def load_parts(
    path_or_hub_id: str | Path,
    backbone: str | nn.Module | None,
    weights_dir: str | Path | None,
    device: str,
    companion: str | None,
    hub: Mapping[str, Any],
) -> Parts:
    """The parts of a checkpoint; for arguments and errors see `DiffUp.from_pretrained`."""
    folder = find_checkpoint(path_or_hub_id, **hub)
    directory = None if weights_dir is None else as_path(weights_dir, "weights_dir")
    device = usable_device(device)
    check_names(backbone=backbone, companion=companion)
    net = load_checkpoint(folder)
    facts = json.loads((folder / CONFIG).read_text()).get("facts")
    trained_on, trained_weights, config = trained_with(facts, folder)
    if backbone is not None:
        visual = load_backbone(backbone, weights_dir=directory, device=device)
    else:
        visual = _of_training(trained_on, trained_weights, directory, device, shipped=path_or_hub_id == BASE)
    text_model: Backbone | None = None
    if companion or (companion is None and config.companion and not visual.has_text):
        weights = "auto" if companion else config.companion_weights
        try:
            text_model = load_backbone(companion or config.companion, weights, weights_dir=directory, device=device)
        except UserError as error:
            if companion:
                raise
            raise UserError(f"{error}. Without text cues, pass companion=''") from error
    elif companion is None and visual.has_text:
        text_model = visual
    bank = _bank_in(folder)
    if bank is None and net.config.base == "evidence":
        bank = BankImages.samples(config)
    return Parts(with_reader(visual, config, text_model, device), net, facts, bank)


def _of_training(name: str, weights: str, directory: Path | None, device: str, *, shipped: bool) -> Backbone:
    """The backbone that a checkpoint was trained on, with its weights.

    Those of the shipped checkpoint can't be downloaded; where they aren't in `directory`, other weights of the same
    architecture are taken, which the trained part reads like those of any backbone.
    """
    try:
        try:
            return load_backbone(name, weights, weights_dir=directory, device=device)
        except UserError as error:
            if not shipped:
                raise
            visual = load_backbone(name, weights_dir=directory, device=device)
            LOG.info("%s; its weights %s are used instead", error, visual.weights)
            return visual
    except UserError as error:
        whatever = "" if shipped else f"backbone={name!r} takes whatever weights of it are available, and "
        raise UserError(
            f"{error}. The checkpoint was trained on this backbone; {whatever}any other backbone works too"
        ) from error


def with_reader(visual: Backbone, config: EncoderConfig, text_model: Backbone | None, device: str) -> Encoder:
    """An encoder whose configuration names the text model beside the backbone, if there is one."""
    beside = text_model if text_model is not None and text_model is not visual else None
    config = dataclasses.replace(
        config, companion=beside.name if beside else "", companion_weights=beside.weights if beside else ""
    )
    return Encoder(visual, config, text_model, device)


def _bank_in(folder: Path) -> BankImages | None:
    """The bank in a checkpoint's folder, if there is one."""
    path = folder / BANK
    try:
        return BankImages.loaded(path.read_bytes()) if path.exists() else None
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}. Copy the checkpoint again, or remove this file") from error


def _is_ours(path: Path) -> bool:
    """Whether a model card or configuration is that of a checkpoint."""
    content = path.read_bytes()
    return b"library_name: diffup" in content if path.name == CARD else b'"format"' in content and b'"facts"' in content


def save_parts(parts: Parts, folder: str | Path) -> Path:
    """Write a checkpoint folder; see `DiffUp.save_pretrained`."""
    path = as_path(folder, "folder")
    try:
        if foreign := [name for name in (CONFIG, CARD) if (path / name).is_file() and not _is_ours(path / name)]:
            raise UserError(f"{path} holds a {' and a '.join(foreign)} of other origin; choose another folder")
        if parts.bank is None or parts.bank.packaged:
            (path / BANK).unlink(missing_ok=True)
        else:
            write_in_full(path / BANK, parts.bank.dumped())
        save_checkpoint(parts.net, path, dict(parts.facts or {}))
    except OSError as error:
        raise UserError(f"{path} can't be written ({error}); choose another folder or make room") from error
    return path


def push_parts(
    parts: Parts,
    repo_id: str,
    *,
    commit_message: str,
    private: bool | None,
    token: str | bool | None,
    branch: str | None,
    create_pr: bool | None,
) -> str:
    """Upload a checkpoint to the hub; see `DiffUp.push_to_hub`."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_parts(parts, folder)
        try:
            repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            commit = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message=commit_message,
                revision=branch,
                create_pr=create_pr,
            )
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            gist = (str(error).strip() or "no message").splitlines()[0]
            raise UserError(
                f"{repo_id!r} could not be published on the Hugging Face hub ({type(error).__name__}: {gist}). Check "
                f"the name owner/name, the network and the token (hf auth login), or save_pretrained to a folder and "
                f"upload that"
            ) from error
    return str(commit)
