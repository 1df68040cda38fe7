"""A table as LaTeX: booktabs and graphicx, any text escaped, so that it compiles whatever the names hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from analysis.tables.table import Column, Labelled, Number, Row, Table, figure, interval, spread, with_labels

PAGE_LINES = 32  # rows that fit a landscape page
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "–": "--", "—": "---", "−": "$-$", "±": r"$\pm$", "×": r"$\times$",
    "†": r"$\dagger$", "‡": r"$\ddagger$", "√": r"$\surd$",
    "Δ": r"$\Delta$", "≥": r"$\geq$", "≤": r"$\leq$", "→": r"$\to$", "←": r"$\leftarrow$", "·": r"$\cdot$",
    "…": r"\dots{}", "½": r"$\frac12$", "’": "'", "\u202f": r"\,", "\u00a0": "~", "\n": " ",
}  # fmt: skip


def escape_latex(text: str) -> str:
    """Plain text as LaTeX; letters that its default fonts lack become question marks."""
    known = {c for c in map(chr, [*range(0x20, 0x7F), *range(0xC0, 0x100)]) if c not in "ÐÞðþ÷"}
    return "".join(LATEX.get(c, c if c in known else "?") for c in text)


def to_latex(table: Table) -> str:
    """``table`` environments for booktabs and graphicx, narrowed to the line if wider, and continued if too long."""
    lines_a_row = 2 if table.stacked else 1
    groups = [list(group) for _, group in groupby(with_labels(table), key=lambda pair: pair[0].labels[0])]
    pages: list[list[list[Labelled]]] = [[]]
    for group in groups:
        if pages[-1] and (sum(map(len, pages[-1])) + len(group)) * lines_a_row > PAGE_LINES:
            pages.append([])
        pages[-1].append(group)
    return "".join(_latex_page(table, groups, number) for number, groups in enumerate(pages))


def _latex_page(table: Table, groups: Sequence[list[Labelled]], number: int) -> str:
    left, depth = len(table.labels), len(table.columns[0].header) if table.columns else 1
    body = [r"\toprule"]
    for level in range(depth):
        last = level == depth - 1
        names = [escape_latex(label) if last else "" for label in table.labels]
        body += _latex_header(table, level, names, last)
    grouped = any(len(group) > 1 for group in groups)
    cited = False
    for place, group in enumerate(groups):
        begins = bool(group[0][0].cite) and not cited
        cited = cited or begins
        body += [r"\midrule"] if place == 0 or begins else [r"\addlinespace[4pt]"] if grouped else []
        for row, labels in group:
            body += _latex_row(row, labels, table.stacked)
    body.append(r"\bottomrule")
    notes = [rf"\par\smallskip\parbox{{\linewidth}}{{\footnotesize {' '.join(map(escape_latex, table.notes))}}}"]
    caption = [rf"\caption{{{escape_latex(table.caption)}}}\vspace{{3pt}}", rf"\label{{tab:{table.name}}}"]
    if number:
        caption = [r"\addtocounter{table}{-1}\caption{(continued)}\vspace{3pt}"]
    lines = [
        r"\begin{table}[htbp]",
        r"\centering",
        *caption,
        r"\small\setlength{\tabcolsep}{4pt}%",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{'l' * left}{'c' * len(table.columns)}}}",
        *body,
        r"\end{tabular}}",
        *(notes if table.notes and number == 0 else []),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_header(table: Table, level: int, names: list[str], last: bool) -> list[str]:
    cells, rules, at = list(names), [], len(names) + 1
    key: Callable[[Column], tuple[str, ...]] = lambda column: column.header[: level + 1]  # noqa: E731
    for header, group in groupby(table.columns, key=key):
        text, width = escape_latex(header[-1]), len(list(group))
        cells += [text] * width if last else [rf"\multicolumn{{{width}}}{{c}}{{{text}}}"]
        if not last and text:
            rules.append(rf"\cmidrule(lr){{{at}-{at + width - 1}}}")
        at += width
    return [" & ".join(cells) + r" \\", *([" ".join(rules)] if rules else [])]


def _latex_row(row: Row, labels: tuple[str, ...], stacked: bool) -> list[str]:
    figures, intervals = [], []
    for entry in row.entries:
        text = escape_latex(figure(entry))
        span = rf"{{\scriptsize {escape_latex(interval(entry))}}}" if interval(entry) else ""
        if isinstance(entry, Number):
            text = rf"\textbf{{{text}}}" if entry.best else rf"\underline{{{text}}}" if entry.second else text
            text += rf"{{\scriptsize\,{escape_latex(spread(entry))}}}" if spread(entry) else ""
            if entry.difference and entry.excludes_zero:
                text += r"\rlap{$^{*}$}" if stacked else "$^{*}$"
            text += rf"\ {span}" if span and not stacked else ""
        figures.append(text)
        intervals.append(span)
    names = [escape_latex(label) for label in labels]
    if row.cite:
        names[-1] += rf"~\cite{{{row.cite}}}"
        names[-1], figures = rf"\textit{{{names[-1]}}}", [rf"\textit{{{text}}}" for text in figures]
    if names[0].startswith(("[", "*")):  # which the row before would take for an argument of its line break
        names[0] = "{}" + names[0]
    lines = [" & ".join([*names, *figures]) + r" \\"]
    if stacked and any(intervals):
        lines.append(" & ".join([*("" for _ in labels), *intervals]) + r" \\")
    return lines
