"""The errors of DiffUp: `UserError` for what the user can correct; every other exception is a bug.

A command line prints a `UserError` as one ``error: …`` and exits with 2. Any other exception shows its traceback, says
where to report it, and exits with 1 (`command_line`).
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

USER_ERROR, BUG = 2, 1
INTERRUPTED, PIPE_CLOSED = 130, 141  # as shells say of SIGINT and SIGPIPE
REPORT = (
    "This is a bug in DiffUp or in code that it was given, not a mistake in your input. Please report it with the "
    "traceback above (CONTRIBUTING.md, 'Report a bug')"
)

INSTALL = "pip install -c constraints.txt -e '.[clip,demo,platform]'"
# Packages of a clone that are not in the wheel, and those of the extra `platform`.
IN_A_CLONE = frozenset(
    {"analysis", "cluster", "experiments", "fsspec", "matplotlib", "mlflow", "pandas", "ray", "threadpoolctl"}
)


class UserError(ValueError):
    """Input that can't be used as it is: the message says what is wrong, where, and what to do next.

    A `ValueError`, so that callers of the Python API can catch it as one.
    """


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around an import of an optional dependency: where it is missing, name the extra that installs it.

    Raises:
        UserError: the module is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; run: pip install 'diffup[{name}]'") from error


def missing(error: BaseException) -> str:
    """What to install after the failed import of a part of a clone; empty for any other exception."""
    if isinstance(error, ModuleNotFoundError) and error.name in IN_A_CLONE:
        return f"{error.name} is not installed; run in your clone of DiffUp: {INSTALL}"
    return ""


def replace_unprintable() -> None:
    """Have stdout and stderr print ``?`` for a character that their encoding lacks, in place of an exception."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


def command_line(main: Callable[[], int]) -> int:
    """Run the body of a command and turn its exceptions into messages and an exit code.

    Args:
        main: does the work and returns the exit code.

    Returns:
        What `main` returns; 2 after a `UserError`, or without what a clone needs; 130 after Ctrl-C; 141 if the reader
        of the output has had enough (``diffup … | head``); 1 after any other exception.
    """
    replace_unprintable()
    try:
        code = main()
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # what is left must not fail once more when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception as error:
        if told := missing(error):
            print(f"error: {told}", file=sys.stderr)
            return USER_ERROR
        traceback.print_exc()
        print(REPORT, file=sys.stderr)
        return BUG
