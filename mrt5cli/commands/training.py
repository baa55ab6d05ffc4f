"""What `mrt5 pretrain` and `mrt5 finetune` do with a checked recipe, and what their options set in it."""

from __future__ import annotations

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
    given = {item.partition("=")[0].strip() for item in overrides or ()}
    chosen: dict[str, dict[str, Any]] = {}
    if start is not None:
        # Not what describes a model that is built from nothing, nor a revision of another one.
        start_keys = {"model.start": start, "model.revision": None}
        chosen["--from"] = start_keys | {"model.shape": None, "model.initialization": "t5"}
        for key in ("model.start", "model.revision", "model.shape", "model.initialization"):
            if key in given:
                option = "--revision" if key == "model.revision" else "--from"
                raise UserError(f"--from and --set {key} both say where to start", f"give {option} alone")
    if revision is not None:
        if "model.revision" in given:
            raise UserError("--revision and --set model.revision both say which one", "give one of them")
        chosen["--revision"] = {"model.revision": revision}
    return chosen


@dataclass(frozen=True)
class TrainingOptions:
    """What was typed, by the names of the options; what --set says is in the recipe already."""

    overrides: list[str] | None
    out: Path | None
    resume: bool
    smoke: bool
    dry_run: bool
    device: str
    no_pickle: bool
    as_json: bool


def train(recipe: Recipe, options: TrainingOptions, notes: tuple[str, ...] = ()) -> None:
    """Train a recipe, or say what would be done.

    Args:
        notes: what the plan should tell the user besides.

    Raises:
        UserError: the run cannot start.
        RunFailed: it started, and could not be finished.
        KeyboardInterrupt: it was interrupted.
    """
    from mrt5cli import recipe as recipes
    from mrt5cli.rundir import default_directory
    from mrt5cli.training.choose import choose
    from mrt5cli.training.outcome import outcome
    from mrt5cli.training.plan_text import document_of, text_of
    from mrt5cli.training.run import execute

    if options.smoke:
        full, given = recipe, recipes.parse_overrides(options.overrides or ())
        recipe = recipes.smoke(full, given)
        notes = (*notes, *recipes.left_out_of_smoke(full, given))
    # A smoke run in its own place may always be replaced; elsewhere nothing is.
    overwrite = options.smoke and options.out is None and not options.resume
    usual = default_directory(recipe)
    plan = choose(
        recipe,
        options.out or (usual.parent / "smoke" / usual.name if options.smoke else usual),
        resume=options.resume,
        device=options.device,
        overwrite=overwrite,
        allow_pickle=not options.no_pickle,
    )
    plan.notes += notes
    if options.dry_run and options.as_json:
        print_json(document_of(plan))
    elif options.dry_run:
        say(text_of(plan))
        print(f"\n{recipes.dump(recipe)}")
    else:
        run = execute(plan, overwrite=overwrite)
        if options.as_json and plan.runtime.leads:
            print_json(outcome(run))
