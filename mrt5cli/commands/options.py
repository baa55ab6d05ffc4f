"""The options and arguments that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mrt5cli import own_code, places

RecipeName = Annotated[
    str,
    typer.Argument(
        parser=places.place,
        metavar="RECIPE",
        help="A recipe file, or the name of a shipped recipe.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a key of the recipe, e.g. training.max_steps=100; a mapping, KEY={a: b}, takes the "
        "place of all that stood there. May be repeated.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        parser=places.path,
        help="The run directory. [default: runs/NAME-seedSEED]",
        show_default=False,
    ),
]
Document = Annotated[
    Path | None, typer.Option(parser=places.new_file, help="Also write the JSON document to this file.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the latest checkpoint.")]
Smoke = Annotated[
    bool, typer.Option("--smoke", help="Shrink the recipe to seconds on a CPU, to see that it runs.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would run, and stop.")]
Device = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1 (a GPU's number) or auto: a GPU if there is one.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead.")]
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
