"""What `mrt5 pretrain` and `mrt5 finetune` do with a checked recipe, and what their options set in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrt5cli.errors import UserError
from mrt5cli.output import print_json
from mrt5cli.text import say

if TYPE_CHECKING:
    from mrt5cli.recipe import Recipe


def set_by_options(
    overrides: list[str] | None, revision: str | None, start: str | None = None
) -> dict[str, dict[str, Any]]:
    """What --revision, and --from where a command has it, set in a recipe; as `recipe.load` takes it.

    Raises:
        UserError: --set gives the same.
    """
    chosen: dict[str, dict[str, Any]] = {}
    if start is not None:
        # Not what describes a model that is built from nothing, nor a revision of another one.
        model = {"start": start, "revision": None, "shape": None, "initialization": "t5"}
        chosen["--from"] = {f"model.{key}": value for key, value in model.items()}
    if revision is not None:
        chosen["--revision"] = {"model.revision": revision}
    given = {item.partition("=")[0].strip() for item in overrides or ()}
    for option, keys in chosen.items():
        if both := given & keys.keys():
            hint = "give one of them; --revision goes with --from"
            raise UserError(f"{option} and --set both give {min(both)}", hint)
    return chosen


@dataclass(frozen=True)
class TrainingOptions:
    """What was typed, by the names of the options."""

    overrides: list[str] | None
    out: Path | None
    resume: bool
    smoke: bool
    dry_run: bool
    device: str
    no_pickle: bool
    as_json: bool


def train(recipe: Recipe, options: TrainingOptions, notes: Sequence[str] = ()) -> None:
    """Train a recipe, or say what would be done.

    Args:
        notes: for the user, beside those of the plan.

    Raises:
        UserError: the run cannot start.
        RunFailed: it started, and could not be finished.
        KeyboardInterrupt: it was interrupted.
    """
    from mrt5cli import recipe as recipes
    from mrt5cli.rundir import default_directory
    from mrt5cli.training.choose import choose
    from mrt5cli.training.record import outcome
    from mrt5cli.training.run import execute

    usual = default_directory(recipe)
    if options.smoke:
        full, given = recipe, recipes.parse_overrides(options.overrides or ())
        recipe = recipes.smoke(full, given)
        notes = (*notes, *recipes.left_out_of_smoke(full, given))
        usual = usual.parent / "smoke" / default_directory(recipe).name
    # A smoke run in its own place may always be replaced; elsewhere nothing is.
    overwrite = options.smoke and options.out is None and not options.resume
    plan = choose(
        recipe,
        options.out or usual,
        resume=options.resume,
        device=options.device,
        overwrite=overwrite,
        allow_pickle=not options.no_pickle,
    )
    plan.notes.extend(notes)
    if not options.dry_run:
        run = execute(plan, overwrite=overwrite)
        if options.as_json and plan.runtime.leads:
            print_json(outcome(run))
    elif options.as_json:
        print_json(plan.document)
    else:
        say(plan.text)
        print(f"\n{recipes.dump(recipe)}")
