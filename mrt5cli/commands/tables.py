"""Tables on stdout, the same in a terminal and in a pipe: nothing is cut off to fit."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import Any

MISSING = "-"


def print_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], text_columns: Collection[int] = (0,)
) -> None:
    """Print a table; the first column is text, the others are numbers. A header may have two lines.

    Args:
        text_columns: the columns that are text, if others.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for place, header in enumerate(headers):
        justify: Any = "left" if place in text_columns else "right"
        table.add_column(Text(header), justify=justify, no_wrap=True, vertical="bottom")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(file=sys.stdout, width=10_000)
    console.width = console.measure(table).maximum
    console.print(table)


def number(value: float | None, digits: int) -> str:
    """A number for a cell, or a dash."""
    return MISSING if value is None else f"{value:.{digits}f}"


def percent(share: float | None, digits: int) -> str:
    """A share of 0 to 1 as a percentage for a cell, without the sign, or a dash."""
    return MISSING if share is None else f"{100 * share:.{digits}f}"


def duration(seconds: float | None) -> str:
    """Seconds as `245 s`, `12 min` or `3 h 05 min`, or a dash."""
    if seconds is None:
        return MISSING
    if seconds < 600:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
