"""Whether pretrained weights that a hub names are on this machine, and whether it answers; nothing is downloaded."""

from __future__ import annotations

import os
from typing import Any

from diffup.backbones.registry import parse_backbone


def offline() -> bool:
    """Whether the Hugging Face hub must not be asked (``HF_HUB_OFFLINE``)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def unreachable(timeout: float) -> str:
    """Why the Hugging Face hub does not answer, or ``""`` where it does, if only to refuse.

    Args:
        timeout: seconds, for its answer.
    """
    import urllib.error
    import urllib.request

    from huggingface_hub import constants

    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=timeout):
            return ""
    except urllib.error.HTTPError:
        return ""
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", None) or error)


def weights_cached(name: str) -> bool | None:
    """Whether a backbone's pretrained weights are in the Hugging Face hub's cache.

    Args:
        name: timm or ``open_clip:…`` name that its library knows.

    Returns:
        None where the weights don't come from that hub, or it is not known which they are.
    """
    parsed = parse_backbone(name)
    if parsed.kind == "embedded":
        return None
    found = _of_open_clip(parsed.model, parsed.tag) if parsed.kind == "open_clip" else _of_timm(parsed.timm_name)
    if found is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    repository, revision, files = found
    paths = (try_to_load_from_cache(repository, file, revision=revision) for file in files)
    return any(isinstance(path, str) and os.path.exists(path) for path in paths)


Location = tuple[str, str | None, list[str]]  # repository, revision, and the files of which one is enough


def _of_timm(name: str) -> Location | None:
    import timm
    from timm.models import _hub

    config: Any = timm.get_pretrained_cfg(name)
    if config is None or config.file or config.state_dict or not config.hf_hub_id:
        return None
    repository, revision = _hub.hf_split(config.hf_hub_id)
    chosen = config.hf_hub_filename or _hub.HF_WEIGHTS_NAME
    return repository, revision, [chosen, *_hub._get_safe_alternatives(chosen)]


def _of_open_clip(model: str, tag: str) -> Location | None:
    import open_clip
    from open_clip import pretrained

    config = open_clip.get_pretrained_cfg(model, tag) if tag else {}
    if not config.get("hf_hub") or "file" in config:
        return None
    repository, chosen = os.path.split(config["hf_hub"])
    chosen = chosen or pretrained.HF_WEIGHTS_NAME
    return repository, None, [chosen, *pretrained._get_safe_alternatives(chosen)]
