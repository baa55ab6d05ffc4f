"""`mrt5 pretrain`: train a model as its recipe says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def pretrain(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run directory. [default: runs/NAME-seedSEED]", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the latest checkpoint.")] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Shrink the recipe to seconds on a CPU, to see that it runs.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would run, and stop.")
    ] = False,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1 (a GPU's number) or auto.", show_default=True)
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Train a model as its recipe says.

    Writes a run directory: the resolved recipe, metrics, checkpoints and the model in Hugging Face layout.
    Ctrl-C saves a checkpoint and says how to go on; so does a termination signal.

    Examples:

      mrt5 pretrain quickstart_byt5

      mrt5 pretrain local_text --set task.source.kind=files --set task.source.path=my_texts

      mrt5 pretrain runs/mine-seed42/recipe.yaml --out runs/mine-seed42 --resume
    """
    from mrt5cli import recipe as recipes
    from mrt5cli.rundir import default_directory
    from mrt5cli.training.plan import make_plan
    from mrt5cli.training.run import execute, outcome

    chosen = recipes.load(recipe, overrides or [])
    if smoke:
        chosen = recipes.smoke(chosen)
    # A smoke run in its own place may always be replaced; elsewhere nothing is.
    overwrite = smoke and out is None and not resume
    usual = default_directory(chosen)
    out = out or (usual.parent / "smoke" / usual.name if smoke else usual)
    plan = make_plan(chosen, out, resume=resume, device=device, overwrite=overwrite)
    if dry_run:
        print(
            json.dumps(plan.document(), indent=2) if as_json else f"{plan.text()}\n\n{recipes.dump(chosen)}"
        )
        return
    run = execute(plan, overwrite=overwrite)
    if as_json and plan.runtime.leads:
        print(json.dumps(outcome(run), indent=2))
