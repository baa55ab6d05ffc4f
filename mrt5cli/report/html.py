"""Renders pages from `templates/`. An HTML page contains its style and script and needs no network and no
other file.

A page extends `base.html.j2`, which provides a title, contents, light and dark colors, tables that sort on a
click and keep their headers visible, and a print style; `tables.html.j2` prints a `tables.Table` and a figure
with its numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mrt5cli.report.tables import Table
from mrt5cli.report.verdicts import VERDICTS

if TYPE_CHECKING:
    from mrt5cli.report.figures.style import Drawing


@dataclass(frozen=True)
class Section:
    """A headed section of a page from `sections.html.j2`.

    Attributes:
        title: heading.
        about: sentences under the heading, or empty.
        drawings: figures.
        tables: tables.
        notes: sentences under the tables.
        commands: commands to paste into a terminal.
    """

    title: str
    about: str = ""
    drawings: Sequence[Drawing] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    commands: Sequence[str] = ()


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The HTML of a page of sections."""
    contents = [(anchor(section.title), section.title) for section in sections]
    content = {"title": title, "lead": lead, "sections": sections, "contents": contents}
    return render("sections.html.j2", content)


def render(template: str, content: Mapping[str, object]) -> str:
    """The text of a page.

    Args:
        template: file name in `templates/`; values are escaped if the name contains ".html".
        content: the values by name; a missing name is an error.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mrt5cli.report"),
        autoescape=".html" in template,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": markdown_cell, "anchor": anchor, "verdict": verdict_of}
    return environment.get_template(template).render(content)


def markdown_cell(text: str) -> str:
    """Text escaped so that a Markdown table or paragraph shows it unchanged."""
    return re.sub(r"([\\`*_\[\]<>|~#])", r"\\\1", text).replace("\n", " ")


def anchor(text: str) -> str:
    """The id of a heading."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def verdict_of(cell: str) -> str:
    """The CSS class of a cell with a verdict, with or without its reason; empty for other cells."""
    of_claim = ("holds", "does not hold", "open", "smoke")
    found = [one for one in VERDICTS if cell == one or cell.startswith(f"{one}: ")]
    return anchor(cell if cell in of_claim else found[0] if found else "")
