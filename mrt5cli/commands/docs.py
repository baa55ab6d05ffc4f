"""`mrt5 docs`: the READMEs of the package, in the terminal or in a browser."""

from __future__ import annotations

import difflib
import os
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from mrt5cli import documentation
from mrt5cli.commands.options import argument, option
from mrt5cli.documentation import LINK, summary, text
from mrt5cli.errors import UserError
from mrt5cli.text import columns, filled, say, shortened

WIDEST = 100
"""Columns; longer lines are hard to read."""


def docs(
    topic: Annotated[
        str | None,
        argument(
            "Topic to read, one of those that `mrt5 docs` lists.", "TOPIC", str, default="list the topics"
        ),
    ] = None,
    browser: Annotated[bool, option("Open the page in a browser.", "--open")] = False,
    path: Annotated[bool, option("Print the path of the Markdown file.", "--path")] = False,
) -> None:
    """Read the documentation that comes with this version: one page per topic.

    A terminal shows the page formatted, in its pager ($PAGER); a pipe or a file gets the Markdown.

    Examples:

      mrt5 docs

      mrt5 docs training

      mrt5 docs models --open

      mrt5 docs house --path
    """
    known = documentation.topics()
    if topic is None:
        if browser or path:
            raise UserError("which topic? --open and --path need one", "`mrt5 docs` lists them")
        width, screen = max(map(len, known)), columns(sys.stdout)
        for name, file in known.items():
            line = f"  {name:<{width}}  {summary(text(name, file))}"
            print(line if screen is None else filled(line, screen))
        return
    if topic.lower() not in known:
        near = difflib.get_close_matches(topic.lower(), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "`mrt5 docs` lists the topics"
        raise UserError(f"there is no topic {shortened(topic)!r}", hint)
    topic = topic.lower()
    file = known[topic]
    if path:
        if file is None:
            raise UserError("an installed mrt5cli has no README.md of its own", f"read it: mrt5 docs {topic}")
        print(file)
    elif browser:
        _open(topic, file)
    elif sys.stdout.isatty():
        _page(text(topic, file))
    else:
        sys.stdout.write(text(topic, file))


def _page(markdown: str) -> None:
    """Show a page formatted in the user's pager, which ends on its own after a page that fits."""
    import pydoc

    from rich.console import Console
    from rich.markdown import Markdown

    console = Console(width=min(columns(sys.stdout) or WIDEST, WIDEST))
    with console.capture() as shown:
        console.print(Markdown(LINK.sub(r"\1", markdown), hyperlinks=False))
    os.environ.setdefault("LESS", "-RFX")  # colors as they are
    pydoc.pager(shown.get())


def _open(topic: str, file: Path | None) -> None:
    """Open a page as HTML, its links and pictures leading where the Markdown's do."""
    import html
    import tempfile
    import webbrowser

    from markdown_it import MarkdownIt

    parser = MarkdownIt().enable("table")
    tokens = parser.parse(text(topic, file))
    for heading, inline in pairwise(tokens):
        if heading.type == "heading_open":
            heading.attrs["id"] = re.sub(r"[^\w -]", "", inline.content.lower()).replace(" ", "-")
    base = f'<base href="{html.escape(file.as_uri())}">' if file else ""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", prefix=f"mrt5-{topic}-", suffix=".html", delete=False
    ) as page:
        address = Path(page.name).as_uri()
        body = parser.renderer.render(tokens, parser.options, {}).replace('href="#', f'href="{address}#')
        page.write(
            f'<!doctype html><meta charset="utf-8"><title>mrt5 {topic}</title>{base}'
            "<style>:root{color-scheme:light dark}body{max-width:50rem;margin:2rem auto;padding:0 1rem;"
            "font:1rem/1.5 sans-serif}pre,table{overflow-x:auto;display:block}td,th{padding:.2rem .8rem 0 0;"
            f"text-align:left;vertical-align:top}}img{{max-width:100%}}</style>{body}"
        )
    if not webbrowser.open(address):
        raise UserError(f"no browser could be opened for {page.name}", f"read it here: mrt5 docs {topic}")
    say(f"opened {page.name}")
