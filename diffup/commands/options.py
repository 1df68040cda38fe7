"""Options of a command as a frozen dataclass: the types of its fields, and the parser, whose errors are one line."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from diffup.errors import USER_ERROR, UserError, replace_unprintable
from diffup.usage import unknown_option

Parsed = TypeVar("Parsed")

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
FRAME = "╭╮╰╯│─┌┐└┘ "  # what tyro draws around a message


def names(text: str) -> tuple[str, ...]:
    """``"a,b"`` as ("a", "b")."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def count(text: str) -> int:
    """A whole number of 1 or more."""
    if not re.fullmatch(r"[+-]?\d+", text, flags=re.ASCII) or int(text) < 1:
        raise UserError(f"must be 1 or more, not {text}")
    return int(text)


def folder(text: str) -> Path:
    """A folder's path."""
    if not text:
        raise UserError("is empty; give a folder")
    return Path(text)


def option(metavar: str, parse: Callable[[str], Any], *, default: bool = True) -> tuple[Any, ...]:
    """Annotations of a field's type: how its one argument is read and shown.

    Args:
        metavar: what stands for the value in ``--help``.
        parse: the value from its text; a `UserError` is a usage error.
        default: whether ``--help`` shows the default; off where the help text says what it is.
    """

    def shown(value: Any) -> list[str]:
        return [",".join(map(str, value)) if isinstance(value, tuple) else str(value)]

    spec = tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda text: parse(text[0]),
        is_instance=lambda value: True,
        str_from_instance=shown,
    )
    return spec, tyro.conf.arg(help_behavior_hint=None if default else "")


Text = Annotated[str, *option("TEXT", str, default=False)]
PathOrName = Annotated[str, *option("PATH", str)]
Name = Annotated[str, *option("NAME", str)]
NameOrNone = Annotated[str | None, *option("NAME", str, default=False)]
Names = Annotated[tuple[str, ...], *option("A,B,…", names)]
NamesOrNone = Annotated[tuple[str, ...] | None, *option("A,B,…", names, default=False)]
File = Annotated[Path | None, *option("FILE", Path, default=False)]
Folder = Annotated[Path | None, *option("DIR", folder, default=False)]
Count = Annotated[int, *option("N", count)]
CountOrAuto = Annotated[int, *option("N", count, default=False)]
CountOrNone = Annotated[int | None, *option("N", count, default=False)]


def repeatable(metavar: str) -> tuple[Any, ...]:
    """Annotations of a tuple's type: an option that may be given several times, with one argument each."""
    return tyro.conf.UseAppendAction, tyro.conf.arg(metavar=metavar, help_behavior_hint="(repeatable)")


def page(docstring: str) -> str:
    """A docstring for the terminal: without backticks, paragraphs wrapped to its width, commands as they are."""
    width = min(shutil.get_terminal_size().columns, 110)
    paragraphs = docstring.replace("`", "").strip().split("\n\n")
    wrapped = (text if text.startswith(" ") else textwrap.fill(" ".join(text.split()), width) for text in paragraphs)
    return "\n\n".join(wrapped)


def parse(kind: type[Parsed], argv: Sequence[str] | None = None, *, prog: str, description: str) -> Parsed:
    """A dataclass of options from a command line.

    Args:
        kind: the dataclass; its fields' docstrings are the help.
        argv: arguments; None: those of this process.
        prog: the command's name.
        description: a docstring, shown above the options.

    Raises:
        SystemExit: after ``--help``, and with 2 after a usage error, which is told in one line.
    """
    replace_unprintable()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & {*arguments}:
        print(page(description), end="\n\n")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=arguments, prog=prog, description="", config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as end:
        if end.code in (0, None):
            raise
        cause: BaseException | None = end
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__context__
        where = re.search(r"Error parsing (\S+):", said.getvalue())
        if "Unrecognized options" in said.getvalue() and (unknown := unknown_option(arguments, _options(kind))):
            told = unknown if unknown.endswith("?") else f"{unknown}; see {prog} --help"
        else:
            told = f"{where[1]}: {cause}" if cause and where else f"{gist(said.getvalue())}; see {prog} --help"
        print(f"error: {told}", file=sys.stderr)
        raise SystemExit(USER_ERROR) from None


def _options(kind: type[Any]) -> list[str]:
    """The options that the help of a dataclass explains, with which its lines begin: ``-o DIR, --out DIR  folder``."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"], config=(tyro.conf.FlagCreatePairsOff,))
    heads = re.findall(r"^[│ ]{0,4}(-.*?)(?:  |$)", COLOUR.sub("", said.getvalue()), flags=re.MULTILINE)
    return [option for head in heads for option in re.findall(r"--?[a-z][a-z0-9-]*", head)]


def gist(framed: str) -> str:
    """What a framed message of tyro says, in one line and without its advice."""
    lines = [line.strip(FRAME) for line in COLOUR.sub("", framed).splitlines()]
    told: list[str] = []
    for line in lines[1:]:  # the first is the frame's title
        if line.strip("-"):
            told.append(line)
        elif told:  # what follows a rule is advice
            break
    return " ".join(told).rstrip(":.") or "these arguments can't be used"
