"""Default folders of data, results and caches, also where there is no home directory (containers)."""

from __future__ import annotations

import os
from pathlib import Path

from diffup.errors import UserError


def home() -> Path:
    """Folder of data and results: ``$DIFFUP_HOME``, else ``~/.diffup``; absolute, never the working copy.

    Raises:
        UserError: DIFFUP_HOME is not set and the user has no home directory.
    """
    return expanded(Path(os.environ.get("DIFFUP_HOME") or "~/.diffup"))


def cache() -> Path:
    """Folder of what can be made again: ``$DIFFUP_CACHE``, ``~/.cache/diffup``, or ``cache`` in `home`; absolute.

    Raises:
        UserError: neither DIFFUP_CACHE nor DIFFUP_HOME is set and the user has no home directory.
    """
    if chosen := os.environ.get("DIFFUP_CACHE"):
        return expanded(Path(chosen))
    try:
        return expanded(Path("~/.cache/diffup"))
    except UserError:
        return home() / "cache"


def expanded(path: Path) -> Path:
    """The absolute path, with ``~`` and ``~user`` replaced.

    Raises:
        UserError: ``~`` stands for a home directory that is not known.
    """
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:  # neither HOME nor an entry in the user database
        raise UserError(
            f"{path}: no home directory is known for this user; set DIFFUP_HOME to a folder that can be written to "
            "(or HOME)"
        ) from error
