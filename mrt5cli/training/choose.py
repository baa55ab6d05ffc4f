"""Decides a run before anything is spent on it, from the cheapest check to the dearest. Writes nothing."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mrt5cli import runtime as machine
from mrt5cli.errors import HubAway, UserError
from mrt5cli.metrics.catalog import MEASURED, METRICS
from mrt5cli.places import check_writable, room
from mrt5cli.recipe import Recipe
from mrt5cli.recipe.differences import decides_numbers, differences
from mrt5cli.recipe.schema import TrainingSection
from mrt5cli.recipe.tasks import TaskSection
from mrt5cli.rundir import RunDir
from mrt5cli.runtime import Runtime
from mrt5cli.tasks.base import Task, build_task, check_held_out
from mrt5cli.text import Tell, announced, byte_size, say_nothing, say_on_stderr
from mrt5cli.training.plan_text import facts
from mrt5cli.training.start import Start, check_start, checkpoint_to_resume, model_to_start


@dataclass(frozen=True)
class Prepared:
    """What a run trains, ready in memory.

    Attributes:
        start: the model, and where its weights are from.
        micro_batches: an optimizer step, on each process.
        facts: the plan in words: names, and a line or more each.
    """

    task: Task
    start: Start
    micro_batches: int
    facts: dict[str, str]


@dataclass(frozen=True)
class TrainingPlan:
    """One run, checked and ready.

    Attributes:
        found: the state of the run's directory that this is a plan for.
        meta: what meta.json says of a run that is resumed; empty for a fresh start.
        resume_step: the checkpoint to resume from, or None for a fresh start.
        notes: what the user should know, a sentence each.
        prepared: None where the run is finished, and nothing is left to do.
    """

    recipe: Recipe
    run: RunDir
    runtime: Runtime
    found: tuple[bool, list[int], dict[str, Any]]
    meta: dict[str, Any]
    resume_step: int | None
    notes: list[str]
    prepared: Prepared | None

    @property
    def text(self) -> str:
        """What is printed before a run starts."""
        facts = {} if self.prepared is None else self.prepared.facts
        lines = [f"{name:<9}{fact}".replace("\n", f"\n{'':<9}") for name, fact in facts.items()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    @property
    def document(self) -> dict[str, Any]:
        """The plan for scripts."""
        ready = self.prepared
        facts = {} if ready is None else ready.facts
        return {
            "status": "finished" if ready is None else "planned",
            "run": str(self.run.path),
            "resume_step": self.resume_step,
            "parameters": None if ready is None else ready.start.model.num_parameters(),
            **{name: fact for name, fact in facts.items() if name not in ("run", "output")},
            "notes": self.notes,
            "recipe": self.recipe.model_dump(mode="json"),
        }


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
        out: the run directory.
        resume: continue from the latest checkpoint; without any, start; a finished run is left as it is.
        device: as `runtime.device`.
        overwrite: replace a run that exists.
        allow_pickle: start from weights in pickles too.

    Raises:
        UserError: whatever would keep the run from starting.
    """
    run = RunDir(Path(out))
    found = is_run, saved, meta = run.state()
    # The leading process judges the directory, and may have begun to fill it.
    judged = resume or machine.processes()[0] == 0
    notes: list[str] = []
    if not is_run or not judged or overwrite:
        saved, meta = [], {}
        if resume:
            notes.append(f"nothing to resume in {run.path}; starting at step 0")
    elif not resume:
        raise _not_resumed(run, saved)
    else:
        notes += _changes(run, recipe)
    finished = meta.get("status") == "finished"
    if finished:
        notes.append(f"{run.path} is finished; nothing to do")
    elif meta and not saved:
        notes.append(f"{run.path} was stopped before its first checkpoint; starting at step 0")
    if judged and not finished:
        run.check_not_foreign()
        check_writable(run.path, "folder")
    notes += recipe.remarks()
    runtime = machine.start(device, precision=recipe.training.precision, seed=recipe.seed)
    step = saved[-1] if saved and not finished else None
    plan = TrainingPlan(recipe, run, runtime, found, meta, step, notes, prepared=None)
    return plan if finished else replace(plan, prepared=_prepare(plan, allow_pickle))


# --- the directory ------------------------------------------------------------------------------------------


def _not_resumed(run: RunDir, saved: list[int]) -> UserError:
    away = f"choose another directory with --out, or delete this one: rm -r {shlex.quote(str(run.path))}"
    if run.is_finished:
        return UserError(f"{run.path} holds a finished run", away)
    last = f"saved at step {saved[-1]}" if saved else "stopped before its first checkpoint"
    hint = f"to go on: {run.resume_command}\n      or {away}"
    return UserError(f"{run.path} holds an unfinished run, {last}", hint)


def _changes(run: RunDir, recipe: Recipe) -> list[str]:
    """Notes on keys that may change; those that would make another run of it are refused."""
    changed = differences(run.recipe(), recipe)
    fixed = [f"  {key}: {text}" for key, text in changed.items() if decides_numbers(key, recipe)]
    if fixed:
        raise UserError(
            "\n".join([f"{run.path} was started with another recipe", *fixed]),
            f"go on with its own: {run.resume_command}\n      or train the new one elsewhere with --out",
        )
    return [f"{key}: {text}" for key, text in changed.items() if key != "description"]


