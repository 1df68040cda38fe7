"""Options of commands: usage errors are one line on stderr and exit 2."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from diffup.commands.options import Count, NameOrNone, Names, option, parse, repeatable


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Options of a command."""

    files: tyro.conf.Positional[tuple[str, ...]] = ()
    """what is read"""
    shown: Annotated[tuple[str, ...], *repeatable("FILE")] = ()
    """what is shown"""
    steps: Count = 2
    """how many"""
    backbone: NameOrNone = None
    """its name"""
    classes: Names = ("a", "b")
    """which"""
    out: Annotated[Path, *option("DIR", Path), tyro.conf.arg(aliases=["-o"])]
    """where to"""


def parsed(*argv: str) -> Asked:
    return parse(Asked, argv, prog="diffup try", description="Try it.")


def test_options_are_read() -> None:
    assert parsed("x", "y", "--shown", "1", "-o", "out", "--shown=2", "--classes", "c, d", "--steps", "3") == Asked(
        files=("x", "y"), shown=("1", "2"), steps=3, classes=("c", "d"), out=Path("out")
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("x",), "Missing from diffup try: -o DIR, --out DIR"),
        (("x", "-o"), "Missing value for argument '-o/--out'"),
        (("x", "-o", "out", "--stpes", "3"), "unknown option --stpes; did you mean --steps?"),
        (("x", "--ot", "out"), "unknown option --ot; did you mean --out?"),
        (("x", "-o", "out", "-z"), "unknown option -z; see diffup try --help"),
        (("x", "-o", "out", "--out-of-this-world-" + "x" * 300, "1"), "unknown option --out-of-this-world-xxx"),
        (("x", "-o", "out", "--steps", "0"), "--steps: must be 1 or more, not 0"),
        (("x", "-o", "out", "--steps", "many"), "--steps: must be 1 or more, not many"),
    ],
)
def test_a_usage_error_is_one_line(argv: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(*argv)
    printed = capsys.readouterr()
    assert ended.value.code == 2 and printed.out == ""
    assert printed.err.startswith(f"error: {message}") and printed.err.count("\n") == 1


def test_help_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed("--help")
    printed = capsys.readouterr()
    assert ended.value.code == 0 and printed.err == ""
    assert "Try it." in printed.out and "--backbone NAME" in printed.out
