"""Completion of the ``diffup`` command in bash and zsh: its commands, and the options that their ``--help`` names."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Mapping, Sequence

from diffup.errors import UserError

SHELLS = ("bash", "zsh")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
SCRIPT = """\
{head}_diffup() {{
  local words
  case "${{COMP_WORDS[1]}}" in
{cases}
    *) words="" ;;
  esac
  [[ $COMP_CWORD -eq 1 ]] && words="{commands}"
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -o bashdefault -F _diffup diffup
"""
ZSH = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n"


def script(shell: str, commands: Mapping[str, Callable[[Sequence[str]], int]], others: Sequence[str] = ()) -> str:
    """The text that a shell evaluates; file names complete everywhere else.

    Args:
        shell: one of `SHELLS`.
        commands: by name; each is asked for its ``--help``.
        others: commands of which the name alone is completed.
    """
    cases = "\n".join(f'    {name}) words="{" ".join(options(command))}" ;;' for name, command in commands.items())
    listed = " ".join([*commands, *others, "--help", "--version", "--print-completion"])
    return SCRIPT.format(head=ZSH if shell == "zsh" else "", cases=cases, commands=listed)


def options(command: Callable[[Sequence[str]], int]) -> list[str]:
    """The options that a command's help names."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit, UserError):
        command(["--help"])
    return sorted(set(OPTION.findall(said.getvalue())))
