"""Plans a run before time is spent on it, from the cheapest check to the most expensive; writes nothing."""

from __future__ import annotations

import importlib.util
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrt5cli import runtime as machine
from mrt5cli.errors import HubAway, UserError
from mrt5cli.extras import how_to_install
from mrt5cli.metrics.catalog import METRICS, is_measured
from mrt5cli.metrics.loaded import check_scripts
from mrt5cli.places import check_writable, room
from mrt5cli.recipe import Recipe
from mrt5cli.recipe.differences import decides_numbers, differences, refused_in_a_segment
from mrt5cli.recipe.schema import TrainingSection
from mrt5cli.recipe.tasks import TaskSection
from mrt5cli.recipe.words import either
from mrt5cli.rundir import DAMAGED, RunDir, RunState
from mrt5cli.tasks.base import Task, build_task, check_held_out
from mrt5cli.text import Tell, announced, byte_size, counted, say_nothing, say_on_stderr
from mrt5cli.training.estimates import saved_bytes
from mrt5cli.training.forecast import forecast
from mrt5cli.training.plan import Prepared, RunOptions, TrainingPlan
from mrt5cli.training.plan_text import facts
from mrt5cli.training.start import check_start, checkpoint_to_resume, model_to_start

if TYPE_CHECKING:
    from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration
    from mrt5cli.models.fast.choice import Choice


def choose(recipe: Recipe, options: RunOptions) -> TrainingPlan:
    """Check a run, and load its task and model.

    Raises:
        UserError: anything that would keep the run from starting.
    """
    if recipe.training.lora is not None and importlib.util.find_spec("peft") is None:
        raise UserError(
            "training.lora needs the package peft, which is not installed", how_to_install("peft")
        )
    if lacking := recipe.training.lacks():
        raise UserError(f"training.report_to {lacking[0]}", lacking[1])
    run = RunDir(options.out)
    # On a fresh start only the leading process checks the directory; it may already have written to it.
    judges = options.resume or machine.leads()
    if machine.leads():
        run.check_free()
    before = run.state() if judges and not options.overwrite else RunState()
    since = recipe.training.continues_from
    begins = before.finished and options.resume and since > 0 and before.last_step == since
    changed = _segment(run, recipe) if begins else {}
    if begins:
        notes = [f"{key}: {text}" for key, text in changed.items()]
    else:
        notes = _resumption(run, recipe, before, options.resume)
    finished = before.finished and not begins
    if judges and not finished:
        run.check_not_foreign()
        check_writable(run.path, "folder")
    notes += [*recipe.remarks(), *machine.ignored_launchers()]
    training = recipe.training
    runtime = machine.start(
        options.device, precision=training.precision, sharding=training.sharding, seed=recipe.seed
    )
    if training.sharding == "fsdp" and runtime.world_size == 1:
        notes.append("training.sharding: fsdp has no effect with a single process")
    if finished:
        return TrainingPlan(recipe, options, runtime, before, None, notes)
    step, damaged = _place_to_resume(run, recipe, before, runtime.world_size, notes)
    plan = TrainingPlan(recipe, options, runtime, before, step, notes, damaged, changed)
    notes += _learning_rate_note(plan)
    prepared = _prepare(plan)
    expected = forecast(recipe, prepared.start.model, runtime, prepared.attention, done=step or 0)
    plan = replace(plan, prepared=prepared, forecast=expected, facts=facts(plan, prepared, expected))
    # The task has remarks only after its description, made by `facts`, has read data.
    notes += [*prepared.task.remarks(), *prepared.start.notes, *expected.advice(), *expected.notes()]
    return plan


# --- the directory ------------------------------------------------------------------------------------------


