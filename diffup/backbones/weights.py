"""Where a backbone's weights come from, what identifies them, and how a file of them is read safely.

The identity of weights enters a cell's key: ``"sha256:<12 hex>"`` for a file, ``"hub"`` for what timm or open_clip
download by name, ``"random:SEED"`` for none, ``"source:<12 hex>"`` for the code of a backbone of one's own. A file may
have a ``.json`` of the same stem beside it that names ``mean`` and ``std`` of the normalisation; it changes the
features, so it enters the identity too. No torch at import.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffup.backbones.embedded import weights_path
from diffup.backbones.registry import SOURCE, BackboneName, check_tag, own_identity, parse_backbone
from diffup.errors import UserError
from diffup.files import as_path

if TYPE_CHECKING:
    import torch

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
HASH_LENGTH = 12
SHOWN_KEYS = 4
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
WRAPPERS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema")
PIXELS = " (they are for images in [0, 1]: divide those for images in 0-255 by 255)"
OPENAI_NOTES = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's own state dicts, beside the weights
ADVICE = "save its state dict again with safetensors.torch.save_file(state, path) or torch.save(state, path)"


def file_stems(parsed: BackboneName) -> list[str]:
    """File names without suffix under which weights of this backbone are looked for, the most specific first."""
    if parsed.kind == "open_clip":
        return [f"{parsed.model}_{parsed.tag}", parsed.model] if parsed.tag else [parsed.model]
    return [parsed.timm_name, parsed.model] if parsed.tag else [parsed.model]


def find_weights(name: str, weights_dir: Path | None) -> Path | None:
    """The file in `weights_dir` that holds weights for backbone `name`, or None.

    Raises:
        UserError: `weights_dir` is given but is not a directory.
    """
    if weights_dir is None:
        return None
    weights_dir, stems = as_path(weights_dir, "weights_dir"), file_stems(parse_backbone(name))
    if not weights_dir.is_dir():
        raise UserError(
            f"weights directory {weights_dir} does not exist; give one that holds {stems[0]}.safetensors for backbone "
            f"{name!r}"
        )
    paths = (weights_dir / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def normalisation_beside(name: str, path: Path) -> Normalisation | None:
    """Mean and standard deviation (each RGB, for images in [0, 1]) named beside a weights file of `name`, or None.

    Embedded backbones have theirs in code; the JSON beside their weights tells how they were trained.

    Raises:
        UserError: the JSON beside the file is malformed.
    """
    if parse_backbone(name).kind == "embedded":
        return None
    # Not with_suffix(): it would take a tag after a dot for a suffix.
    sidecar = path.parent / f"{path.name.removesuffix(path.suffix)}.json"
    if not sidecar.is_file():
        return None
    try:
        document = json.loads(sidecar.read_bytes())
        mean, std = (tuple(float(value) for value in document[key]) for key in ("mean", "std"))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{sidecar}: expected {{"mean": [r, g, b], "std": [r, g, b]}} but reading it gave {error!r}; correct it'
        ) from error
    if len(mean) != 3 or len(std) != 3 or not all(0 <= value <= 1 for value in mean):
        raise UserError(f"{sidecar}: mean needs three numbers from 0 to 1 and std three; got {mean} and {std}{PIXELS}")
    if not all(0 < value <= 1 for value in std):
        raise UserError(f"{sidecar}: std needs numbers above 0, at most 1; got {std}{PIXELS}")
    return mean, std


def file_identity(path: Path, normalisation: Normalisation | None = None) -> str:
    """``"sha256:<12 hex>"`` of a weights file and, if there is one, of the normalisation named beside it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    if normalisation is not None:
        digest.update(json.dumps(normalisation).encode())
    return f"sha256:{digest.hexdigest()[:HASH_LENGTH]}"


def weights_file(name: str, weights_dir: Path | None = None) -> Path | None:
    """The local file that ``"auto"`` means: the shipped one of an embedded backbone, else one in `weights_dir`."""
    kind = parse_backbone(name).kind
    if kind == "embedded":
        return weights_path(name)
    return None if kind == "own" else find_weights(name, weights_dir)


