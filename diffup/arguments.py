"""Arguments of the Python API, checked: each error names the argument and what it takes."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from pathlib import Path

from diffup.errors import UserError


def as_path(value: object, argument: str) -> Path:
    """A path that a caller gave, with ``~`` expanded.

    Raises:
        UserError: it is no path, or the home folder is unknown; the message names the argument.
    """
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{argument} must be a path, not {value!r:.60} ({type(value).__name__})")
    try:
        return Path(value).expanduser()
    except (RuntimeError, TypeError) as error:  # no such user or no home; a path of bytes
        raise UserError(f"{argument}, {value!r:.200}: {error}; write the path in full") from error


def check_list(value: object, message: str) -> None:
    """Raise a UserError that says `message` unless `value` is a list, a tuple or another sequence."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise UserError(f"{message} (got a {type(value).__name__})")


def check_names(**arguments: object) -> None:
    """Raise a UserError for an argument that is neither None nor a text."""
    for argument, name in arguments.items():
        if name is not None and not isinstance(name, str):
            raise UserError(
                f"{argument} must be a name such as 'resnet50' or 'open_clip:ViT-B-16/openai', not a "
                f"{type(name).__name__} (modules of your own can't be backbones in this version)"
            )


def whole(value: object, argument: str, least: int) -> int:
    """A whole number of at least `least`, also one of NumPy's.

    Raises:
        UserError: anything else; the message names the argument.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise UserError(f"{argument} must be a whole number, not {value!r:.60} ({type(value).__name__})") from None
    if number < least:
        raise UserError(f"{argument} must be {least} or more, not {number}")
    return number
