"""Options and arguments that several commands share.

A help text shows the default in one way only: `[default: ...]`, which typer appends. The parameter `default`
describes one that depends on the model, the recipe or the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mrt5cli import bounds, own_code, places
from mrt5cli.commands.completion import of
from mrt5cli.errors import UserError
from mrt5cli.text import shortened


def argument(
    text: str, metavar: str, parser: Callable[[str], str | Path] = places.place, default: str | None = None
) -> Any:
    """An argument that names a run, model, task or recipe; with `places.path`, a file or folder."""
    return typer.Argument(
        parser=parser, metavar=metavar, help=text, show_default=default or True, autocompletion=of(metavar)
    )


def option(
    text: str, *names: str, metavar: str | None = None, default: str | None = None, **more: Any
) -> Any:
    """An option whose text is used unchanged, or a flag."""
    return typer.Option(
        *names, metavar=metavar, help=text, show_default=default or True, autocompletion=of(metavar), **more
    )


def named(text: str, *names: str, metavar: str, default: str | None = None) -> Any:
    """An option that names a run, model, task or recipe."""
    return option(text, *names, metavar=metavar, default=default, parser=places.place)


def path(text: str, *names: str, metavar: str = "PATH", default: str | None = None) -> Any:
    """An option that names a file (FILE), a folder (DIR), or either (PATH)."""
    return option(text, *names, metavar=metavar, default=default, parser=places.path)


def written(text: str, *names: str, default: str | None = None) -> Any:
    """An option that names a file to write at the end; see `places.new_file`."""
    return option(text, *names, metavar="FILE", default=default, parser=places.new_file)


def amount(
    text: str, most: float, least: float = 1, *names: str, metavar: str = "N", default: str | None = None
) -> Any:
    """An option that is a number from `least` to `most`, an integer where its metavar is N."""
    return option(text, *names, metavar=metavar, default=default, min=least, max=most)


ANY_MODEL = "Run, checkpoint directory or Hub id."
A_RECIPE = "Recipe file, or name of a shipped recipe"
RecipeName = Annotated[str, argument(f"{A_RECIPE}.", "RECIPE")]
RecipeNames = Annotated[list[str], argument(f"{A_RECIPE}; several with --slurm.", "RECIPE")]
Slurm = Annotated[
    list[str] | None,
    option(
        "Submit the training as a Slurm job, several recipes as a job array (needs submitit). Keys are "
        "options of sbatch, such as time, and gpus, the GPUs per node. May be repeated.",
        "--slurm",
        metavar="KEY=VALUE,...",
    ),
]
Overrides = Annotated[
    list[str] | None,
    option(
        "Recipe key to change, such as training.max_steps=100. A mapping, KEY={a: b}, replaces the whole "
        "section. May be repeated; --set itself may be left out.",
        "--set",
        metavar="KEY=VALUE",
    ),
]
Out = Annotated[
    Path | None, path("Run directory.", "--out", "-o", metavar="DIR", default="runs/NAME-seedSEED")
]
Document = Annotated[Path | None, written("Also write the JSON document to this file.", "--out", "-o")]
Hard = Annotated[
    bool | None,
    option(
        "Hard deletion, which removes bytes, or soft deletion, which masks them as in training.",
        "--hard/--soft",
        default="the recipe's",
    ),
]
Threshold = Annotated[
    float | None,
    amount(
        "Gate value at or below which a byte is deleted.",
        bounds.COEFFICIENT,
        -bounds.COEFFICIENT,
        metavar="NUMBER",
        default="the model's",
    ),
]
Resume = Annotated[bool, option("Resume from the latest checkpoint.", "--resume")]
Smoke = Annotated[bool, option("Shrink each recipe to a few seconds on a CPU, as a smoke test.", "--smoke")]
DryRun = Annotated[bool, option("Check everything, print the plan and exit.", "--dry-run")]
DEVICE = "Device: cpu, cuda, cuda:1 (a GPU by its number), or auto (a GPU if available)."
Device = Annotated[str, option(DEVICE, "--device", metavar="DEVICE")]
Precision = Annotated[
    Literal["fp32", "bf16"], option("Precision of weights and matrix products; bf16 is meant for GPUs.")
]
AsJson = Annotated[bool, option("Print one JSON document to stdout instead.", "--json")]
Revision = Annotated[
    str | None, option("Branch, tag or commit of a Hub model.", metavar="REVISION", default="main")
]
Overwrite = Annotated[bool, option("Replace the output of an earlier command.", "--overwrite")]
NoPickle = Annotated[
    bool,
    option("Reject pickled weights, which are otherwise read without running their code.", "--no-pickle"),
]


def shares(option: str, text: str, *, or_none: bool = False) -> list[float]:
    """The deletion rates that an option lists, each from 0 to below 1, without repeats, in the given order.

    Args:
        or_none: 0 is allowed.

    Raises:
        UserError: a rate is not a number or out of range.
    """
    try:
        found = list(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        found = [-1.0]
    if not all(0 < share < 1 or (or_none and share == 0) for share in found):
        least = "from 0 to" if or_none else "above 0 and"
        raise UserError(
            f"{option} '{shortened(text)}': a deletion rate is a fraction of positions, {least} below 1",
            f"for example {option} 0.3,0.5,0.7",
        )
    return found


def _import_code(context: typer.Context, files: list[Path] | None) -> list[Path] | None:
    # Shell completion must not run the file.
    for file in () if context.resilient_parsing else files or ():
        own_code.import_file(file)
    return files


Code = Annotated[
    list[Path] | None,
    typer.Option(
        "--code",
        parser=places.path,
        metavar="FILE",
        # Eager, because other options may name what the file registers.
        is_eager=True,
        callback=_import_code,
        help="Python file to import first, which may register custom tasks, shorteners and metrics. "
        "The run remembers it. May be repeated.",
    ),
]
