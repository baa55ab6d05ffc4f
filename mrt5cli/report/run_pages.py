"""Pages and pictures of `mrt5 runs show` and `compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mrt5cli.errors import UserError, not_written
from mrt5cli.extras import how_to_install
from mrt5cli.report.html import Section, page
from mrt5cli.report.page import NO_FIGURES, can_draw
from mrt5cli.report.tables import Table
from mrt5cli.runs.curves import Panel
from mrt5cli.runs.describing import Words, grouped
from mrt5cli.text import visible
from mrt5cli.writing import write_text


def write_page(path: Path, title: str, panels: Sequence[Panel], tables: Sequence[Words]) -> None:
    """Write a page with curves and non-empty tables; without matplotlib, it explains how to get the curves.

    Raises:
        UserError: the file cannot be written.
    """
    sections = []
    if panels and can_draw():
        from mrt5cli.report.figures.curves import curve_drawings

        sections.append(Section("Curves", drawings=curve_drawings(panels)))
    for words in (grouped(words) if words.differs else words for words in tables):
        if words.rows:
            rows = [tuple(visible(cell, lines=False) for cell in row) for row in words.rows]
            sections.append(
                Section(
                    words.title,
                    tables=[Table(words.headers, rows, words=words.text_columns, prose=words.prose)],
                )
            )
    lead = "" if can_draw() else NO_FIGURES.format(how_to_install("plots"))
    try:
        write_text(path, page(visible(title, lines=False), lead, sections))
    except OSError as error:
        raise not_written(error) from error


def write_picture(path: Path, panels: Sequence[Panel]) -> None:
    """Write the curves to a file in the format of its suffix: .png, .svg or .pdf.

    Raises:
        UserError: matplotlib is missing, there are no curves, or the file cannot be written.
    """
    if not can_draw():
        raise UserError("--png needs matplotlib, which is not installed", how_to_install("plots"))
    if not panels:
        raise UserError(f"{path} was not written: there are no curves yet", "wait for the first steps")
    from mrt5cli.report.figures.curves import curves_picture

    curves_picture(path, panels)
