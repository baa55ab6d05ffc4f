"""`mrt5 finetune`: train a model that is there already on a task."""

from __future__ import annotations

from typing import Annotated

from mrt5cli.commands import options, training
from mrt5cli.errors import UserError


def finetune(
    recipe: options.RecipeName,
    from_: Annotated[
        str | None,
        options.named(
            "The model to start from; as --set model.start=. Default: the recipe's.",
            *("--from",),
            metavar="RUN|DIR|HUB_ID",
        ),
    ] = None,
    revision: options.Revision = None,
    overrides: options.Overrides = None,
    out: options.Out = None,
    resume: options.Resume = False,
    smoke: options.Smoke = False,
    dry_run: options.DryRun = False,
    device: options.Device = "auto",
    no_pickle: options.NoPickle = False,
    code: options.Code = None,
    as_json: options.AsJson = False,
) -> None:
    """Train a model that is there already on a task, as a recipe says.

    The model is a run, a checkpoint or a Hub model; an MrT5 keeps its gate, and the controller goes on
    steering. Where the recipe has a training.best_metric, the model that comes out is the one that was best
    on validation data. Everything else is as in `mrt5 pretrain`.

    Examples:

      mrt5 finetune spelling_v3/mrt5_50

      mrt5 finetune xnli_v3/mrt5_50 --from stanfordnlp/mrt5-small

      mrt5 finetune spelling_v3/byt5 --from google/byt5-small --set task.source.path=my_pairs

      mrt5 finetune runs/mine-seed42/recipe.yaml --out runs/mine-seed42 --resume
    """
    from mrt5cli.recipe import load

    assigned = training.assignments(overrides, revision, from_)
    chosen = load(recipe, assigned, smoke=smoke)
    if chosen.model.start == "scratch":
        raise UserError(
            f"{recipe} has model.start: scratch, and fine-tuning starts from a model that is there",
            f"give one with --from; to train from nothing: mrt5 pretrain {recipe}",
        )
    given = training.TrainingOptions(assigned, out, resume, smoke, dry_run, device, no_pickle, as_json)
    training.train(chosen, given)
