"""Tables on stdout: nothing is cut off to fit; one wider than the terminal is written row by row."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import Any

from mrt5cli.text import MISSING, columns, say, visible


def print_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    text_columns: Collection[int] = (0,),
    only_filled: bool = False,
) -> None:
    """Print a table; the first column is text, the others are numbers. A header may have two lines.

    Where the terminal has too few columns for it, each row becomes a paragraph: its first cell, and below
    that the others that have something in them, each behind its header.

    Args:
        text_columns: the columns that are text, if others.
        only_filled: leave out the columns that no row has a value for.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if only_filled:
        every = zip(headers, *rows, strict=True)
        filled = [column for column in every if not {*column[1:]} <= {"", MISSING}]
        headers, *rows = zip(*filled, strict=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for place, header in enumerate(headers):
        justify: Any = "left" if place in text_columns else "right"
        table.add_column(Text(header), justify=justify, no_wrap=True, vertical="bottom")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    console = Console(file=sys.stdout, width=10_000)
    console.width = console.measure(table).maximum
    limit = columns(sys.stdout)
    if limit is not None and console.width > limit:
        _print_paragraphs(headers, rows)
    else:
        console.print(table)


def _print_paragraphs(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    names = [header.replace("/\n", "/").replace("\n", " ") for header in headers]
    width = max(map(len, names[1:]), default=0)
    for number, (first, *others) in enumerate(rows):
        if first:  # else it continues the row above
            say(f"{chr(10) * (number > 0)}{f'{names[0]}: ' if names[0] else ''}{first}")
        for name, cell in zip(names[1:], others, strict=True):
            if cell not in ("", MISSING):
                say(f"  {name:<{width}}  {cell}" if name else f"  {cell}")
