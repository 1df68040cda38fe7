"""A table as HTML: sortable by value, its intervals and cells on hover, any text escaped."""

from __future__ import annotations

from html import escape
from itertools import groupby

from analysis.tables.table import Entry, Number, Table, figure, interval, spread, with_labels

SMALLEST_P = 1e-6  # that is shown: far out a tail is an estimate of its order of magnitude at best
STYLE = """
table.du { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .86rem; }
table.du caption { text-align: left; font-weight: 600; padding: .3rem 0; }
table.du th, table.du td { padding: .22rem .55rem; text-align: right; white-space: nowrap; }
table.du th.label, table.du td.label { text-align: left; }
table.du th.group { text-align: center; }
table.du thead { border-top: 2px solid currentColor; border-bottom: 1px solid currentColor; }
table.du tbody { border-bottom: 1px solid #8886; }
table.du tbody:last-of-type { border-bottom: 2px solid currentColor; }
table.du tr.published { font-style: italic; color: #666; }
table.du td.second { text-decoration: underline; }
table.du td.best { font-weight: 700; }
table.du small { color: #666; font-weight: 400; }
.du-notes { font-size: .8rem; color: #555; margin: .3rem 0 1rem; padding-left: 1.1rem; }
"""


def to_html(table: Table) -> str:
    """A ``<table class="du">`` with its notes, for any page that has `STYLE`.

    Every entry has its interval, seeds, episodes and cells in ``title``, and its value in ``data-value``; every last
    header has ``data-column`` for a script that sorts.
    """
    lines = [f'<table class="du" id="{escape(table.name)}">', f"<caption>{escape(table.caption)}</caption>"]
    lines += ["<thead>", *_headers(table), "</thead>"]
    groups = groupby(with_labels(table), key=lambda pair: (bool(pair[0].cite), pair[0].labels[0]))
    for (published, _), group in groups:
        lines.append("<tbody>")
        for row, labels in group:
            cells = [_label(label, full) for label, full in zip(labels, row.labels)]
            if row.cite:
                cells[-1] = cells[-1].replace("</td>", f" <small>[{escape(row.cite)}]</small></td>")
            cells += [_entry(entry) for entry in row.entries]
            kind = ' class="published"' if published else ""
            lines.append(f"<tr{kind}>{''.join(cells)}</tr>")
        lines.append("</tbody>")
    lines.append("</table>")
    if table.notes:
        lines += ['<ul class="du-notes">', *map(_note, table.notes), "</ul>"]
    return "\n".join(lines) + "\n"


def _headers(table: Table) -> list[str]:
    depth = len(table.columns[0].header) if table.columns else 1
    lines = []
    for level in range(depth):
        last = level == depth - 1
        names = [
            f'<th class="label" data-column="{i}">{escape(label)}</th>' if last else "<th></th>"
            for i, label in enumerate(table.labels)
        ]
        if last:
            names += [
                f'<th data-column="{i}">{escape(column.header[-1])}</th>'
                for i, column in enumerate(table.columns, start=len(table.labels))
            ]
        else:
            for header, columns in groupby(table.columns, key=lambda column: column.header[: level + 1]):
                names.append(f'<th class="group" colspan="{len(list(columns))}">{escape(header[-1])}</th>')
        lines.append(f"<tr>{''.join(names)}</tr>")
    return lines


def _note(note: str) -> str:
    """Intervals stand in brackets elsewhere; here they come on hover."""
    text = note.replace("In brackets:", "On hover:", 1) if note.startswith("In brackets:") else note
    return f"<li>{escape(text)}</li>"


def _label(label: str, full: str) -> str:
    return f'<td class="label" data-value="{escape(full)}">{escape(label)}</td>'


def _entry(entry: Entry) -> str:
    text = escape(figure(entry))
    if not isinstance(entry, Number) or entry.value != entry.value:
        return f"<td>{text}</td>"
    facts = [interval(entry) and f"95% interval {interval(entry)}", spread(entry) and f"{spread(entry)} over seeds"]
    facts += [
        "" if entry.p != entry.p else f"p = {entry.p:.2g}" if entry.p >= SMALLEST_P else f"p < {SMALLEST_P:g}",
        f"{entry.episodes} episodes" if entry.episodes else "",
    ]
    facts.append(f"cells {' '.join(entry.keys[:6])}{' …' if len(entry.keys) > 6 else ''}" if entry.keys else "")
    marks = [name for name, on in (("best", entry.best), ("second", entry.second)) if on]
    star = "*" if entry.difference and entry.excludes_zero else ""
    kind = f' class="{" ".join(marks)}"' if marks else ""
    title = escape("; ".join(fact for fact in facts if fact))
    small = f" <small>{escape(spread(entry))}</small>" if spread(entry) else ""
    return f'<td{kind} data-value="{entry.value!r}" title="{title}">{text}{star}{small}</td>'
