"""The documentation in the package: its Markdown files by topic."""

from __future__ import annotations

import re
from pathlib import Path

import mrt5cli
from mrt5cli.errors import UserError

HOUSE, TOP = "house", "readme"
"""Topics that are not named after a file or folder."""
LINK = re.compile(r"!?\[([^\]]*)\]\((?!http)[^)]*\)")
"""To a place in the package: a terminal cannot follow it."""
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_NO_PROSE = re.compile(r"\s*$|[#|<>!]|[-*+] |\d+\. | {4}|\t")
"""How a block begins that is a heading, a table, HTML, a picture, a list or code."""
_END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s")


def topics() -> dict[str, Path | None]:
    """The Markdown files of the package by topic, in reading order; None for the description of an installed
    package, which is no file.

    A README.md is named after its folder, another file after itself; where two folders have a name in
    common, the one further up keeps it.
    """
    package = Path(mrt5cli.__file__).parent
    top = package.parent / "README.md"
    source = package.parent / "recipes"  # in a wheel recipes lie below the package
    found: dict[str, Path | None] = {TOP: top if source.is_dir() and top.is_file() else None}
    files = [*package.rglob("*.md"), *source.glob("README.md")]
    for file in sorted(files, key=lambda file: (len(file.parts), file.parent != package, file)):
        folder = HOUSE if file.parent == package else file.parent.name
        name = folder if file.stem == "README" else file.stem.lower()
        found.setdefault(name, file)
    return found


def summary(markdown: str) -> str:
    """The title of a page and its first sentence of prose, on one line: "Title: sentence."."""
    title = re.search(r"^# (.*)", markdown, re.MULTILINE)
    blocks = re.split(r"\n\s*?\n", _FENCED.sub("", markdown))
    prose = next((block for block in blocks if not _NO_PROSE.match(block.lstrip("\n"))), "")
    sentence = _END_OF_SENTENCE.split(" ".join(prose.split()), maxsplit=1)[0].rstrip(":")
    line = ": ".join(part for part in (title[1] if title else "", sentence) if part)
    return re.sub(r"[`*]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", line))


def text(topic: str, file: Path | None) -> str:
    """The Markdown of a topic.

    Args:
        topic, file: an entry of `topics`.

    Raises:
        UserError: it is the description of a package that is not installed.
    """
    if file is not None:
        return file.read_text(encoding="utf-8")
    from importlib import metadata

    try:
        description = metadata.metadata("mrt5cli")["Description"]
    except metadata.PackageNotFoundError:
        raise UserError("this copy of mrt5cli came without its README", f"{topic} is not available") from None
    return description.lstrip("\n")
