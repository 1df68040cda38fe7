"""Fields of configurations: those that a key leaves out while they have their default, and checks of values."""

from __future__ import annotations

from dataclasses import Field, field
from typing import Any, TypeVar

from diffup.errors import UserError

T = TypeVar("T")
ADDED_LATER = "added later"


def added_later(default: T) -> T:
    """A field that version 1 of the identity did not have: while it has its default it is no part of a key.

    The default must mean what was done before the field existed, so that earlier results stay valid.
    """
    return field(default=default, metadata={ADDED_LATER: True})


def in_key(item: Field[Any], value: object) -> bool:
    """Whether a dataclass field with this value is part of a key (see `added_later`)."""
    return not (item.metadata.get(ADDED_LATER) and value == item.default)


def positive(owner: object, *names: str) -> None:
    """Raise UserError unless these attributes of a configuration are above 0."""
    for name in names:
        if not getattr(owner, name) > 0:
            raise UserError(f"{type(owner).__name__}.{name} must be positive, not {getattr(owner, name)!r}")


def one_of(owner: object, name: str, allowed: tuple[str, ...]) -> None:
    """Raise UserError unless this attribute of a configuration is one of the allowed values."""
    if getattr(owner, name) not in allowed:
        raise UserError(
            f"{type(owner).__name__}.{name} must be one of {', '.join(allowed)}; not {getattr(owner, name)!r}"
        )
