"""What `mrt5 pretrain` and `mrt5 finetune` do with a checked recipe, and what their options set in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mrt5cli.output import print_json
from mrt5cli.text import say

if TYPE_CHECKING:
    from mrt5cli.recipe import Recipe


def assignments(
    overrides: list[str] | None, revision: str | None = None, start: str | None = None
) -> list[str]:
    """What --set sets, and behind it what --revision and --from set."""
    from mrt5cli.recipe.strict_yaml import inline

    keys: dict[str, str | None] = {}
    if start is not None:
        # Not what describes a model that is built from nothing, nor a revision of another one.
        keys = {"start": start, "revision": None, "shape": None, "initialization": "t5"}
    if revision is not None:
        keys["revision"] = revision
    return [*(overrides or ()), *(f"model.{key}={inline(value)}" for key, value in keys.items())]


@dataclass(frozen=True)
class TrainingOptions:
    """What was typed, by the names of the options."""

    overrides: list[str]
    out: Path | None
    resume: bool
    smoke: bool
    dry_run: bool
    device: str
    no_pickle: bool
    as_json: bool


def train(recipe: Recipe, options: TrainingOptions) -> None:
    """Train a recipe, or say what would be done.

    Raises:
        UserError: the run cannot start.
        RunFailed: it started, and could not be finished.
        KeyboardInterrupt: it was interrupted.
    """
    from mrt5cli import recipe as recipes
    from mrt5cli.rundir import default_directory
    from mrt5cli.training.choose import RunOptions, choose
    from mrt5cli.training.record import outcome
    from mrt5cli.training.run import execute

    usual = default_directory(recipe)
    notes: list[str] = []
    if options.smoke:
        full, given = recipe, recipes.parse_overrides(options.overrides)
        recipe = recipes.smoke(full, given)
        notes = recipes.left_out_of_smoke(full, given)
        usual = usual.parent / "smoke" / default_directory(recipe).name
    # A smoke run in its own place may always be replaced; elsewhere nothing is.
    overwrite = options.smoke and options.out is None and not options.resume
    how = RunOptions(
        options.out or usual,
        resume=options.resume,
        overwrite=overwrite,
        device=options.device,
        allow_pickle=not options.no_pickle,
    )
    plan = choose(recipe, how)
    plan.notes.extend(notes)
    if not options.dry_run:
        run = execute(plan)
        if options.as_json and plan.runtime.leads:
            print_json(outcome(run))
    elif options.as_json:
        print_json(plan.document)
    else:
        say(plan.text)
        print(f"\n{recipes.dump(recipe)}")
