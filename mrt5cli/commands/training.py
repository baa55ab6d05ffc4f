"""`mrt5 pretrain` and `mrt5 finetune`: train a model from a recipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from typing import TYPE_CHECKING, Annotated

from mrt5cli import bounds
from mrt5cli.commands import options
from mrt5cli.errors import UserError
from mrt5cli.output import print_json
from mrt5cli.text import announced, say_on_stderr

if TYPE_CHECKING:
    from mrt5cli.training.pretrain import Training

From = Annotated[
    str | None,
    options.named(
        "Model to start from; short for --set model.start=RUN.",
        "--from",
        metavar="RUN[@STEP]",
        default="the recipe's",
    ),
]
ContinueFor = Annotated[
    int | None,
    options.amount(
        "Steps to add to a finished run; give the run directory in place of RECIPE.", bounds.STEPS
    ),
]


def pretrain(
    recipe: options.RecipeNames,
    overrides: options.Overrides = None,
    revision: options.Revision = None,
    out: options.Out = None,
    resume: options.Resume = False,
    continue_for: ContinueFor = None,
    smoke: options.Smoke = False,
    dry_run: options.DryRun = False,
    device: options.Device = "auto",
    no_pickle: options.NoPickle = False,
    code: options.Code = None,
    slurm: options.Slurm = None,
    as_json: options.AsJson = False,
) -> None:
    """Train a model from a recipe.

    Writes a run directory with the resolved recipe, metrics, checkpoints and the model in Hugging Face
    format. Ctrl-C, SIGTERM, SIGHUP or a scheduler's SIGUSR1 saves a checkpoint and prints the command that
    resumes the run.

    Examples:

      mrt5 pretrain quickstart_byt5

      mrt5 pretrain local_text --set 'task.source={kind: files, path: my_texts}'

      mrt5 pretrain runs/mine-seed42/recipe.yaml --out runs/mine-seed42 --resume

      mrt5 pretrain runs/mine-seed42 --continue-for 1000

      mrt5 pretrain mine/byt5.yaml mine/mrt5.yaml --slurm partition=gpu,time=12:00:00,gpus=8
    """
    from mrt5cli.training.pretrain import assignments, training_of

    given = assignments(overrides, revision)
    read = partial(training_of, continue_for=continue_for, out=out, resume=resume, smoke=smoke, device=device)
    trainings = [read(name, given, allow_pickle=not no_pickle) for name in recipe]
    for name, training in zip(recipe, trainings, strict=True):
        chosen = training.recipe
        if chosen.is_finetuning:
            raise UserError(
                f"{name} fine-tunes {chosen.model.start} on {chosen.task.kind}",
                f"run `mrt5 finetune {name}`, or train from scratch with --set model.start=scratch",
            )
    _carry_out(trainings, slurm, dry_run, as_json)


def finetune(
    recipe: options.RecipeNames,
    from_: From = None,
    revision: options.Revision = None,
    overrides: options.Overrides = None,
    out: options.Out = None,
    resume: options.Resume = False,
    continue_for: ContinueFor = None,
    smoke: options.Smoke = False,
    dry_run: options.DryRun = False,
    device: options.Device = "auto",
    no_pickle: options.NoPickle = False,
    code: options.Code = None,
    slurm: options.Slurm = None,
    as_json: options.AsJson = False,
) -> None:
    """Fine-tune an existing model on a task.

    The model is a run, a checkpoint or a Hub model. An MrT5 keeps its gate, and the controller keeps
    adjusting its deletion rate. If the recipe sets training.best_metric, the result is the model with the
    best value on validation data. Everything else works as in `mrt5 pretrain`.

    Examples:

      mrt5 finetune spelling_v3/mrt5_50

      mrt5 finetune xnli_v3/mrt5_50 --from stanfordnlp/mrt5-small

      mrt5 finetune spelling_v3/byt5 --from google/byt5-small --set task.source.path=my_pairs

      mrt5 finetune runs/mine-seed42/recipe.yaml --out runs/mine-seed42 --resume
    """
    from mrt5cli.training.pretrain import assignments, training_of

    given = assignments(overrides, revision, from_)
    read = partial(training_of, continue_for=continue_for, out=out, resume=resume, smoke=smoke, device=device)
    trainings = [read(name, given, allow_pickle=not no_pickle) for name in recipe]
    for name, training in zip(recipe, trainings, strict=True):
        chosen = training.recipe
        if chosen.model.start == "scratch":
            raise UserError(
                f"{name} sets model.start: scratch, but fine-tuning starts from an existing model",
                f"name one with --from, or train from scratch with `mrt5 pretrain {name}`",
            )
    _carry_out(trainings, slurm, dry_run, as_json)


def _carry_out(trainings: Sequence[Training], slurm: list[str] | None, dry_run: bool, as_json: bool) -> None:
    """Train, submit to Slurm, or print the plan."""
    from mrt5cli import recipe as recipes
    from mrt5cli import runtime

    importing = announced("importing torch and transformers ..." if runtime.leads() else None, say_on_stderr)
    # With WANDB_MODE=offline, transformers prints a message on import.
    with importing, redirect_stdout(sys.stderr):
        from mrt5cli.training.record import outcome
        from mrt5cli.training.run import execute

    if slurm is not None:
        return _submit(trainings, slurm, dry_run, as_json)
    if len(trainings) > 1:
        raise UserError(
            f"{len(trainings)} recipes were given, but only Slurm trains several",
            "add --slurm, or name one recipe",
        )
    plan = trainings[0].plan()
    if not dry_run:
        run = execute(plan)
        if as_json and plan.runtime.leads:
            print_json(outcome(run))
    elif as_json:
        print_json(plan.document)
    else:
        say_on_stderr(f"{plan.text}\n")
        print(recipes.dump(plan.recipe), end="")  # can be redirected to a recipe file


def _submit(trainings: Sequence[Training], slurm: list[str], dry_run: bool, as_json: bool) -> None:
    """Submit trainings as jobs, or print the script that would be submitted."""
    from mrt5cli.training.slurm import Request, prepare

    prepared = prepare(trainings, Request.of(slurm))
    runs = [str(run.path) for run in prepared.runs]
    if dry_run and as_json:
        print_json({"script": prepared.script, "runs": runs})
    elif dry_run:
        say_on_stderr("\n".join(f"job {number}: {run}" for number, run in enumerate(runs)))
        print(prepared.script)  # last, since it begins with a shebang line
    else:
        ids = prepared.submit()
        jobs = [
            {"id": id_, "run": run, "log": str(prepared.log(id_))} for id_, run in zip(ids, runs, strict=True)
        ]
        if as_json:
            return print_json({"jobs": jobs})
        for job in jobs:
            print(f"job {job['id']}: {job['run']}; log: {job['log']}")
