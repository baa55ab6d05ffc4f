"""`mrt5 pretrain` and `mrt5 finetune`: train a model as its recipe says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from mrt5cli.commands import options
from mrt5cli.errors import UserError
from mrt5cli.output import print_json
from mrt5cli.text import say

if TYPE_CHECKING:
    from mrt5cli.training.plan import TrainingPlan

From = Annotated[
    str | None,
    options.named(
        "The model to start from; as --set model.start=. Default: the recipe's.",
        "--from",
        metavar="RUN|DIR|HUB_ID",
    ),
]


def pretrain(
    recipe: options.RecipeName,
    overrides: options.Overrides = None,
    revision: options.Revision = None,
    out: options.Out = None,
    resume: options.Resume = False,
    smoke: options.Smoke = False,
    dry_run: options.DryRun = False,
    device: options.Device = "auto",
    no_pickle: options.NoPickle = False,
    code: options.Code = None,
    as_json: options.AsJson = False,
) -> None:
    """Train a model as its recipe says.

    Writes a run directory: the resolved recipe, metrics, checkpoints and the model in Hugging Face layout.
    Ctrl-C, SIGTERM, SIGHUP or a scheduler's SIGUSR1 saves a checkpoint and prints the command that resumes
    the run.

    Examples:

      mrt5 pretrain quickstart_byt5

      mrt5 pretrain local_text --set 'task.source={kind: files, path: my_texts}'

      mrt5 pretrain runs/mine-seed42/recipe.yaml --out runs/mine-seed42 --resume
    """
    from mrt5cli.training.pretrain import assignments, planned, wanted

    given = assignments(overrides, revision)
    chosen = wanted(recipe, given, smoke=smoke, resumed=out if resume else None)
    if chosen.is_finetuning:
        raise UserError(
            f"{recipe} fine-tunes {chosen.model.start} on {chosen.task.kind}",
            f"mrt5 finetune {recipe}; to train on this task from nothing: --set model.start=scratch",
        )
    plan = planned(
        chosen, given, out=out, resume=resume, smoke=smoke, device=device, allow_pickle=not no_pickle
    )
    _carry_out(plan, dry_run, as_json)


def finetune(
    recipe: options.RecipeName,
    from_: From = None,
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
    """Fine-tune an existing model on a task, as a recipe says.

    The model is a run, a checkpoint or a Hub model; an MrT5 keeps its gate, and the controller keeps
    steering. Where the recipe has a training.best_metric, the model that comes out is the one that was best
    on validation data. Everything else is as in `mrt5 pretrain`.

    Examples:

      mrt5 finetune spelling_v3/mrt5_50

      mrt5 finetune xnli_v3/mrt5_50 --from stanfordnlp/mrt5-small

      mrt5 finetune spelling_v3/byt5 --from google/byt5-small --set task.source.path=my_pairs

      mrt5 finetune runs/mine-seed42/recipe.yaml --out runs/mine-seed42 --resume
    """
    from mrt5cli.training.pretrain import assignments, planned, wanted

    given = assignments(overrides, revision, from_)
    chosen = wanted(recipe, given, smoke=smoke, resumed=out if resume else None)
    if chosen.model.start == "scratch":
        raise UserError(
            f"{recipe} has model.start: scratch, and fine-tuning starts from an existing model",
            f"give one with --from; to train from nothing: mrt5 pretrain {recipe}",
        )
    plan = planned(
        chosen, given, out=out, resume=resume, smoke=smoke, device=device, allow_pickle=not no_pickle
    )
    _carry_out(plan, dry_run, as_json)


def _carry_out(plan: TrainingPlan, dry_run: bool, as_json: bool) -> None:
    """Train as planned, or say what would be done."""
    from mrt5cli import recipe as recipes
    from mrt5cli.training.record import outcome
    from mrt5cli.training.run import execute

    if not dry_run:
        run = execute(plan)
        if as_json and plan.runtime.leads:
            print_json(outcome(run))
    elif as_json:
        print_json(plan.document)
    else:
        say(plan.text)
        print(f"\n{recipes.dump(plan.recipe)}")
