"""Completion in bash: evaluated by a real one."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from diffup import cli


def completed(script: Path, *words: str) -> set[str]:
    """What bash offers for the last word."""
    listed = " ".join(f"'{word}'" for word in words)
    asked = f"COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}"
    code = f"source {script}; {asked}; _diffup; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return set(done.stdout.split())


def test_bash_completes_commands_and_their_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], require_program: Any
) -> None:
    require_program("bash")
    assert cli.main(["--print-completion", "bash"]) == 0
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)
    assert completed(script, "diffup", "pre") == {"predict"}
    assert set(cli.COMMANDS) <= completed(script, "diffup", "")
    assert completed(script, "diffup", "predict", "--s") == {"--support", "--scribble", "--steps", "--snap"}
    assert completed(script, "diffup", "doctor", "x.jpg", "--off") == {"--offline"}
    assert completed(script, "diffup", "predict", "x") == set(), "file names are left to the shell"


def test_zsh_gets_the_same_through_its_own_loader(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--print-completion", "bash"])
    bash = capsys.readouterr().out
    cli.main(["--print-completion", "zsh"])
    assert capsys.readouterr().out == f"autoload -Uz compinit bashcompinit && compinit && bashcompinit\n{bash}"
    with pytest.raises(SystemExit):
        cli.main(["--print-completion", "fish"])
