"""How every page is made: a template of `templates/`, filled; an HTML page carries its style and script and
needs nothing else, neither a network nor a file beside it.

A page extends `base.html.j2`, which gives it a title, a list of contents, light and dark colours, tables that
sort by a click on a header and keep their headers in sight, and a print style; `tables.html.j2` prints a
`tables.Table`, and a figure with its numbers.
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
    """A part of a page of `sections.html.j2`, with a heading of its own.

    Attributes:
        about: sentences under the heading, or nothing.
        notes: sentences under the tables.
        commands: to paste into a terminal.
    """

    title: str
    about: str = ""
    drawings: Sequence[Drawing] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    commands: Sequence[str] = ()


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """A page of sections, of figures and tables each."""
    contents = [(anchor(section.title), section.title) for section in sections]
    content = {"title": title, "lead": lead, "sections": sections, "contents": contents}
    return render("sections.html.j2", content)


def render(template: str, content: Mapping[str, object]) -> str:
    """A page as text.

    Args:
        template: a file of `templates/`; what it prints is escaped where its name says HTML.
        content: all that it prints, by the names it uses; a name that is missing is an error.
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
    """Text that a Markdown table or paragraph shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|~#])", r"\\\1", text).replace("\n", " ")


def anchor(text: str) -> str:
    """An id for a heading."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def verdict_of(cell: str) -> str:
    """The class of a cell that holds a verdict, with or without its reason, or nothing."""
    of_claim = ("holds", "does not hold", "open", "smoke")
    found = [one for one in VERDICTS if cell == one or cell.startswith(f"{one}: ")]
    return anchor(cell if cell in of_claim else found[0] if found else "")
