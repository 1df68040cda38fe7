"""A table as LaTeX: booktabs and graphicx, any text escaped, so that it compiles whatever the names hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from analysis.tables.table import MISSING, Column, Entry, Labelled, Number, Table, figure, interval, spread, with_labels

PAGE_LINES = 48  # rows that fit a page in portrait, with the notes
PAGE, COLUMN = 484.0, 237.0  # points: widths of a page of A4 with margins of 2 cm, and of one of its two columns
LETTER, SMALL_LETTER, GAP = 4.5, 3.2, 8.0  # points: about a letter in \small and \scriptsize; between two columns
STEP = 8.0  # points
LABEL = 44  # letters of a row's label on one line; longer ones are wrapped
NARROWED = 1.1  # times the line: tables that are so wide are narrowed, wider ones are split
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "–": "--", "—": "---", "−": "$-$", "±": r"$\pm$", "×": r"$\times$",
    "†": r"$\dagger$", "‡": r"$\ddagger$", "√": r"$\surd$",
    "Δ": r"$\Delta$", "≥": r"$\geq$", "≤": r"$\leq$", "→": r"$\to$", "←": r"$\leftarrow$", "·": r"$\cdot$",
    "…": r"\dots{}", "½": r"$\frac12$", "’": "'", "\u202f": r"\,", "\u00a0": "~", "\n": " ",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How tables are set.

    Attributes:
        intervals: show them.
        two_column: for a document in two columns: tables that fit one are ``table``, wider ones ``table*``.
    """

    intervals: bool = True
    two_column: bool = False


def escape_latex(text: str) -> str:
    """Plain text as LaTeX; letters that its default fonts lack become question marks."""
    known = {c for c in map(chr, [*range(0x20, 0x7F), *range(0xC0, 0x100)]) if c not in "ÐÞðþ÷"}
    return "".join(LATEX.get(c, c if c in known else "?") for c in text)


def to_latex(table: Table, layout: Layout = Layout()) -> str:
    """``table`` environments for booktabs and graphicx: continued if the table is too long or too wide for a page.

    A table that is too wide gets its intervals below the figures; if it still is, it is split at its columns, each part
    with the labels of the rows. What is at most a tenth too wide is narrowed to the line.
    """
    if _total(table, layout) > PAGE * NARROWED:
        table = replace(table, stacked=True)
    stacked = table.stacked and layout.intervals
    groups = [list(group) for _, group in groupby(with_labels(table), key=lambda pair: pair[0].labels[0])]
    pages: list[list[list[Labelled]]] = [[]]
    for group in groups:
        if pages[-1] and (sum(map(len, pages[-1])) + len(group)) * (2 if stacked else 1) > PAGE_LINES:
            pages.append([])
        pages[-1].append(group)
    parts = _parts(table, layout)
    made = [(told, part) for page in pages for part in parts if (told := _told(page, part, part != parts[0]))]
    return "".join(_latex_page(table, page, part, number, layout) for number, (page, part) in enumerate(made))


def _told(page: list[list[Labelled]], part: Sequence[int], continued: bool) -> list[list[Labelled]]:
    """The groups of rows of a page; where other columns are continued, those of which these say anything."""

    def says(group: list[Labelled]) -> bool:
        return any(figure(row.entries[place]) != MISSING for row, _ in group for place in part)

    return [group for group in page if not continued or says(group)]


def _parts(table: Table, layout: Layout) -> list[list[int]]:
    """Places of the columns of each part: as few parts as fit, of about the same width."""
    limit = PAGE * NARROWED
    parts = _fitted(table, layout, limit)
    most = len(table.columns)  # parts of one column each, whatever the limit
    while 1 < len(parts) < most and len(narrower := _fitted(table, layout, limit := limit - STEP)) == len(parts):
        parts = narrower
    return parts


def _fitted(table: Table, layout: Layout, limit: float) -> list[list[int]]:
    """Parts of at most this width: what shares a header stays together where it fits."""
    left = _left(table)
    widths = [_width(table, place, layout) for place in range(len(table.columns))]
    if not widths:
        return [[]]
    heads = [column.header[0] for column in table.columns]
    blocks = [[place for place, _ in block] for _, block in groupby(enumerate(heads), key=lambda pair: pair[1])]
    parts: list[list[int]] = [[]]
    for block in blocks:
        whole = left + sum(widths[place] for place in block) <= limit
        for piece in [block] if whole else [[place] for place in block]:
            if parts[-1] and left + sum(widths[place] for place in [*parts[-1], *piece]) > limit:
                parts.append([])
            parts[-1] += piece
    return parts


def _left(table: Table) -> float:
    """About how wide the labels are, in points."""
    return sum(min(letters, LABEL) * LETTER + GAP for letters in _lengths(table))


def _lengths(table: Table) -> list[int]:
    """Letters of the longest label of each column of labels."""
    return [max(map(len, names)) for names in zip(table.labels, *(row.labels for row in table.rows))]


def _total(table: Table, layout: Layout) -> float:
    return _left(table) + sum(_width(table, place, layout) for place in range(len(table.columns)))


