"""Only a user's mistake is reported as one: everything else shows its traceback and where to report it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from diffup.errors import INSTALL, UserError, command_line, extra


def test_a_user_error_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> int:
        raise UserError("x.png: mask is missing; put it there")

    assert command_line(body) == 2
    assert capsys.readouterr().err == "error: x.png: mask is missing; put it there\n"


def test_any_other_exception_is_a_bug_with_its_traceback_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> int:
        return int((np.zeros(3) + np.zeros(4)).sum())  # numpy raises a ValueError

    assert command_line(body) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said and "broadcast" in said and "report it" in said and "error: " not in said.split("\n")[0]


def test_what_the_body_returns_is_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(lambda: 0) == 0 and command_line(lambda: 1) == 1
    assert capsys.readouterr().err == ""


def test_a_reader_that_has_had_enough_is_no_bug() -> None:
    script = (
        "import sys; from diffup.errors import command_line; sys.exit(command_line(lambda: print('x' * 9**6) or 0))"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(3) == b"xxx"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_ctrl_c_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> int:
        raise KeyboardInterrupt

    assert command_line(body) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_missing_extra_is_named() -> None:
    with (
        pytest.raises(UserError, match=r"no_such_module is not installed; run: pip install 'diffup\[clip\]'"),
        extra("clip"),
    ):
        importlib.import_module("no_such_module")


def test_what_a_clone_lacks_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def lacks(name: str) -> int:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    assert command_line(partial(lacks, "ray")) == 2
    assert capsys.readouterr().err == f"error: ray is not installed; run in your clone of DiffUp: {INSTALL}\n"
    for bug in ("ray.no_such_part", "no_such_module"):
        assert command_line(partial(lacks, bug)) == 1
        assert "Traceback" in capsys.readouterr().err
