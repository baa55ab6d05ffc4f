"""`mrt5 pretrain`: train a model as its recipe says."""

from __future__ import annotations

from mrt5cli.commands import options, training
from mrt5cli.errors import UserError


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
    Ctrl-C saves a checkpoint and says how to go on; so does a termination signal.

    Examples:

      mrt5 pretrain quickstart_byt5

      mrt5 pretrain local_text --set 'task.source={kind: files, path: my_texts}'

      mrt5 pretrain runs/mine-seed42/recipe.yaml --out runs/mine-seed42 --resume
    """
    from mrt5cli.recipe import load

    assigned = training.assignments(overrides, revision)
    chosen = load(recipe, assigned, smoke=smoke)
    if chosen.is_finetuning:
        raise UserError(
            f"{recipe} fine-tunes {chosen.model.start} on {chosen.task.kind}",
            f"mrt5 finetune {recipe}; to train on this task from nothing: --set model.start=scratch",
        )
    given = training.TrainingOptions(assigned, out, resume, smoke, dry_run, device, no_pickle, as_json)
    training.train(chosen, given)
