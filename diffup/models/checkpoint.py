"""Checkpoints: a folder with the trained part's weights, its configuration and a model card."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from diffup.config import InputConfig, ModelConfig
from diffup.errors import UserError
from diffup.files import as_path, write_in_full
from diffup.models.card import model_card
from diffup.models.diffup import DiffUpNet

CHECKPOINT_FORMAT = 2
WEIGHTS, CONFIG, BANK, CARD = "model.safetensors", "config.json", "bank.safetensors", "README.md"
FILES = f"{CONFIG}, {WEIGHTS}"
CELLS_FOLDER = "checkpoint"  # in a training cell's folder
BASE = "base"  # name of the checkpoint that comes with the package
SHIPPED = Path(__file__).resolve().parents[1] / "checkpoints"
SHOWN = 5  # training cells of a result store that are named
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def save_checkpoint(model: DiffUpNet, folder: Path, facts: dict[str, object], dtype: torch.dtype | None = None) -> None:
    """Write ``model.safetensors``, a model card and, last, ``config.json`` (model configuration and `facts`).

    Each file is written whole or not at all; the same model and facts give the same bytes.

    Args:
        model, facts: see above.
        folder: made where it is missing.
        dtype: that weights are rounded to, e.g. `torch.float16` for half the bytes; None: as they are. Loaded, they are
            of the model's own type again.

    Raises:
        OSError: one can't be written.
        UserError: a weight is not finite in `dtype`.
    """
    weights = {name: tensor.to(dtype or tensor.dtype).contiguous() for name, tensor in model.state_dict().items()}
    if dtype and (bad := [name for name, tensor in weights.items() if not tensor.isfinite().all()]):
        raise UserError(f"{', '.join(bad[:3])}: weights that are not finite in {dtype}; save them as they are")
    content = save(weights)
    write_in_full(folder / WEIGHTS, content)
    document = {"format": CHECKPOINT_FORMAT, "model": dataclasses.asdict(model.config), "facts": facts}
    written = f"{', '.join(sorted({str(t.dtype).removeprefix('torch.') for t in weights.values()}))}, sha256:"
    card = model_card(model.config, facts, written + hashlib.sha256(content).hexdigest())
    write_in_full(folder / CARD, card.encode())
    write_in_full(folder / CONFIG, json.dumps(document, indent=1, sort_keys=True).encode())


def load_checkpoint(folder: Path) -> DiffUpNet:
    """Read a checkpoint folder into an eval-mode model.

    Raises:
        UserError: a file is missing, damaged, or of another format.
    """
    try:
        document = json.loads((folder / CONFIG).read_text())
        if document["format"] != CHECKPOINT_FORMAT:
            raise UserError(f"format {document['format']}, this version reads {CHECKPOINT_FORMAT}")
        model = DiffUpNet(ModelConfig(**document["model"]))
        weights = load_file(folder / WEIGHTS)
        bad = [name for name, each in weights.items() if not (each.is_floating_point() and each.isfinite().all())]
        if bad:
            raise UserError(f"{WEIGHTS} holds numbers that are not finite, or whole numbers, in {', '.join(bad[:3])}")
        model.load_state_dict(weights)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"checkpoint {folder} cannot be read: {error}. Train it again (--force)") from error
    return model.to(memory_format=torch.channels_last).eval()


def trained_with(facts: Any, folder: Path) -> tuple[str, str, InputConfig]:
    """Backbone, weights identity and input configuration of the training."""
    try:
        cell = facts["cell"]
        values = {**cell["input"], "prompts": tuple(cell["input"]["prompts"])}
        return str(cell["backbone"]), str(cell["weights"]), InputConfig(**values)
    except (KeyError, TypeError, UserError) as error:
        raise UserError(
            f"checkpoint {folder} does not say how its images are to be encoded, or in the format of another "
            f"version ({error!r}); train it with this version"
        ) from error


def find_checkpoint(path_or_hub_id: str | Path, **hub: Any) -> Path:
    """The folder of a checkpoint: itself, that in a training cell's folder, the shipped one, or that of a hub id.

    Args:
        path_or_hub_id: ``"base"`` is the checkpoint that comes with the package.
        hub: further arguments of `huggingface_hub.snapshot_download`.

    Raises:
        UserError: there is none, or it can't be downloaded.
    """
    if path_or_hub_id == BASE:
        if not all((SHIPPED / BASE / name).is_file() for name in (CONFIG, WEIGHTS)):
            raise UserError(
                f"checkpoint {BASE!r} is not part of this installation ({SHIPPED / BASE} lacks {FILES}); install the "
                "package again, or give a checkpoint folder or a Hugging Face hub id (a folder of this name is ./base)"
            )
        return SHIPPED / BASE
    path = as_path(path_or_hub_id, "path_or_hub_id")
    if path.is_dir():
        for folder in (path / CELLS_FOLDER, path):
            if (folder / CONFIG).is_file():
                return folder
        trained = sorted(found.parts[-3] for found in path.glob(f"*/{CELLS_FOLDER}/{CONFIG}"))
        which = f" here, one of {', '.join(trained[:SHOWN])}" if trained else " in a result store"
        raise UserError(
            f"{path} holds no checkpoint ({FILES}): give the folder that DiffUp.save wrote, or that of a finished "
            f"training cell{which}"
        )
    if not isinstance(path_or_hub_id, str) or not HUB_ID.fullmatch(path_or_hub_id):
        raise UserError(f"{path_or_hub_id} is neither a folder nor a Hugging Face hub id of the form owner/name")
    import huggingface_hub

    try:
        found = huggingface_hub.snapshot_download(path_or_hub_id, allow_patterns=[CONFIG, WEIGHTS, BANK, CARD], **hub)
    except Exception as error:  # the hub client raises a dozen unrelated types when a download fails
        gist = (str(error).strip() or "no message").splitlines()[0]
        raise UserError(
            f"checkpoint {path_or_hub_id!r} is no folder here and could not be downloaded from the Hugging Face hub "
            f"({type(error).__name__}: {gist}). Offline, copy the checkpoint's folder ({FILES}) "
            f"to this machine and give its path"
        ) from error
    return Path(found)
