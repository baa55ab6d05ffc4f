"""`mrt5 pretrain` and `mrt5 finetune`: train a model as its recipe says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mrt5cli import own_code
from mrt5cli.commands import options
from mrt5cli.errors import UserError
from mrt5cli.output import print_json
from mrt5cli.text import say

if TYPE_CHECKING:
    from mrt5cli.recipe import Recipe

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
    Ctrl-C, or a termination signal, saves a checkpoint and prints the command that resumes the run.

    Examples:

      mrt5 pretrain quickstart_byt5

      mrt5 pretrain local_text --set 'task.source={kind: files, path: my_texts}'

      mrt5 pretrain runs/mine-seed42/recipe.yaml --out runs/mine-seed42 --resume
    """
    assigned = assignments(overrides, revision)
    chosen = _load(recipe, assigned, smoke, out if resume else None)
    if chosen.is_finetuning:
        raise UserError(
            f"{recipe} fine-tunes {chosen.model.start} on {chosen.task.kind}",
            f"mrt5 finetune {recipe}; to train on this task from nothing: --set model.start=scratch",
        )
    given = TrainingOptions(assigned, out, resume, smoke, dry_run, device, no_pickle, as_json)
    train(chosen, given)


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
    assigned = assignments(overrides, revision, from_)
    chosen = _load(recipe, assigned, smoke, out if resume else None)
    if chosen.model.start == "scratch":
        raise UserError(
            f"{recipe} has model.start: scratch, and fine-tuning starts from an existing model",
            f"give one with --from; to train from nothing: mrt5 pretrain {recipe}",
        )
    given = TrainingOptions(assigned, out, resume, smoke, dry_run, device, no_pickle, as_json)
    train(chosen, given)


def _load(recipe: str, assigned: list[str], smoke: bool, resumed: Path | None) -> Recipe:
    """The recipe to train, whose kinds may be of code that the run to resume was made with."""
    from mrt5cli.recipe import load

    if resumed is not None:
        own_code.import_again(resumed)
    return load(recipe, assigned, smoke=smoke)


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
    from mrt5cli.training.choose import choose
    from mrt5cli.training.plan import RunOptions
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