def random_seed(weights: str) -> int:
    """Seed of a ``"random"`` or ``"random:SEED"`` identity.

    Raises:
        UserError: SEED is not a whole number ≥ 0.
    """
    seed = weights.removeprefix("random").removeprefix(":") or "0"
    if not seed.isascii() or not seed.isdigit():
        raise UserError(f"weights {weights!r}: write 'random' or 'random:SEED' with a whole number ≥ 0")
    return int(seed)


def weights_identity(name: str, *, weights_dir: Path | None = None, weights: str = "auto") -> str:
    """What a cell records as the backbone's weights.

    Args:
        name: backbone name.
        weights_dir: directory of weights files, looked into for ``"auto"``.
        weights: ``"auto"`` (a local file if there is one, else the hub), ``"hub"``, ``"random"``, ``"random:SEED"``, or
            an identity already, which is returned as it is.

    Returns:
        ``"sha256:<12 hex>"``, ``"hub"`` or ``"random:SEED"``; ``"source:<12 hex>"`` of the file of a backbone of one's
        own, whose function loads its weights itself.

    Raises:
        UserError: unknown choice, a backbone of one's own that has changed, bad directory, a shipped file that is
            missing, or a file under a name that does not say which activation it wants (`check_tag`).
    """
    if parse_backbone(name).kind == "own":
        return _own(name, weights)
    if weights == "random" or weights.startswith("random:"):
        return f"random:{random_seed(weights)}"
    if weights == "hub" and parse_backbone(name).kind == "embedded":
        raise UserError(f"backbone {name!r} is shipped with the package and has no hub weights; use weights 'auto'")
    if weights == "hub" or weights.startswith("sha256:"):
        return weights
    if weights != "auto":
        raise UserError(f"weights {weights!r}: choose 'auto', 'hub', 'random' or 'random:SEED'")
    path = weights_file(name, weights_dir)
    if path is None:
        return "hub"
    if not path.is_file():
        raise UserError(f"shipped weights {path} of backbone {name!r} are missing; install the package again")
    check_tag(name, path)
    return file_identity(path, normalisation_beside(name, path))


def _own(name: str, weights: str) -> str:
    """The identity of a backbone of one's own, which must be `weights` unless that is ``"auto"``."""
    found = own_identity(name)
    if weights.startswith(SOURCE) and weights != found:
        raise UserError(
            f"backbone {name!r} has changed: its file is {found}, but {weights} was asked for; put the old one back, "
            f"or run again, so that the results get their own key"
        )
    if weights not in ("auto", found):
        raise UserError(f"weights {weights!r}: a backbone of your own, {name!r}, loads its weights itself; use 'auto'")
    return found


def load_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict onto the CPU; no code in the file is ever run.

    ``.safetensors`` holds tensors only. Anything else goes through ``torch.load(weights_only=True)``. A state dict
    inside one of the usual wrappers (``{"state_dict": …}``) is taken out, a ``module.`` prefix of data-parallel
    training is removed, and so are the sizes that OpenAI's state dicts of CLIP have beside the weights.

    Raises:
        UserError: unreadable, truncated, not a state dict, several of them (such as weights and their moving average),
            or a pickle that wants more than tensors (refused).
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            loaded: Any = load_file(path, device="cpu")
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"weights file {path} is refused: it is not a plain file of tensors, and nothing in it was executed "
            f"({_gist(error)}). If you trust its source, {ADVICE}"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"weights file {path} can't be read ({_gist(error)}): it is truncated, damaged or of another format; "
            f"fetch it again or {ADVICE}"
        ) from error
    return _as_state_dict(loaded, path)


