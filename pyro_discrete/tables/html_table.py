"""A table as HTML, for a notebook: every word that it is given is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["html_table"]

CELL = "text-align: left; vertical-align: top; white-space: pre-line; padding: 0.15em 0.7em"


def html_table(
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str = "",
    notes: Iterable[str] = (),
    colours: Sequence[str] = (),
    bold: Sequence[bool] = (),
) -> str:
    """What `_repr_html_` of a table returns: a title above, a line for each of `notes` below.

    - `colours`: of each row's first cell, as a mark at its left; CSS colours of our own. `bold`: which rows stand out.

    >>> html_table(["site"], [["<z>"]]).count("&lt;z&gt;")
    1
    """
    marks = [f"; border-left: 0.6em solid {colour}" for colour in colours]
    lines = [f"<strong>{escape(title)}</strong>"] if title else []
    lines += ["<table>", "<thead><tr>" + "".join(_cell("th", name) for name in header) + "</tr></thead>", "<tbody>"]
    for number, row in enumerate(rows):
        first = marks[number] if number < len(marks) else ""
        weight = "; font-weight: bold" if number < len(bold) and bold[number] else ""
        cells = [_cell("td", value, weight + first * (place == 0)) for place, value in enumerate(row)]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    lines += ["</tbody>", "</table>"]
    lines += [f'<div style="max-width: 60em">{escape(note)}</div>' for note in notes]
    return "\n".join(["<div>", *lines, "</div>"])


def _cell(kind: str, value: object, style: str = "") -> str:
    return f'<{kind} style="{CELL}{style}">{escape(str(value))}</{kind}>'
