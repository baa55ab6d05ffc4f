"""Tables on stdout. Nothing is truncated: a table wider than the terminal is printed row by row."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence

from mrt5cli.text import MISSING, columns, say, visible

GAP = 2
"""Spaces between columns."""


def print_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    text_columns: Collection[int] = (0,),
    only_filled: bool = False,
    above: Sequence[str] = (),
) -> None:
    """Print a table; the first column is text, the others are numbers. A header may have two lines.

    If the terminal is too narrow, each row becomes a paragraph: its first cell, then one line for each other
    cell with a value, after its header.

    Args:
        text_columns: indices of the columns to align left, as text.
        only_filled: leave out columns without values.
        above: a line to print above each row, of any width.
    """
    from rich.cells import cell_len  # rich's own tables take seconds for a thousand rows

    if only_filled:
        every = zip(headers, *rows, strict=True)
        filled = [column for column in every if not {*column[1:]} <= {"", MISSING}]
        headers, *rows = zip(*filled, strict=True)
    titles = [header.split("\n") for header in headers]
    high = max(map(len, titles))
    lines = [*zip(*([""] * (high - len(title)) + title for title in titles), strict=True)]
    cells = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*lines, *cells, strict=True)]
    total = sum(widths) + GAP * (len(widths) - 1)
    limit, indent = columns(sys.stdout), " " * GAP if above else ""
    if limit is not None and len(indent) + total > limit:
        _print_paragraphs(headers, rows)
        return
    rule = ("\N{BOX DRAWINGS LIGHT HORIZONTAL}" if _holds_rules() else "-") * (len(indent) + total)
    out = []
    for number, row in enumerate((*lines, *cells), -len(lines)):
        if number == 0:
            out.append(rule)
        if above and number >= 0:
            out.append(visible(above[number]))
        padded = []
        for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - cell_len(cell))
            padded.append(cell + space if place in text_columns else space + cell)
        out.append(indent + (" " * GAP).join(padded))
    print("\n".join(out if cells else [*out, rule]))


def _holds_rules() -> bool:
    return (sys.stdout.encoding or "ascii").lower().startswith("utf")


def _print_paragraphs(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    names = [header.replace("/\n", "/").replace("\n", " ") for header in headers]
    width = max(map(len, names[1:]), default=0)
    for number, (first, *others) in enumerate(rows):
        if first:  # an empty one continues the row above
            say(f"{chr(10) * (number > 0)}{f'{names[0]}: ' if names[0] else ''}{first}")
        for name, cell in zip(names[1:], others, strict=True):
            if cell not in ("", MISSING):
                say(f"  {name:<{width}}  {cell}" if name else f"  {cell}")
