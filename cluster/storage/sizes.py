"""Numbers of bytes, as people write them."""

from __future__ import annotations

import re

from diffup.errors import UserError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_size(text: str) -> int:
    """``"50GB"`` as a number of bytes (K, M, G, T are powers of 1000).

    Raises:
        UserError: it is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UserError(f"{text!r} is no size; write 500MB, 50GB or 2TB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def format_size(count: float) -> str:
    """``2.9 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit in ("B", "kB") else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
