"""Which code made a result: hashes of the method's source files."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

ENCODING_PACKAGES = ("torch", "torchvision", "timm", "open_clip_torch", "pillow")


@lru_cache(maxsize=1)
def code_hash() -> str:
    """First 12 hex digits of the sha256 over the method's source files (``diffup/**/*.py``): names and contents."""
    return _source_hash("**/*.py")


@lru_cache(maxsize=1)
def encoding_hash() -> str:
    """The same over the source files and library versions that turn an image into features."""
    from diffup.card import versions

    return _source_hash("encode.py", "backbones/*.py", "data/records.py", extra=repr(versions(ENCODING_PACKAGES)))


def _source_hash(*patterns: str, extra: str = "") -> str:
    import diffup

    root = Path(next(iter(diffup.__path__)))
    digest = hashlib.sha256(extra.encode())
    for path in sorted({path for pattern in patterns for path in root.glob(pattern)}):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]