def _resumption(run: RunDir, recipe: Recipe, before: RunState, resume: bool) -> list[str]:
    """Notes on resuming an existing run; refuses one that may not be resumed."""
    if not before.meta:
        return [f"nothing to resume in {run.path}; starting at step 0"] if resume else []
    if not resume:
        away = f"choose another directory with --out, or delete this one: rm -r {shlex.quote(str(run.path))}"
        if before.finished:
            raise UserError(f"{run.path} contains a finished run", away)
        last = f"saved at step {before.saved[-1]}" if before.saved else "without a checkpoint"
        hint = f"to resume: {run.resume_command}\n      or {away}"
        raise UserError(f"{run.path} contains an unfinished run, {last}", hint)
    notes = _changes(run, recipe)
    if before.finished:
        notes.append(f"{run.path} is finished; nothing to do")
    elif not before.saved:
        # A run that cannot save its first checkpoint ends there, so later metrics mean that one existed.
        logged = max((row["step"] for row in run.metrics()), default=0)
        if logged > (every := run.recipe().training.save_steps):
            raise UserError(
                f"{run.path} has lost its checkpoints: its metrics reach step {logged}, and a checkpoint was "
                f"saved every {every} steps",
                "restore them from a backup; to start over, choose another directory with --out, or delete "
                f"this one: rm -r {shlex.quote(str(run.path))}",
            )
        notes.append(f"{run.path} has no checkpoint; starting at step 0")
    return notes


def _segment(run: RunDir, recipe: Recipe) -> dict[str, str]:
    """The keys that the new segment of a finished run changes, each with both values.

    Raises:
        UserError: some of them would change the model or the data.
    """
    before = run.recipe()
    changed = differences(before, recipe)
    refused = {key: refused_in_a_segment(key, before, recipe) for key in changed}
    if fixed := [f"  {key}: {changed[key]}; {why}" for key, why in refused.items() if why]:
        raise UserError(f"{run.path} cannot continue with these settings changed", _from_weights(run), fixed)
    expected = ("training.max_steps", "training.continues_from", "training.warmup_steps", "description")
    return {key: text for key, text in changed.items() if key not in expected}


def _from_weights(run: RunDir) -> str:
    """The hint for a run that cannot continue in its own directory."""
    continued = " --set training.continues_from=0" if run.segments.exists() else ""
    start = f"--from {run.path} --out DIR"
    return f"train another run from its weights: mrt5 finetune {run.recipe_path}{continued} {start}"


def _last_checkpoint_lost(run: RunDir, step: int, why: str | None = None) -> UserError:
    """The error for a finished run whose last checkpoint is damaged (`why`) or missing."""
    lost = why or f"{run.path} has no checkpoint of step {step}, from which to continue"
    return UserError(
        f"{lost}: optimizer, controller and position in the data are lost",
        f"restore the checkpoint from a backup; or {_from_weights(run)}",
    )


def _learning_rate_note(plan: TrainingPlan) -> list[str]:
    """A note if a new segment makes the learning rate jump."""
    now, run = plan.recipe.training, plan.run
    if plan.resume_step is None or not plan.begins_segment:
        return []
    rates = [row["learning_rate"] for row in run.metrics() if "learning_rate" in row]
    if not rates or (rates[-1] == now.learning_rate and not now.warmup_steps):
        return []
    how = f"jumps to {now.learning_rate:g}; --set training.warmup_steps=N raises it over N steps instead"
    if now.warmup_steps:
        how = f"rises again from 0 to {now.learning_rate:g} over {now.warmup_steps} steps"
    return [f"the learning rate ended at {rates[-1]:g}, and {how}"]


def _place_to_resume(
    run: RunDir, recipe: Recipe, before: RunState, processes: int, notes: list[str]
) -> tuple[int | None, list[str]]:
    """The step to resume from (None: a fresh start), and a sentence, also for `notes`, on each damage."""
    from mrt5cli.training.whole import newest_whole

    if not before.saved and (since := recipe.training.continues_from):
        if before.meta:
            raise _last_checkpoint_lost(run, since)
        raise UserError(
            f"training.continues_from: {since} continues a finished run, and {run.path} contains none",
            "to start over, --set training.continues_from=0, or use a recipe from that run's segments/",
        )
    if not before.saved:
        return None, []
    step, wrote, passed_over = newest_whole(run)
    assert step is not None, "there are checkpoints"
    if step < (since := recipe.training.continues_from):
        raise _last_checkpoint_lost(run, since, passed_over.get(since))
    damaged = [
        f"{why}; resuming from step {step}, and keeping this one as {DAMAGED}{run.checkpoint(later).name}"
        for later, why in passed_over.items()
    ]
    damaged += [sentence for sentence in (run.recipe_changed(), run.metrics_lost(step)) if sentence]
    notes += damaged
    if wrote != processes:
        notes.append(
            f"{counted(wrote, 'process', 'processes')} wrote the checkpoint, and {processes} resume it: data "
            "and loss curve continue; dropout, noise and hard-deleted batches use new random numbers"
        )
    return step, damaged


