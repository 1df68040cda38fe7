"""What scripts of a clone import first: a module that is missing then ends them with one line and exit code 2.

``experiments/``, ``analysis/`` and ``cluster/`` are not in the wheel, and what they need is the extra ``platform``.
Nothing is imported here to find out, so a command needs no more than what it imports itself.
"""

from __future__ import annotations

import sys
from types import TracebackType

from diffup.errors import USER_ERROR, missing


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """In place of the traceback of a missing module."""
    if told := missing(error):
        print(f"error: {told}", file=sys.stderr)
        sys.exit(USER_ERROR)
    _previous(kind, error, trace)


_previous, sys.excepthook = sys.excepthook, _hook
