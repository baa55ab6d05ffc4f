"""Decides a run before anything is spent on it, from the cheapest check to the dearest. Writes nothing."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mrt5cli import runtime as machine
from mrt5cli.errors import RunFailed, UserError
from mrt5cli.metrics.catalog import MEASURED, METRICS
from mrt5cli.places import room
from mrt5cli.recipe import Recipe
from mrt5cli.recipe.differences import decides_numbers, differences
from mrt5cli.rundir import RunDir, cannot_write
from mrt5cli.runtime import Runtime
from mrt5cli.tasks.base import Task, check_held_out
from mrt5cli.text import Tell, announced, byte_size, counted, rounded, say_nothing, say_on_stderr
from mrt5cli.training.start import Start, checkpoint_to_resume, model_to_start

if TYPE_CHECKING:
    from transformers import T5Config

    from mrt5cli.models import MrT5ForConditionalGeneration
    from mrt5cli.recipe.tasks import TaskSection


@dataclass(frozen=True)
class Prepared:
    """What a run trains, ready in memory.

    Attributes:
        start: the model, and where its weights are from.
        example: source and target text of one training example.
        description: of the task and its data, one line.
        micro_batches: an optimizer step, on each process.
    """

    task: Task
    start: Start
    example: tuple[str, str]
    description: str
    micro_batches: int

    @property
    def model(self) -> MrT5ForConditionalGeneration:
        return self.start.model

    @property
    def parameters(self) -> int:
        return self.model.num_parameters()


@dataclass
class TrainingPlan:
    """One run, checked and ready.

    Attributes:
        found: the state of the run's directory that this is a plan for.
        resume_step: the checkpoint to go on from, or None for a fresh start.
        notes: what the user should know, a sentence each.
        prepared: None where the run is finished, and nothing is left to do.
    """

    recipe: Recipe
    run: RunDir
    runtime: Runtime
    found: tuple[bool, list[int], str | None]
    resume_step: int | None
    notes: list[str]
    prepared: Prepared | None = None


@dataclass
class _Place:
    """Where a run stands in its directory."""

    resume_step: int | None = None
    finished: bool = False
    notes: list[str] = field(default_factory=list)


def choose(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    device: str | None = None,
    overwrite: bool = False,
    allow_pickle: bool = True,
) -> TrainingPlan:
    """Check a run, and have its task and model ready.

    Args:
        recipe: what to train.
        out: the run directory.
        resume: go on from the latest checkpoint; without any, start; a finished run is left as it is.
        device: as `runtime.device`.
        overwrite: replace a run that is there.
        allow_pickle: start from weights in pickles too.

    Raises:
        UserError: whatever would keep the run from starting.
    """
    run = RunDir(Path(out))
    found = run.state()
    place = _place(recipe, run, resume=resume, overwrite=overwrite)
    notes = place.notes + recipe.remarks()
    runtime = machine.start(device, precision=recipe.training.precision, seed=recipe.seed)
    plan = TrainingPlan(recipe, run, runtime, found, place.resume_step, [*notes, *runtime.notes])
    if not place.finished:
        plan.prepared = _prepare(plan, allow_pickle)
    return plan


# --- where it stands ----------------------------------------------------------------------------------------


def _place(recipe: Recipe, run: RunDir, *, resume: bool, overwrite: bool) -> _Place:
    """Whether the run is fresh, half done or finished."""
    if machine.processes()[0] > 0 and not resume:
        return _Place()  # the leading process judges the directory, and may have begun to fill it
    if not run.is_run or overwrite:
        _check_writable(run.path)
        return _Place(notes=[f"nothing to resume in {run.path}; starting at step 0"] if resume else [])
    steps = run.saved_steps()
    if not resume:
        away = f"choose another directory with --out, or delete this one: rm -r {shlex.quote(str(run.path))}"
        if run.is_finished:
            raise UserError(f"{run.path} holds a finished run", away)
        saved = f"saved at step {steps[-1]}" if steps else "stopped before its first checkpoint"
        raise UserError(
            f"{run.path} holds an unfinished run, {saved}", f"to go on: {run.resume_command}\n      or {away}"
        )
    notes = _changes(recipe, run)
    if run.is_finished:
        return _Place(finished=True, notes=[*notes, f"{run.path} is finished; nothing to do"])
    if not os.access(run.path, os.W_OK | os.X_OK):
        raise UserError(
            f"cannot write to {run.path}: no permission",
            "copy the run to where you may write, and resume the copy",
        )
    if not steps:
        notes.append(f"{run.path} was stopped before its first checkpoint; starting at step 0")
    return _Place(steps[-1] if steps else None, notes=notes)


def _changes(recipe: Recipe, run: RunDir) -> list[str]:
    """Notes on keys that may change; an error on those that would make another run of it."""
    changed = differences(run.recipe(), recipe)
    fixed = {key: text for key, text in changed.items() if decides_numbers(key, recipe)}
    if fixed:
        lines = "\n".join(f"  {key}: {text}" for key, text in fixed.items())
        raise UserError(
            f"{run.path} was started with another recipe\n{lines}",
            f"go on with its own: {run.resume_command}\n      or train the new one elsewhere with --out",
        )
    return [f"{key}: {text}" for key, text in changed.items() if key != "description"]


def _check_writable(path: Path) -> None:
    """Refuse a place where the run's directory could not be made, before time is spent on anything else."""
    RunDir(path).check_not_foreign()
    ancestor = next(place for place in [path, *path.absolute().parents] if place.exists())
    if not ancestor.is_dir():
        raise cannot_write(path, f"{ancestor} is a file")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise cannot_write(path, "no permission")