def _changes(run: RunDir, recipe: Recipe) -> list[str]:
    """Notes on changed keys; refuses those that determine the run's numbers."""
    before = run.recipe()
    if before.training.continues_from != recipe.training.continues_from and not machine.leads():
        return []  # the leading process has checked the recipe and is writing the new one
    changed = differences(before, recipe)
    fixed = [f"  {key}: {text}" for key, text in changed.items() if decides_numbers(key, recipe)]
    if fixed:
        raise UserError(
            f"{run.path} was started with another recipe",
            f"resume with its own recipe: {run.resume_command}\n      or choose another directory with --out",
            fixed,
        )
    return [f"{key}: {text}" for key, text in changed.items() if key != "description"]


# --- what is trained ----------------------------------------------------------------------------------------


def _prepare(plan: TrainingPlan) -> Prepared:
    from mrt5cli.models.compiling import compile_blocks
    from mrt5cli.models.recomputation import recompute
    from mrt5cli.training.lora import add_lora

    model, training, runtime = plan.recipe.model, plan.recipe.training, plan.runtime
    resumed = plan.checkpoint is not None
    at_once, micro_batches = _division(training, runtime.world_size, resumed=resumed)
    if plan.checkpoint is None:
        check_start(model.start)
    say = say_on_stderr if runtime.leads else say_nothing
    task, example = _task(plan, say)
    with announced("loading the model ...", say):
        if plan.checkpoint is None:
            start = model_to_start(model, allow_pickle=plan.options.allow_pickle)
        else:
            start = checkpoint_to_resume(plan.checkpoint)
        if training.lora is not None:
            add_lora(start.model, training.lora, plan.checkpoint)
    recompute(start.model, training.recompute)
    if training.compile:
        compile_blocks(start.model)
    _check_room(plan.run.path, training, start.model)
    attention = _attention(start.model.config, plan)
    plan.notes.extend(_other_attention(start.model.config, plan, attention))
    return Prepared(task, example, start, at_once, micro_batches, attention)


def _attention(config: MrT5Config, plan: TrainingPlan) -> Choice:
    """The attention implementation for training; on a GPU, this checks our kernels."""
    import torch

    from mrt5cli.models.fast import choice

    dtype = torch.bfloat16 if plan.runtime.precision == "bf16" else torch.float32
    loss = plan.recipe.loss
    score_per = loss.score_per if loss.score_coefficient > 0 else None
    device, drops = plan.runtime.device, config.drops_weights
    return choice.choose(config, device, dtype, drops=drops, score_per=score_per, trains=True)


def _other_attention(config: MrT5Config, plan: TrainingPlan, now: Choice) -> list[str]:
    """A note if a resumed run changes its attention implementation, and with it the dropped weights."""
    before = "" if plan.resume_step is None else plan.before.meta.get("attention", "")
    if not before or not config.drops_weights or before.split()[0] == now.implementation:
        return []
    return [
        f"attention was computed by {before} and is now computed by {now}: dropout drops other weights, so "
        "the numbers will differ from those of an uninterrupted run"
    ]


