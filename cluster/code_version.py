"""Which code made a result or a feature; see `diffup.code_version` for what counts as the same code."""

from __future__ import annotations

from functools import lru_cache

from diffup.code_version import code_hash, hash_of, reached

__all__ = ["code_hash", "encoding_hash", "pixels_hash"]

ENCODING_PACKAGES = ("torch", "torchvision", "timm", "open_clip_torch", "pillow")
PIXELS_PACKAGES = ("torch", "pillow")
# As far as an encoder or a data set uses them.
ENCODING_MODULES = ("backbones", "data", "evaluation.encode", "evaluation.pixels")


@lru_cache(maxsize=1)
def encoding_hash() -> str:
    """As `code_hash`, of the code and the library versions that turn an image file into features.

    Which weights were loaded is checked when shards are opened, so that those that are shipped don't enter.
    """
    return _hash(("evaluation.encode", "data.dataset"), ENCODING_PACKAGES)


@lru_cache(maxsize=1)
def pixels_hash() -> str:
    """As `encoding_hash`, of what turns an image file into a square of pixels."""
    return _hash(("evaluation.pixels", "data.dataset"), PIXELS_PACKAGES)


def _hash(modules: tuple[str, ...], packages: tuple[str, ...]) -> str:
    from diffup.models.card import versions

    files = {name: path for name, path in reached(modules).items() if name.startswith(ENCODING_MODULES)}
    return hash_of(files, extra=repr(versions(packages)))
