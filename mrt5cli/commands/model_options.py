"""The options that every command has which takes a model or a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mrt5cli import own_code, places

Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a Hub model. [default: main]", show_default=False)
]
NoPickle = Annotated[
    bool, typer.Option("--no-pickle", help="Refuse pickled weights, though no code in them is ever run.")
]


def _import_code(files: list[Path] | None) -> list[Path] | None:
    for file in files or ():
        own_code.import_file(file)
    return files


Code = Annotated[
    list[Path] | None,
    typer.Option(
        "--code",
        parser=places.path,
        metavar="FILE",
        # Before any other option: what it registers may be what they name.
        is_eager=True,
        callback=_import_code,
        help="A Python file of your own to import first, which may register shorteners. May be repeated.",
    ),
]
