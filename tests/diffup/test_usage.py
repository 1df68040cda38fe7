"""Usage errors of argparse's commands: one line, exit code 2, and what was probably meant."""

from __future__ import annotations

import pytest

from diffup import cli
from diffup.usage import meant, unknown_option


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("pedict x", "argument COMMAND: invalid choice: 'pedict'; did you mean predict?"),
        ("data verfy x", "argument {import,prepare,verify}: invalid choice: 'verfy'; did you mean verify?"),
        ("data verify x --rot y", "unknown option --rot; did you mean --root?"),
        ("episodes --datset birds", "unknown option --datset; did you mean --dataset?"),
        ("episodes", "the following arguments are required: --dataset, --fold, --shots; see diffup episodes --help"),
        ("protocols list more less", "unrecognized arguments: less; see diffup protocols --help"),
        ("--print-completion fish", "invalid choice: 'fish' (choose from"),
    ],
)
def test_a_usage_error_is_one_line(argv: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv.split())
    printed = capsys.readouterr()
    assert ended.value.code == 2 and printed.out == ""
    assert printed.err.startswith("error: ") and message in printed.err and printed.err.count("\n") == 1


def test_only_what_is_like_the_word_is_meant() -> None:
    assert meant("minigrid", ["quickstart", "mini_grid"]) == "; did you mean mini_grid?"
    assert meant("zzz", ["quickstart"]) == ""


def test_the_first_unknown_option_is_named() -> None:
    known = ["-o", "--out", "--support"]
    assert unknown_option(["x", "-o", "y", "--out=3", "--suport=s", "--ot"], known).startswith(
        "unknown option --suport;"
    )
    assert unknown_option(["--out", "-5,0"], known) == ""
    assert unknown_option(["--foo"], known) == "unknown option --foo"