def _width(table: Table, place: int, layout: Layout) -> float:
    """About how wide a column is, in points."""
    heads = table.columns[place].header
    widths = [len(heads[-1]) * LETTER]
    for row in table.rows:
        entry = row.entries[place]
        span = len(interval(entry)) * SMALL_LETTER if layout.intervals else 0.0
        own = len(figure(entry)) * LETTER
        if isinstance(entry, Number):
            own += len(spread(entry)) * SMALL_LETTER
            own += LETTER if entry.difference and not table.stacked else 0.0
        widths.append(max(own, span) if table.stacked else own + span + (LETTER if span else 0.0))
    return max(widths) + GAP


def _latex_page(
    table: Table, groups: Sequence[list[Labelled]], part: Sequence[int], number: int, layout: Layout
) -> str:
    columns = [table.columns[place] for place in part]
    wrapped, depth = [letters > LABEL for letters in _lengths(table)], len(columns[0].header) if columns else 1
    left = "".join(f"p{{{LABEL * LETTER:.0f}pt}}" if wrap else "l" for wrap in wrapped)
    body = [r"\toprule"]
    for level in range(depth):
        last = level == depth - 1
        names = [escape_latex(label) if last else "" for label in table.labels]
        body += _latex_header(columns, level, names, last)
    grouped = any(len(group) > 1 for group in groups)
    cited = False
    for place, group in enumerate(groups):
        begins = bool(group[0][0].cite) and not cited
        cited = cited or begins
        body += [r"\midrule"] if place == 0 or begins else [r"\addlinespace[4pt]"] if grouped else []
        for row, labels in group:
            entries = [row.entries[at] for at in part]
            body += _latex_row(entries, labels, row.cite, layout.intervals, table.stacked, wrapped)
    body.append(r"\bottomrule")
    notes = [
        rf"\par\smallskip\parbox{{\linewidth}}{{\footnotesize {' '.join(map(escape_latex, _notes(table, layout)))}}}"
    ]
    caption = [rf"\caption{{{escape_latex(table.caption)}}}\vspace{{3pt}}", rf"\label{{tab:{table.name}}}"]
    if number:
        caption = [r"\addtocounter{table}{-1}\caption{(continued)}\vspace{3pt}"]
    wide = layout.two_column and _total(table, layout) > COLUMN * NARROWED
    name = "table*" if wide else "table"
    lines = [
        rf"\begin{{{name}}}[htbp]",
        r"\centering",
        *caption,
        r"\small\setlength{\tabcolsep}{4pt}%",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{left}{'c' * len(columns)}}}",
        *body,
        r"\end{tabular}}",
        *(notes if table.notes and number == 0 else []),
        rf"\end{{{name}}}",
    ]
    return "\n".join(lines) + "\n"


def _notes(table: Table, layout: Layout) -> list[str]:
    """The notes, but how to read intervals where there are none."""
    return [note for note in table.notes if layout.intervals or not note.startswith("In brackets:")]


def _latex_header(columns: Sequence[Column], level: int, names: list[str], last: bool) -> list[str]:
    cells, rules, at = list(names), [], len(names) + 1
    key: Callable[[Column], tuple[str, ...]] = lambda column: column.header[: level + 1]  # noqa: E731
    for header, group in groupby(columns, key=key):
        text, width = escape_latex(header[-1]), len(list(group))
        cells += [text] * width if last else [rf"\multicolumn{{{width}}}{{c}}{{{text}}}"]
        if not last and text:
            rules.append(rf"\cmidrule(lr){{{at}-{at + width - 1}}}")
        at += width
    return [" & ".join(cells) + r" \\", *([" ".join(rules)] if rules else [])]


def _latex_row(
    entries: Sequence[Entry], labels: tuple[str, ...], cite: str, shown: bool, stacked: bool, wrapped: Sequence[bool]
) -> list[str]:
    figures, intervals = [], []
    for entry in entries:
        text = escape_latex(figure(entry))
        span = rf"{{\scriptsize {escape_latex(interval(entry))}}}" if interval(entry) and shown else ""
        if isinstance(entry, Number):
            text = rf"\textbf{{{text}}}" if entry.best else rf"\underline{{{text}}}" if entry.second else text
            text += rf"{{\scriptsize\,{escape_latex(spread(entry))}}}" if spread(entry) else ""
            if entry.difference and entry.excludes_zero:
                text += r"\rlap{$^{*}$}" if stacked else "$^{*}$"
            text += rf"\ {span}" if span and not stacked else ""
        figures.append(text)
        intervals.append(span)
    names = [escape_latex(label) for label in labels]
    if cite:
        names[-1] += rf"~\cite{{{cite}}}"
        names[-1], figures = rf"\textit{{{names[-1]}}}", [rf"\textit{{{text}}}" for text in figures]
    if names[0].startswith(("[", "*")):  # which the row before would take for an argument of its line break
        names[0] = "{}" + names[0]
    names = [rf"\raggedright {name}" if wrap and name else name for name, wrap in zip(names, wrapped)]
    lines = [" & ".join([*names, *figures]) + r" \\"]
    if stacked and any(intervals):
        lines.append(" & ".join([*("" for _ in labels), *intervals]) + r" \\")
    return lines