# --- what it trains -----------------------------------------------------------------------------------------


def _prepare(plan: TrainingPlan, allow_pickle: bool) -> Prepared:
    """The task and the model, and notes on both."""
    from mrt5cli.models.compiling import compile_blocks
    from mrt5cli.models.recomputation import recompute
    from mrt5cli.tasks import build_task

    recipe, run, runtime, step = plan.recipe, plan.run, plan.runtime, plan.resume_step
    micro_batches = _micro_batches(recipe, runtime.world_size)
    commits: dict[str, str] = {}
    if step is not None:
        from mrt5cli.training.whole import check_whole

        check_whole(run, step, runtime.world_size)
        commits = run.meta().get("data", {})
    if recipe.training.compile:
        machine.check_compiler(runtime.device, "training.compile")
    tell = say_on_stderr if runtime.leads else say_nothing
    with _resumable(plan):
        task = build_task(_at_commit(recipe.task, commits))
        with announced("reading the first training example ...", tell):
            example = task.example("train")
        plan.notes += _check_held_out(recipe, task, look_at_test=runtime.leads)
    _check_commits(recipe, task, commits)
    description = task.describe()  # which reads the rest of what `remarks` speaks of
    plan.notes += task.remarks()
    if step is not None:
        start = checkpoint_to_resume(run.checkpoint(step), step)
    else:
        with _enough_memory(recipe, tell):
            start = model_to_start(recipe.model, allow_pickle=allow_pickle)
    recompute(start.model, recipe.training.recompute)
    if recipe.training.compile:
        compile_blocks(start.model)
    prepared = Prepared(task, start, example, description, micro_batches)
    plan.notes += [*start.notes, *_strains(recipe, runtime, prepared)]
    _check_room(recipe, run, prepared.parameters)
    return prepared


def _micro_batches(recipe: Recipe, world_size: int) -> int:
    """Micro-batches an optimizer step, on each process.

    Raises:
        UserError: they do not come out even.
    """
    training = recipe.training
    at_once = training.device_batch_size * world_size
    if training.batch_size % at_once:
        raise UserError(
            f"training.batch_size {training.batch_size} is not a multiple of {at_once}, the examples that "
            f"{world_size} processes take at once (device_batch_size {training.device_batch_size} each)",
            f"set training.batch_size or training.device_batch_size, e.g. "
            f"--set training.batch_size={-(-training.batch_size // at_once) * at_once}",
        )
    return training.batch_size // at_once


@contextmanager
def _resumable(plan: TrainingPlan) -> Iterator[None]:
    """For a run that is half done, a Hub that is away is no bad input: the same command will do later."""
    try:
        yield
    except UserError as error:
        if plan.resume_step is None or not isinstance(error, RunFailed):
            raise
        kept = f"the checkpoint of step {plan.resume_step} is kept"
        raise RunFailed(error.message, f"{kept}; to go on later: {plan.run.resume_command}") from error


def _at_commit(section: TaskSection, commits: dict[str, str]) -> TaskSection:
    """The task with its Hub dataset at the commit that the run began with, where the recipe names none."""
    source = getattr(section, "source", None)
    if source is None or source.kind != "hub" or source.revision is not None or len(commits) != 1:
        return section
    [commit] = commits.values()
    return section.model_copy(update={"source": source.model_copy(update={"revision": commit})})


def _check_commits(recipe: Recipe, task: Task, commits: dict[str, str]) -> None:
    """Refuse to go on with other data than a run began with."""
    for name, commit in task.commits().items():
        if commits.get(name, commit) != commit:
            chosen = getattr(getattr(recipe.task, "source", None), "revision", None)
            raise UserError(
                f"{name} is at another commit than when the run began: {commit}, not {commits[name]}",
                "start anew with --out"
                if chosen is None
                else f"--set task.source.revision={commits[name]} is what it began with",
            )