def _gist(error: Exception) -> str:
    """The line of a library's message that names the cause (torch puts advice around it)."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = [line for line in lines if line.startswith(("WeightsUnpickler error", "GLOBAL"))]
    return (cause or lines or [type(error).__name__])[0][:200]


def _as_state_dict(loaded: Any, path: Path) -> dict[str, torch.Tensor]:
    import torch

    while isinstance(loaded, Mapping):
        inside = [key for key in WRAPPERS if isinstance(loaded.get(key), Mapping) and loaded[key]]
        if len(inside) > 1:
            raise UserError(
                f"weights file {path} holds several state dicts ({', '.join(inside)}), which give other features; save "
                f"the one that you mean: torch.save(torch.load(path)[{inside[0]!r}], path)"
            )
        if not inside:
            break
        loaded = loaded[inside[0]]
    if not isinstance(loaded, Mapping):
        raise UserError(f"weights file {path} is not a state dict but a {type(loaded).__name__}; {ADVICE}")
    bad = [str(key) for key, value in loaded.items() if not isinstance(key, str) or not torch.is_tensor(value)]
    if bad or not loaded:
        found = f"entries that are not tensors: {_some(bad)}" if bad else "nothing in it"
        raise UserError(f"weights file {path} is not a state dict ({found}); {ADVICE}")
    prefix = "module." if all(key.startswith("module.") for key in loaded) else ""
    return {key.removeprefix(prefix): value for key, value in loaded.items() if key not in OPENAI_NOTES}


def _some(keys: Sequence[str]) -> str:
    shown = ", ".join(keys[:SHOWN_KEYS])
    return shown if len(keys) <= SHOWN_KEYS else f"{shown} and {len(keys) - SHOWN_KEYS} more"


def _body(state: Mapping[str, torch.Tensor], heads: Sequence[str]) -> dict[str, torch.Tensor]:
    """The entries that decide features: neither the classifier's, nor counts of batches, which some files lack."""
    prefixes = tuple(f"{head}." for head in heads)
    return {
        key: value
        for key, value in state.items()
        if key not in heads and not key.startswith(prefixes) and not key.endswith("num_batches_tracked")
    }


def fit_state_dict(
    model: torch.nn.Module, state: Mapping[str, torch.Tensor], source: Path, heads: Sequence[str] = ()
) -> None:
    """Copy `state` into `model`; every parameter and buffer must be there, finite and in the right shape.

    Args:
        heads: module names of the classifier, whose entries may be missing, surplus or of another number of classes:
            a frozen backbone never uses them.

    Raises:
        UserError: keys missing, unexpected or mis-shaped, numbers that are not finite, or integers (quantised weights)
            where the model has real numbers; the message names the first few.
    """
    wanted, given = _body(model.state_dict(), heads), _body(state, heads)
    missing = [key for key in wanted if key not in given]
    surplus = [key for key in given if key not in wanted]
    shapes = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    problems = {"missing": missing, "unexpected": surplus, "of another shape": shapes}
    if any(problems.values()):
        told = "; ".join(f"{what}: {_some(keys)}" for what, keys in problems.items() if keys)
        raise UserError(
            f"weights file {source} does not fit {type(model).__name__} (found {len(given)} entries, need "
            f"{len(wanted)}; {told}). Check that the file's name names the architecture it was saved from"
        )
    real = [key for key, value in wanted.items() if value.is_floating_point() and key in given]
    quantised = [f"{key} {given[key].dtype}" for key in real if not given[key].is_floating_point()]
    if quantised:
        raise UserError(f"weights file {source} is quantised ({_some(quantised)}); give the weights as real numbers")
    damaged = [key for key in real if not given[key].isfinite().all()]
    if damaged:
        raise UserError(
            f"weights file {source} is damaged: {len(damaged)} of {len(given)} entries hold numbers that are not "
            f"finite ({_some(damaged)}); fetch it again"
        )
    model.load_state_dict(given, strict=False)


def state_hash(model: torch.nn.Module, heads: Sequence[str] = ()) -> str:
    """First 12 hex digits of the sha256 over names, shapes, dtypes and bytes of all weights but the classifier's."""
    import torch

    digest = hashlib.sha256()
    for key, value in sorted(_body(model.state_dict(), heads).items()):
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:HASH_LENGTH]
