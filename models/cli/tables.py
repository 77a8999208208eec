"""Tables in a terminal of any width: names and numbers are whole, one below the other where they do not fit beside."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = ["fitted"]

READABLE = 20
"""Columns of a terminal that a text is not to be squeezed below."""


def fitted(table: Table, console: Console) -> RenderableType:
    """The table, or if it would have to cut a word or squeeze a text, its rows stacked: a line for each cell.

    >>> table = Table("name", "what", title="Programs")
    >>> table.add_row("gmm", "Gaussian mixture")
    >>> Console(width=20).print(fitted(table, Console(width=20)))
    Programs
    <BLANKLINE>
    gmm
      what: Gaussian
        mixture
    """
    if _least_width(table, console) <= console.width:
        return table
    headings = [_plain(column.header).replace("\n", " ") for column in table.columns]
    lines: list[RenderableType] = [] if table.title is None else [_text(table.title), Text()]
    for row, cells in zip(table.rows, zip(*(column.cells for column in table.columns), strict=True), strict=True):
        name, *others = cells
        lines.append(_text(name, row.style or ""))
        for heading, cell in zip(headings[1:], others, strict=True):
            if _plain(cell):
                line = Text.assemble(f"{heading}: ", _text(cell))
                wrapped = line.wrap(console, max(1, console.width - 4), overflow="fold")
                for i, part in enumerate(wrapped):
                    part.rstrip()
                    lines.append(Text.assemble("  " if i == 0 else "    ", part))
    if table.caption is not None:
        lines += [Text(), _text(table.caption)]
    return Group(*lines)


def _least_width(table: Table, console: Console) -> int:
    """Columns below which a word would be cut, or a text stand in a narrow strip."""
    wide = console.options.update(width=10_000)
    least = table.__rich_measure__(console, wide).minimum
    for column in table.columns:
        if not column.no_wrap:
            cells = [_text(cell) for cell in (column.header, *column.cells)]
            measured = [console.measure(cell, options=wide) for cell in cells]
            unbroken = [m.maximum for m, cell in zip(measured, cells, strict=True) if len(cell.plain.split()) == 1]
            needed = max(min(max(m.maximum for m in measured), READABLE), *unbroken, 0)
            least += max(0, needed - max(m.minimum for m in measured))
    return least


def _text(cell: RenderableType, style: object = "") -> Text:
    return Text.from_markup(cell, style=style) if isinstance(cell, str) else cell  # type: ignore[arg-type, return-value]


def _plain(cell: RenderableType) -> str:
    return _text(cell).plain
