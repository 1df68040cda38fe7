r"""Every figure of every table as a LaTeX command: ``\duMainTinyResnetDiffUpOneShotMean`` in ``numbers.tex``.

A text that quotes figures by these commands follows the results: a figure that is no longer there does not compile.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from analysis.tables.latex import escape_latex
from analysis.tables.select import names_of
from analysis.tables.table import Number, Table, figure, interval

PREFIX, INTERVAL = "du", "CI"
HASHED = 6  # letters
DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
SIGNS = {"−": "Minus", "Δ": "Delta", "+": "Plus", "½": "Half", "√": "Root", "±": "PlusMinus"}
HEAD = r"""% Every figure of every table, and with CI its 95% interval. In your preamble: \input{numbers}
% What a figure is, and which cells and episodes it comes from: numbers.csv.
"""


def command_name(*parts: str) -> str:
    r"""A LaTeX command of letters alone, e.g. ``duMainResnetFiveZeroPriorMeanOneShotMean``."""
    text = " ".join(parts)
    for sign, word in SIGNS.items():
        text = text.replace(sign, f" {word} ")
    text = re.sub(r"\d", lambda found: f" {DIGITS[int(found[0])]} ", text)
    words = re.findall(r"[A-Za-z]+", text)
    return PREFIX + "".join(word[0].upper() + word[1:] for word in words)


def macros(tables: Sequence[Table]) -> str:
    """``numbers.tex``: two commands for each figure that has an interval, one for others.

    Where places have one name (``my net`` and ``my_net``), letters of its own hash follow for each of them: what a
    command means never depends on what else is there, and a text that quotes the shared name does not compile.
    """
    lines, found, taken = [HEAD], list(_figures(tables)), set[str]()
    shared = Counter(command_name(*place) for place in {place for place, _ in found})
    for place, entry in found:
        name = command_name(*place)
        if shared[name] > 1 or shared[name.removesuffix(INTERVAL)] > (not name.endswith(INTERVAL)):
            digest = hashlib.sha256("\n".join(place).encode()).hexdigest()[:HASHED]
            name += "X" + "".join(chr(ord("a") + int(digit, 16)) for digit in digest)
        while name in taken:  # rows of the same labels
            name += "X"
        taken |= {name, name + INTERVAL}
        what = re.sub(r"[^\x20-\x7e]|[%\n]", "?", " / ".join(place))
        lines.append(rf"\newcommand{{\{name}}}{{{escape_latex(figure(entry))}}} % {what}" + "\n")
        if interval(entry):
            lines.append(rf"\newcommand{{\{name}{INTERVAL}}}{{{escape_latex(interval(entry))}}}" + "\n")
    return "".join(lines)


def _figures(tables: Sequence[Table]) -> Iterator[tuple[tuple[str, ...], Number]]:
    """Figures with their places: table, labels of the row, column."""
    for table in tables:
        for row in table.rows:
            for column, entry in zip(table.columns, row.entries):
                if isinstance(entry, Number) and entry.value == entry.value:
                    yield (table.name, *row.labels, names_of(column)[0]), entry
