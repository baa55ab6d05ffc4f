"""How `mrt5 runs` prints lists, tables and curves of runs, and saves them as pages and pictures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mrt5cli.commands.tables import GAP, print_table
from mrt5cli.text import MISSING, byte_size, columns, number, say, say_on_stderr, visible

if TYPE_CHECKING:
    from mrt5cli.runs.curves import Panel
    from mrt5cli.runs.describing import Words
    from mrt5cli.runs.found import Entry

LEAST_COLUMNS = 5
"""Columns of a list, up to the deletion rate; if fewer fit next to the names, each name gets its own line."""


def print_list(runs: Sequence[Entry]) -> None:
    """Print one line per run, with as many columns as fit, the most important first."""
    from mrt5cli.runs import describing

    cells: list[tuple[str, list[str]]] = [
        ("run", [visible(run.name, lines=False) for run in runs]),
        ("state", [run.state for run in runs]),
        ("step", [f"{run.step}/{run.steps}" if run.steps else str(run.step) for run in runs]),
        ("cross-\nentropy", [number(run.logged.get("cross_entropy"), 4) for run in runs]),
        ("deleted/\ntarget %", [describing.deleted(run) for run in runs]),
        ("age", [describing.ago(run.age).removesuffix(" ago") for run in runs]),
        ("tags", [visible(" ".join(run.tags), lines=False) or MISSING for run in runs]),
        ("result", [describing.result(run) for run in runs]),
        ("size", [byte_size(run.size) for run in runs]),
        ("task", [visible(run.task or MISSING, lines=False) for run in runs]),
    ]
    filled = [cell for cell in cells if {*cell[1]} != {MISSING}]
    names: Sequence[str] = ()
    fitting = _fitting(filled)
    if len(fitting) < min(LEAST_COLUMNS, len(filled)):  # names are too long
        names, fitting = filled[0][1], _fitting(filled[1:], indent=GAP)
    left_words = {"run", "state", "tags", "result", "task"}
    print_table(
        [header for header, _ in fitting],
        [*zip(*(texts for _, texts in fitting), strict=True)],
        [place for place, (header, _) in enumerate(fitting) if header in left_words],
        above=names,
    )
    if left := [header.replace("\n", "") for header, _ in filled[1:] if header not in dict(fitting)]:
        say(f"\nnot shown at this width: {', '.join(left)}")
    remarks = [(run, str(run.holder)) for run in runs if run.holder]
    remarks += [(run, run.why or "") for run in runs if run.state == "damaged"]
    if remarks:
        say()
    for run, text in remarks:
        say(f"{visible(run.name, lines=False)}: {run.state}, {text}")
    for note in (note for run in runs for note in run.all_notes):
        say_on_stderr(f"note: {note}")


def _fitting(cells: Sequence[tuple[str, list[str]]], indent: int = 0) -> list[tuple[str, list[str]]]:
    from rich.cells import cell_len

    limit = columns(sys.stdout)
    kept: list[tuple[str, list[str]]] = []
    used = indent - GAP
    for header, texts in cells:
        width = GAP + max(cell_len(text) for text in (*header.split("\n"), *texts))
        if limit is not None and used + width > limit and len(kept) > 1:
            break
        kept, used = [*kept, (header, texts)], used + width
    return kept


def print_words(table: Words) -> None:
    if not table.rows:
        return
    say(f"\n{table.title}")
    if table.differs:
        from mrt5cli.runs.describing import grouped

        width = max(len(key) for key, *_ in table.rows)
        for key, values in grouped(table).rows:
            say(f"  {key:<{width}}  {values}")
        return
    rows = [tuple(visible(cell, lines=False) for cell in row) for row in table.rows]
    print_table(table.headers, rows, range(table.text_columns), only_filled=True)


def print_curves(drawn: Sequence[Panel]) -> None:
    from mrt5cli.runs.curves import DOT
    from mrt5cli.runs.curves import drawn as as_text

    width = min(columns(sys.stdout) or 80, 140)
    plain = False
    try:
        DOT.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        plain = True
    for panel in drawn:
        print()
        print(visible(as_text(panel, max(width, 40), plain=plain)))


def as_rows(table: Words) -> list[dict[str, str]]:
    """A table's rows for JSON, each keyed by header."""
    return [dict(zip(table.headers, row, strict=True)) for row in table.rows]


def curve_rows(drawn: Sequence[Panel]) -> list[dict[str, object]]:
    """Curves for JSON."""
    return [
        {
            "metric": panel.metric,
            "by": panel.by,
            "run": curve.label,
            "target": curve.target,
            "x": curve.x,
            "y": curve.y,
        }
        for panel in drawn
        for curve in panel.curves
    ]


def write_pages(
    title: str, drawn: Sequence[Panel], tables: Sequence[Words], html: Path | None, png: Path | None
) -> None:
    if html is None and png is None:
        return
    from mrt5cli.report.run_pages import write_page, write_picture

    if html is not None:
        write_page(html, title, drawn, tables)
        say_on_stderr(f"saved {html}")
    if png is not None:
        write_picture(png, drawn)
        say_on_stderr(f"saved {png}")