def _check_held_out(recipe: Recipe, task: Task, *, look_at_test: bool) -> list[str]:
    """Refuse a validation that could not be made, before hours go into training; note such a test."""
    training, section = recipe.training, recipe.task
    if training.best_metric is not None:
        _check_best(training.best_metric, task, section.kind)
    elif training.eval_steps:
        try:
            check_held_out(task, section, "validation")
        except UserError as error:
            error.message = f"training.eval_steps: {error.message}"
            raise
    if look_at_test and getattr(getattr(section, "source", None), "kind", None) == "files":
        try:
            check_held_out(task, section, "test")
        except UserError as error:
            return [f"mrt5 evaluate will miss something: {error.message}"]
    return []


def _check_best(metric: str, task: Task, kind: str) -> None:
    """Refuse a choice of weights that could not be made."""
    if METRICS[metric].answers and task.answer_length is None:
        *others, last = (each.name for each in MEASURED if each.chooses and not each.answers)
        raise UserError(
            f"training.best_metric: {metric} is measured on generated answers, and in {kind} nothing is "
            "generated",
            f"use {', '.join(others)} or {last}",
        )
    for subset in task.subsets("validation"):
        if next(iter(task.held_out("validation", subset, batch_size=1, limit=1)), None) is None:
            raise UserError(
                f"training.best_metric: there are no validation examples for {subset!r} to measure it on",
                "give validation data, or leave training.best_metric and training.patience out",
            )


# --- what it takes ------------------------------------------------------------------------------------------


@contextmanager
def _enough_memory(recipe: Recipe, tell: Tell) -> Iterator[None]:
    """While a model is made: refuse one from nothing whose weights alone are more than the machine holds."""
    if recipe.model.start != "scratch":
        yield
        return
    from mrt5cli.models import build

    count = build(recipe.model, device="meta").num_parameters()
    there = machine.memory()
    if there is not None and 4 * count > there:
        raise UserError(
            f"model.shape: the weights of this model alone take {byte_size(4 * count)}, and this machine has "
            f"{byte_size(there)} of memory",
            "make model.shape smaller",
        )
    with announced(f"building a model of {rounded(count)} parameters ...", tell):
        yield


def _strains(recipe: Recipe, runtime: Runtime, prepared: Prepared) -> list[str]:
    """What will be slow, or probably too much for this machine, a sentence each."""
    training, device, config, found = recipe.training, runtime.device, prepared.model.config, []
    dropped = config.dropout_rate if config.attention_dropout_rate is None else config.attention_dropout_rate
    if device.type == "cpu" and dropped:
        found.append(
            "attention weights are dropped in training, which no fused kernel does on a CPU; "
            "model.attention_dropout: 0 trains faster, and not quite as the paper does"
        )
    workers, cores = training.data_workers * runtime.world_size, machine.usable_cpus()
    if workers > cores:
        found.append(
            f"training.data_workers makes {workers:,} processes on {counted(cores, 'core')}: more than cores "
            "prepare nothing faster, and each takes memory"
        )
    there = machine.memory(device)
    weights, forward = 4 * 4 * prepared.parameters, _forward_size(recipe, config)
    if there is not None and weights + forward > there:
        found.append(
            f"training takes {byte_size(weights)} for weights, gradients and Adam's moments, and more than "
            f"{byte_size(forward)} for a forward pass of {counted(training.device_batch_size, 'example')} of "
            f"full length; {device} has {byte_size(there)}"
        )
    return found


def _forward_size(recipe: Recipe, config: T5Config) -> int:
    """Bytes of the hidden states that the encoder keeps for the backward pass: one a block is the least."""
    training, shortener = recipe.training, recipe.model.shortener
    shortened = shortener.pools or not shortener.reads_source
    blocks = getattr(shortener, "layer", 0) if shortened else config.num_layers
    bytes_each = 2 if training.precision == "bf16" else 4
    return int(bytes_each * blocks * training.device_batch_size * recipe.input_length * config.d_model)


def _check_room(recipe: Recipe, run: RunDir, parameters: int) -> None:
    """Weights, two moments of Adam, 4 bytes each: a checkpoint. Kept ones, one being written, the model."""
    training, one = recipe.training, 3 * 4 * parameters
    kept = min(training.keep_checkpoints, -(-training.max_steps // training.save_steps)) + 1
    # A kept checkpoint may ask for best weights of its own, without the moments.
    needed = one * kept + one // 3 * (1 if training.best_metric is None else 1 + kept)
    free = room(run.path)
    if free < needed:
        raise UserError(
            f"{run.path}: checkpoints will need {byte_size(needed)}, {byte_size(free)} are free",
            "choose another disk with --out, or keep fewer: --set training.keep_checkpoints=1",
        )