def _task(plan: TrainingPlan, say: Tell) -> tuple[Task, tuple[str, str]]:
    """The task, with the data that the run started with, and one training example."""
    section = plan.recipe.task
    commits = {} if plan.resume_step is None else plan.before.meta.get("data", {})
    try:
        task = build_task(_at_commit(section, commits))
        with announced("reading the first training example ...", say):
            example = task.example("train")
        _check_validation(plan.recipe.training, section, task)
    except UserError as error:
        if plan.resume_step is None or not isinstance(error, HubAway):
            raise
        kept = f"the checkpoint of step {plan.resume_step} is kept"
        first, *more = error.message.split("\n")
        raise UserError(first, f"{kept}; to resume later: {plan.run.resume_command}", more) from error
    for name, commit in task.commits().items():
        if commits.get(name, commit) != commit:
            lone = getattr(section, "source", None) is not None
            pinned = "--set task.source.revision=" if lone else "set revision in task.sources to "
            raise UserError(
                f"{name} is at commit {commit}, but the run started with {commits[name]}",
                f"{pinned}{commits[name]}, or start another run with --out",
            )
    return task, example


def _division(training: TrainingSection, world_size: int, *, resumed: bool) -> tuple[int, int]:
    """The examples that a process reads at a time, and how many times per optimizer step.

    Raises:
        UserError: the processes cannot divide `batch_size` without a remainder.
    """
    by_tokens = training.batch_tokens is not None
    whole, size = training.batch_size, 1 if by_tokens else training.device_batch_size
    at_once = size * world_size
    if whole % at_once == 0:
        return (whole // world_size, 1) if by_tokens else (size, whole // at_once)
    if not resumed:
        others = "" if by_tokens else " or training.device_batch_size"
        way = f"e.g. --set training.batch_size={-(-whole // at_once) * at_once}"
        hint = f"set training.batch_size{others}, {way}"
    elif whole % world_size == 0:
        fits = next(fewer for fewer in range(size, 0, -1) if whole % (fewer * world_size) == 0)
        hint = f"--set training.device_batch_size={fits}"
    else:
        hint = "resume with a number of processes that divides training.batch_size"
    share = "" if by_tokens else f" times device_batch_size {size}"
    raise UserError(
        f"training.batch_size {whole} is not a multiple of {at_once} "
        f"({counted(world_size, 'process', 'processes')}{share})",
        hint,
    )


def _at_commit(section: TaskSection, commits: dict[str, str]) -> TaskSection:
    """The task with its Hub datasets pinned to the run's commits, unless the recipe names a revision."""
    if mixture := getattr(section, "sources", ()):
        return section.model_copy(update={"sources": [_at_one(one, commits) for one in mixture]})
    source = getattr(section, "source", None)
    return section if source is None else section.model_copy(update={"source": _at_one(source, commits)})


def _at_one(source: Any, commits: dict[str, str]) -> Any:
    if source.kind != "hub" or source.revision is not None:
        return source
    only = next(iter(commits.values())) if len(commits) == 1 else None
    return source.model_copy(update={"revision": commits.get(source.name, only)})


def _check_validation(training: TrainingSection, section: TaskSection, task: Task) -> None:
    """Refuse validation or metrics that could not be computed, before hours go into training."""
    metric = training.best_metric
    can = partial(is_measured, measures=task.measures, choices=task.choices is not None)
    measured = [name for name, each in METRICS.items() if each.chooses and can(name)]
    if metric is not None and metric not in measured:
        raise UserError(
            f"training.best_metric: task {section.kind} does not measure {metric}", f"use {either(measured)}"
        )
    check_scripts(task.measures)
    if training.eval_steps:
        check_held_out(task, "validation")


def _check_room(path: Path, training: TrainingSection, model: MrT5ForConditionalGeneration) -> None:
    """Refuse a disk without room for the kept checkpoints, the one being written, and the model."""
    weights, checkpoint = (saved_bytes(model, moments=moments) for moments in (False, True))
    kept = min(training.keep_checkpoints, -(-training.max_steps // training.save_steps)) + 1
    needed, free = checkpoint * kept + weights, room(path)
    if free < needed:
        raise UserError(
            f"{path}: checkpoints will need {byte_size(needed)}, and only {byte_size(free)} are free",
            "choose another disk with --out, or keep fewer checkpoints: --set training.keep_checkpoints=1",
        )
