"""Checkpoints: a folder with the trained part's weights, its configuration and a model card."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from diffup.config import ModelConfig
from diffup.errors import UserError
from diffup.files import write_in_full
from diffup.models.card import model_card
from diffup.models.diffup import DiffUpNet

CHECKPOINT_FORMAT = 2
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def save_checkpoint(model: DiffUpNet, folder: Path, facts: dict[str, object]) -> None:
    """Write ``model.safetensors``, a model card and, last, ``config.json`` (model configuration and `facts`).

    Each file is written whole or not at all; the same model and facts give the same bytes.

    Raises:
        OSError: one can't be written.
    """
    content = save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    write_in_full(folder / WEIGHTS, content)
    document = {"format": CHECKPOINT_FORMAT, "model": dataclasses.asdict(model.config), "facts": facts}
    write_in_full(folder / "README.md", model_card(model.config, facts).encode())
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
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"checkpoint {folder} cannot be read: {error}. Train it again (--force)") from error
    return model.eval()