# --- what is trained ----------------------------------------------------------------------------------------


def _prepare(plan: TrainingPlan, allow_pickle: bool) -> Prepared:
    """The task and the model; adds notes on both to the plan."""
    from mrt5cli.models.compiling import compile_blocks
    from mrt5cli.models.recomputation import recompute
    from mrt5cli.training.whole import check_whole

    recipe, run, runtime, step = plan.recipe, plan.run, plan.runtime, plan.resume_step
    training = recipe.training
    micro_batches = _micro_batches(training, runtime.world_size)
    if step is not None:
        check_whole(run.checkpoint(step), runtime.world_size)
    else:
        check_start(recipe.model.start)
    tell = say_on_stderr if runtime.leads else say_nothing
    task, example = _task(plan, tell)
    with announced("loading the model ...", tell):
        if step is not None:
            start = checkpoint_to_resume(run.checkpoint(step), step)
        else:
            start = model_to_start(recipe.model, allow_pickle=allow_pickle)
    recompute(start.model, training.recompute)
    if training.compile:
        compile_blocks(start.model)
    _check_room(run.path, training, start.model.num_parameters())
    told = facts(recipe, run, task, example, start, micro_batches, runtime)
    # The task's remarks speak of what its description has read.
    plan.notes.extend([*task.remarks(), *start.notes])
    config = start.model.config
    dropped = config.dropout_rate if config.attention_dropout_rate is None else config.attention_dropout_rate
    if runtime.device.type == "cpu" and dropped:
        plan.notes.append(
            "attention weights are dropped in training, which no fused kernel does on a CPU; "
            "model.attention_dropout: 0 trains faster, and not quite as the paper does"
        )
    needed, memory = 4 * 4 * start.model.num_parameters(), machine.memory(runtime.device)
    if needed > memory:
        plan.notes.append(
            f"weights, gradients and Adam's moments alone take {byte_size(needed)}; {runtime.device} has "
            f"{byte_size(memory)}"
        )
    return Prepared(task, start, micro_batches, told)


def _task(plan: TrainingPlan, tell: Tell) -> tuple[Task, tuple[str, str]]:
    """The task, with the data that the run began with, and a training example of it."""
    section = plan.recipe.task
    commits = {} if plan.resume_step is None else plan.meta.get("data", {})
    try:
        task = build_task(_at_commit(section, commits))
        with announced("reading the first training example ...", tell):
            example = task.example("train")
        _check_validation(plan.recipe.training, section, task)
    except UserError as error:
        if plan.resume_step is None or not isinstance(error, HubAway):
            raise
        later = (
            f"the checkpoint of step {plan.resume_step} is kept; to go on later: {plan.run.resume_command}"
        )
        raise UserError(error.message, later) from error
    for name, commit in task.commits().items():
        if commits.get(name, commit) != commit:
            raise UserError(
                f"{name} is at another commit than when the run began: {commit}, not {commits[name]}",
                f"--set task.source.revision={commits[name]}, or start anew with --out",
            )
    return task, example


def _micro_batches(training: TrainingSection, world_size: int) -> int:
    """Micro-batches an optimizer step, on each process; a rest is refused."""
    at_once = training.device_batch_size * world_size
    if training.batch_size % at_once:
        raise UserError(
            f"training.batch_size {training.batch_size} is not a multiple of {at_once}, the examples that "
            f"{world_size} processes take at once (device_batch_size {training.device_batch_size} each)",
            f"set training.batch_size or training.device_batch_size, e.g. "
            f"--set training.batch_size={-(-training.batch_size // at_once) * at_once}",
        )
    return training.batch_size // at_once


def _at_commit(section: TaskSection, commits: dict[str, str]) -> TaskSection:
    """The task with its Hub dataset at the commit that the run began with, where the recipe names none."""
    source = getattr(section, "source", None)
    if source is None or source.kind != "hub" or source.revision is not None or len(commits) != 1:
        return section
    [commit] = commits.values()
    return section.model_copy(update={"source": source.model_copy(update={"revision": commit})})


def _check_validation(training: TrainingSection, section: TaskSection, task: Task) -> None:
    """Refuse a validation that could not be made, before hours go into training."""
    metric = training.best_metric
    if metric is not None and METRICS[metric].answers and task.answer_length is None:
        *others, last = (each.name for each in MEASURED if each.chooses and not each.answers)
        raise UserError(
            f"training.best_metric: {metric} is measured on generated answers, and in {section.kind} nothing "
            "is generated",
            f"use {', '.join(others)} or {last}",
        )
    if training.eval_steps:
        check_held_out(task, section, "validation")


def _check_room(path: Path, training: TrainingSection, parameters: int) -> None:
    """Refuse a disk without room for the checkpoints that are kept, one being written, and the model."""
    checkpoint = 3 * 4 * parameters  # weights and two moments of Adam, 4 bytes each
    kept = min(training.keep_checkpoints, -(-training.max_steps // training.save_steps)) + 1
    needed, free = checkpoint * kept + checkpoint // 3, room(path)
    if free < needed:
        raise UserError(
            f"{path}: checkpoints will need {byte_size(needed)}, {byte_size(free)} are free",
            "choose another disk with --out, or keep fewer: --set training.keep_checkpoints=1",
        )
