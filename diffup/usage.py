"""What was probably meant on a command line: near names, and argparse with usage errors of one line that name them."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Collection, Iterable
from typing import Any, NoReturn

from diffup.errors import USER_ERROR

CHOICE = re.compile(r"(.*invalid choice: '?([^']*?)'?) \(choose from (.*)\)")
OPTION = re.compile(r"--?[A-Za-z]")


def meant(word: str, known: Iterable[str], before: str = "") -> str:
    """``"; did you mean NAME?"`` of the name that is most like `word`, put behind `before`; empty where none is."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {before}{found[0]}?" if found else ""


def unknown_option(given: Iterable[str], known: Collection[str]) -> str:
    """The first option of a command line that is not `known`, and what was probably meant; empty where all are."""
    for option in (text.partition("=")[0].replace("_", "-") for text in given if OPTION.match(text)):
        if option not in known:
            names = [name.removeprefix("--") for name in known if name.startswith("--")]
            return f"unknown option {option}{meant(option.lstrip('-'), names, '--')}"
    return ""


class Parser(argparse.ArgumentParser):
    """A parser whose usage errors are one line, and name the option or command that was probably meant."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but what is left over is an error of the subcommand that it was given to."""
        self.given = sys.argv[1:] if args is None else list(args)
        found, left = super().parse_known_args(args, namespace)
        if left:
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return found, left

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and exit with 2."""
        if choice := CHOICE.fullmatch(message):
            near = meant(choice[2], re.findall(r"[\w.-]+", choice[3]))
            told = choice[1] + near if near else message
        else:
            told = unknown_option(self.given, self._option_string_actions) or message
        print(f"error: {told}" if told.endswith("?") else f"error: {told}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(USER_ERROR)
