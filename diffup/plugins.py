"""Code of the user's own by name: functions as ``"package.module:name"``, and entry points of installed packages.

Backbones are named by entry points of group ``diffup.backbones``, methods by those of ``diffup.methods``. A function is
found, and the source file that it is in hashed, without importing its module. No torch at import.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from diffup.errors import UserError

BACKBONES, METHODS = "diffup.backbones", "diffup.methods"
DIGITS = 12


@lru_cache(maxsize=8)
def entry_points(group: str) -> dict[str, str]:
    """The entry points of a group, ``"package.module:name"`` by name.

    Raises:
        UserError: two packages have one of the same name.
    """
    found: dict[str, str] = {}
    for entry in metadata.entry_points(group=group):
        if found.setdefault(entry.name, entry.value) != entry.value:
            raise UserError(
                f"two installed packages have an entry point {entry.name!r} of group {group}: {found[entry.name]} and "
                f"{entry.value}; uninstall one"
            )
    return found


def is_function(name: str) -> bool:
    """Whether a text is of the form ``"package.module:name"``."""
    module, colon, function = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), function))


def by_module(name: str) -> str:
    """A function as ``"ours:build"`` where `name` is or begins with that of its file, ``ours.py:build``, or ``ours``
    beside a file ``ours.py``; empty for any other name.
    """
    file, colon, function = name.partition(":")
    if not file.endswith(".py") and (colon or not os.path.isfile(f"{file}.py")):
        return ""
    path = Path(file.removesuffix(".py"))
    return f"{path.name if path.is_absolute() else '.'.join(path.parts)}:{function or 'function'}"


def source_file(function: str, what: str) -> Path:
    """The file of the module of a function; packages above it are imported, the module is not.

    The folder that Python was started in is looked through last, whether or not it is on Python's path.

    Args:
        function: ``"package.module:name"``.
        what: the function is called in messages.

    Raises:
        UserError: not of that form, or no such module or file.
    """
    if known := by_module(function):
        raise UserError(
            f"{what} {function!r}: write {known} (the name of the module, not of its file, and the function)"
        )
    if not is_function(function):
        raise UserError(f"{what} {function!r}: write it as 'package.module:name'")
    module = function.partition(":")[0]
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise UserError(f"{what} {function!r}: {error}; put its folder on PYTHONPATH") from error
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise UserError(f"{what} {function!r}: there is no file of a module {module!r} on Python's path")
    return Path(spec.origin)


def source_hash(function: str, what: str) -> str:
    """First 12 hex digits of the sha256 of the file of a function; see `source_file`."""
    return hashlib.sha256(source_file(function, what).read_bytes()).hexdigest()[:DIGITS]


def imported(function: str, what: str) -> Any:
    """Import a function; see `source_file`.

    Raises:
        UserError: it can't be imported, or can't be called.
    """
    source_file(function, what)
    module, _, name = function.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{what} {function!r} can't be imported: {error}") from error
    if not callable(found):
        raise UserError(f"{what} {function!r} is a {type(found).__name__}, which can't be called")
    return found
