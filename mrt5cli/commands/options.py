"""The options and arguments that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mrt5cli import bounds, own_code, places
from mrt5cli.commands.completion import of
from mrt5cli.errors import UserError
from mrt5cli.text import shortened


def argument(text: str, metavar: str, parser: Callable[[str], str | Path] = places.place) -> Any:
    """An argument that names a run, a model, a task or a recipe, or with `places.path` a file or a folder."""
    return typer.Argument(parser=parser, metavar=metavar, help=text, autocompletion=of(metavar))


def option(text: str, *names: str, metavar: str | None = None) -> Any:
    """An option that is taken as it is typed, or a flag."""
    return typer.Option(*names, metavar=metavar, help=text, autocompletion=of(metavar))


def named(text: str, *names: str, metavar: str) -> Any:
    """An option that names a run, a model, a task or a recipe."""
    return typer.Option(*names, parser=places.place, metavar=metavar, help=text, autocompletion=of(metavar))


def path(text: str, *names: str, metavar: str = "PATH") -> Any:
    """An option that takes a file (FILE), a folder (DIR), or either of them (PATH)."""
    return typer.Option(*names, parser=places.path, metavar=metavar, help=text)


def amount(text: str, most: float, least: float = 1, *names: str, metavar: str = "N") -> Any:
    """An option that takes a number, a whole one where its metavar is N."""
    return typer.Option(*names, min=least, max=most, metavar=metavar, help=text)


def written(text: str, *names: str) -> Any:
    """An option that names a file to write when all is done; see `places.new_file`."""
    return typer.Option(*names, parser=places.new_file, metavar="FILE", help=text)


ANY_MODEL = "A run, a checkpoint directory or a Hub id."
RecipeName = Annotated[str, argument("A recipe file, or the name of a shipped recipe.", "RECIPE")]
RecipeNames = Annotated[
    list[str],
    argument("A recipe file, or the name of a shipped recipe; several with --slurm.", "RECIPE"),
]
Slurm = Annotated[
    list[str] | None,
    option(
        "Train as a job of Slurm, several recipes as an array; needs submitit. Keys are sbatch's options, "
        "time among them, and gpus, of each node. May be repeated.",
        "--slurm",
        metavar="KEY=VALUE,...",
    ),
]
Overrides = Annotated[
    list[str] | None,
    option(
        "Change a key of the recipe, e.g. training.max_steps=100; a mapping, KEY={a: b}, takes the place of "
        "all that stood there. May be repeated, and --set may be left out.",
        "--set",
        metavar="KEY=VALUE",
    ),
]
Out = Annotated[
    Path | None, path("The run directory. Default: runs/NAME-seedSEED.", "--out", "-o", metavar="DIR")
]
Document = Annotated[Path | None, written("Also write the JSON document to this file.", "--out", "-o")]
Hard = Annotated[
    bool | None,
    option("Delete for real, or gate softly as in training. Default: the recipe's.", "--hard/--soft"),
]
Threshold = Annotated[
    float | None,
    amount(
        "Delete gate values up to this one. Default: the model's own threshold.",
        bounds.COEFFICIENT,
        -bounds.COEFFICIENT,
        metavar="NUMBER",
    ),
]
Resume = Annotated[bool, option("Resume from the latest checkpoint.", "--resume")]
Smoke = Annotated[bool, option("Shrink each recipe to seconds on a CPU, to see that it runs.", "--smoke")]
DryRun = Annotated[bool, option("Check everything, print the plan, and stop.", "--dry-run")]
DEVICE = "cpu, cuda, cuda:1 (a GPU's number) or auto: a GPU if there is one."
Device = Annotated[str, option(DEVICE, "--device", metavar="DEVICE")]
Precision = Annotated[
    Literal["fp32", "bf16"], option("The precision of weights and products; bf16 is meant for GPUs.")
]
AsJson = Annotated[bool, option("Print one JSON document on stdout instead.", "--json")]
Revision = Annotated[
    str | None, option("Branch, tag or commit of a Hub model. Default: main.", metavar="REVISION")
]
Overwrite = Annotated[bool, option("Replace what an earlier command made there.", "--overwrite")]

NoPickle = Annotated[
    bool, option("Refuse pickled weights, though no code in them is ever run.", "--no-pickle")
]


def shares(option: str, text: str, *, or_none: bool = False) -> list[float]:
    """The shares of positions that an option lists, 0 to below 1, each once, in the order given.

    Args:
        or_none: 0 is one of them.
    """
    try:
        found = list(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        found = [-1.0]
    if not all(0 < share < 1 or (or_none and share == 0) for share in found):
        least = "0 to" if or_none else "above 0 and"
        raise UserError(
            f"{option} '{shortened(text)}': a rate is a share of positions, {least} below 1",
            f"for example {option} 0.3,0.5,0.7",
        )
    return found


def _import_code(context: typer.Context, files: list[Path] | None) -> list[Path] | None:
    # A shell that completes the line must not run it.
    for file in () if context.resilient_parsing else files or ():
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
        help="A Python file of your own to import first, which may register tasks, shorteners and metrics. "
        "A run remembers it. May be repeated.",
    ),
]
