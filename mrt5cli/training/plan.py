"""Before a run: everything that can be checked is checked, and what will happen is said."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrt5cli import own_code
from mrt5cli import runtime as machine
from mrt5cli.data.characters import beginning
from mrt5cli.errors import RunFailed, UserError
from mrt5cli.hub import OutOfPatience
from mrt5cli.metrics.catalog import MEASURED, METRICS
from mrt5cli.places import room
from mrt5cli.recipe import Recipe
from mrt5cli.recipe.differences import decides_numbers, differences
from mrt5cli.rundir import RunDir
from mrt5cli.tasks.base import check_held_out
from mrt5cli.text import Tell, announced, byte_size, counted, say_nothing, say_on_stderr
from mrt5cli.training.arguments import accumulation
from mrt5cli.training.start import Start, model_of_checkpoint, model_to_start

SHOWN = 100
"""Characters of an example's source and of its target."""


@dataclass
class Plan:
    """One run, checked and ready.

    Attributes:
        resume_step: the checkpoint to go on from, or None for a fresh start.
        finished: there is nothing left to do; task and model are not there then.
        notes: what the user should know, a sentence each.
        description: of the task, one line.
        example: source and target text of one training example.
        start: what the model starts from, where it is not a checkpoint of the run.
        found: the state of the run's directory that this is a plan for.
    """

    recipe: Recipe
    run: RunDir
    resume_step: int | None
    finished: bool
    notes: list[str] = field(default_factory=list)
    runtime: Any = None
    task: Any = None
    model: Any = None
    description: str = ""
    example: tuple[str, str] = ("", "")
    start: Start | None = None
    found: Any = None

    @property
    def parameters(self) -> int:
        return sum(weight.numel() for weight in self.model.parameters())

    def facts(self) -> dict[str, str]:
        """The plan in words, a line each."""
        if self.finished:
            return {}
        training, config = self.recipe.training, self.model.config
        shortener = self.recipe.model.shortener.placed(planned=True)
        start = "random weights" if self.recipe.model.start == "scratch" else self.recipe.model.start
        if self.start is not None and self.start.commit is not None:
            start += f" at {self.start.commit[:12]}"
        if self.start is not None and self.start.carried is not None:
            start += f", {self.start.carried} included"
        if self.resume_step is not None:
            start = f"checkpoint of step {self.resume_step}"
        micro = accumulation(training, self.runtime.world_size)
        accumulated = f", {micro} x {training.device_batch_size} accumulated" if micro > 1 else ""
        warmup = f" after {training.warmup_steps} warm-up steps" if training.warmup_steps else ""
        source, target = self.example
        return {
            "run": f"{self.recipe.name}: {self.recipe.description}",
            "task": self.description,
            **({"splits": "\n".join(splits)} if (splits := self.task.splits()) else {}),
            "example": f"{beginning(source, SHOWN)}\n-> {beginning(target, SHOWN)}",
            "model": f"{_count(self.parameters)} parameters, width {config.d_model}, {config.num_layers} + "
            f"{config.num_decoder_layers} layers, {shortener}; from {start}",
            "loss": _loss(self.recipe),
            "steps": f"{training.max_steps:,} of {training.batch_size} examples{accumulated}; learning rate "
            f"{training.learning_rate:g}, {training.schedule}{warmup}",
            **({"best": _best(self.recipe)} if training.best_metric else {}),
            "device": self.runtime.sentence(),
            "output": str(self.run.path),
        }

    def text(self) -> str:
        """What is printed before the run starts."""
        lines: list[str] = []
        for name, fact in self.facts().items():
            first, *rest = fact.split("\n")
            lines += [f"{name:<9}{first}", *(f"{'':<9}{line}" for line in rest)]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    def document(self) -> dict[str, Any]:
        """The plan for scripts."""
        return {
            "status": "finished" if self.finished else "planned",
            "run": str(self.run.path),
            "resume_step": self.resume_step,
            "parameters": None if self.finished else self.parameters,
            **{name: fact for name, fact in self.facts().items() if name not in ("run", "output")},
            "notes": self.notes,
            "recipe": self.recipe.model_dump(mode="json"),
        }


def make_plan(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    device: str | None = None,
    overwrite: bool = False,
    allow_pickle: bool = True,
) -> Plan:
    """Check a run from the cheapest to the dearest, and have its task and model ready. Writes nothing.

    Args:
        recipe: what to train.
        out: the run directory.
        resume: go on from the latest checkpoint; without any, start.
        device: as `runtime.device`.
        overwrite: replace a run that is there.
        allow_pickle: start from weights in pickles too.

    Raises:
        UserError: whatever would keep the run from starting.
    """
    run = RunDir(Path(out))
    found = run.state()
    plan = _place(recipe, run, resume=resume, overwrite=overwrite)
    plan.found = found
    plan.notes += recipe.remarks()
    plan.runtime = machine.start(device, precision=recipe.training.precision, seed=recipe.seed)
    plan.notes += plan.runtime.notes
    if plan.finished:
        return plan
    accumulation(recipe.training, plan.runtime.world_size)
    if plan.resume_step is not None:
        from mrt5cli.training.whole import check_whole

        check_whole(run, plan.resume_step, plan.runtime.world_size)
    if recipe.training.compile:
        machine.check_compiler(plan.runtime.device, "training.compile")

    from mrt5cli.tasks import build_task

    before = run.meta().get("data", {}) if plan.resume_step is not None else {}
    tell = say_on_stderr if plan.runtime.leads else say_nothing
    with _hub_away_while_resuming(plan):
        plan.task = build_task(_at_commit(recipe.task, before))
        with announced("reading the first training example ...", tell):
            plan.example = plan.task.example("train")
        _check_held_out(plan)
    _check_commits(plan, before)
    plan.description = plan.task.describe()  # which reads the rest of what `remarks` speaks of
    plan.notes += plan.task.remarks()
    if plan.resume_step is not None:
        plan.model = model_of_checkpoint(run.checkpoint(plan.resume_step))
    else:
        with _enough_memory(recipe, tell):
            plan.start = model_to_start(recipe.model, allow_pickle=allow_pickle)
        plan.model = plan.start.model
        plan.notes += plan.start.notes
    if plan.runtime.device.type == "cpu" and _drops_attention(plan.model.config):
        plan.notes.append(
            "attention weights are dropped in training, which no fused kernel does on a CPU; "
            "model.attention_dropout: 0 trains faster, and not quite as the paper does"
        )
    plan.notes += strains(plan)
    _check_room(plan)
    return plan


@contextmanager
def _hub_away_while_resuming(plan: Plan) -> Iterator[None]:
    """For a run that is half done, a Hub that is away is no bad input: the same command will do later."""
    try:
        yield
    except UserError as error:
        away = isinstance(error, RunFailed) or isinstance(error.__cause__, OutOfPatience)
        if plan.resume_step is None or not away:
            raise
        kept = f"the checkpoint of step {plan.resume_step} is kept"
        raise RunFailed(error.message, f"{kept}; to go on later: {continue_command(plan.run)}") from error


def _drops_attention(config: Any) -> bool:
    rate = config.attention_dropout_rate
    return bool(config.dropout_rate if rate is None else rate)


def _place(recipe: Recipe, run: RunDir, *, resume: bool, overwrite: bool) -> Plan:
    """Where the run stands: fresh, half done or finished."""
    fresh = Plan(recipe, run, None, False)
    if machine.processes()[0] > 0 and not resume:
        return fresh  # the leading process judges the directory, and may have begun to fill it
    if not run.is_run or overwrite:
        _check_writable(run.path)
        if resume:
            fresh.notes.append(f"nothing to resume in {run.path}; starting at step 0")
        return fresh
    if not resume:
        away = f"choose another directory with --out, or delete this one: rm -r {shlex.quote(str(run.path))}"
        if run.is_finished:
            raise UserError(f"{run.path} holds a finished run", away)
        steps = run.saved_steps()
        saved = f"saved at step {steps[-1]}" if steps else "stopped before its first checkpoint"
        raise UserError(
            f"{run.path} holds an unfinished run, {saved}",
            f"to go on: {continue_command(run)}\n      or {away}",
        )
    notes = _check_same(recipe, run)
    if run.is_finished:
        return Plan(recipe, run, None, True, [*notes, f"{run.path} is finished; nothing to do"])
    if not os.access(run.path, os.W_OK | os.X_OK):
        raise UserError(
            f"cannot write to {run.path}: no permission",
            "copy the run to where you may write, and resume the copy",
        )
    steps = run.saved_steps()
    if not steps:
        notes.append(f"{run.path} was stopped before its first checkpoint; starting at step 0")
    return Plan(recipe, run, steps[-1] if steps else None, False, notes)


def _check_same(recipe: Recipe, run: RunDir) -> list[str]:
    """Notes on keys that may change; an error on those that would make another run of it."""
    changed = differences(run.recipe(), recipe)
    fixed = {key: text for key, text in changed.items() if decides_numbers(key, recipe)}
    if fixed:
        lines = "\n".join(f"  {key}: {text}" for key, text in fixed.items())
        raise UserError(
            f"{run.path} was started with another recipe\n{lines}",
            f"go on with its own: {continue_command(run)}\n      or train the new one elsewhere with --out",
        )
    return [f"{key}: {text}" for key, text in changed.items() if key not in ("description",)]


def _at_commit(section: Any, commits: dict[str, str]) -> Any:
    """The task with its Hub dataset at the commit that the run began with, where the recipe names none."""
    source = getattr(section, "source", None)
    if source is None or source.kind != "hub" or source.revision is not None or len(commits) != 1:
        return section
    [commit] = commits.values()
    return section.model_copy(update={"source": source.model_copy(update={"revision": commit})})


def _check_commits(plan: Plan, commits: dict[str, str]) -> None:
    """Refuse to go on with other data than a run began with."""
    for name, commit in plan.task.commits().items():
        if commits.get(name, commit) != commit:
            asked = plan.recipe.task.source.revision  # type: ignore[union-attr]
            raise UserError(
                f"{name} is at another commit than when the run began: {commit}, not {commits[name]}",
                "start anew with --out"
                if asked is None
                else f"--set task.source.revision={commits[name]} is what it began with",
            )


def _check_held_out(plan: Plan) -> None:
    """Refuse a validation that could not be made, before hours go into training; look at the test, too."""
    training, task, section = plan.recipe.training, plan.task, plan.recipe.task
    if training.best_metric is not None:
        _check_best(plan)
    elif training.eval_steps:
        try:
            check_held_out(task, section, "validation")
        except UserError as error:
            error.message = f"training.eval_steps: {error.message}"
            raise
    if plan.runtime.leads and getattr(getattr(section, "source", None), "kind", None) == "files":
        try:
            check_held_out(task, section, "test")
        except UserError as error:
            plan.notes.append(f"mrt5 evaluate will miss something: {error.message}")


def _check_best(plan: Plan) -> None:
    """Refuse a choice of weights that could not be made."""
    training, task = plan.recipe.training, plan.task
    assert training.best_metric is not None
    if METRICS[training.best_metric].answers and task.answer_length is None:
        *others, last = (metric.name for metric in MEASURED if metric.chooses and not metric.answers)
        raise UserError(
            f"training.best_metric: {training.best_metric} is measured on generated answers, and in "
            f"{plan.recipe.task.kind} nothing is generated",
            f"use {', '.join(others)} or {last}",
        )
    for subset in task.subsets("validation"):
        if next(iter(task.held_out("validation", subset, batch_size=1, limit=1)), None) is None:
            raise UserError(
                f"training.best_metric: there are no validation examples for {subset!r} to measure it on",
                "give validation data, or leave training.best_metric and training.patience out",
            )


def _check_writable(path: Path) -> None:
    """Refuse a place where the run's directory could not be made, before time is spent on anything else."""
    RunDir(path).check_not_foreign()
    ancestor = next(place for place in [path, *path.absolute().parents] if place.exists())
    if not ancestor.is_dir():
        raise UserError(
            f"cannot write to {path}: {ancestor} is a file", "choose another directory with --out"
        )
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {path}: no permission", "choose another directory with --out")


def _check_room(plan: Plan) -> None:
    """Weights, two moments of Adam, 4 bytes each: a checkpoint. Kept ones, one being written, the model."""
    one = 3 * 4 * plan.parameters
    training = plan.recipe.training
    kept = min(training.keep_checkpoints, -(-training.max_steps // training.save_steps)) + 1
    # A kept checkpoint may ask for best weights of its own, without the moments.
    needed = one * kept + one // 3 * (1 if training.best_metric is None else 1 + kept)
    free = room(plan.run.path)
    if free < needed:
        raise UserError(
            f"{plan.run.path}: checkpoints will need {byte_size(needed)}, {byte_size(free)} are free",
            "choose another disk with --out, or keep fewer: --set training.keep_checkpoints=1",
        )


@contextmanager
def _enough_memory(recipe: Recipe, tell: Tell) -> Iterator[None]:
    """While a model is made: refuse one from nothing whose weights alone are more than the machine holds."""
    if recipe.model.start != "scratch":
        yield
        return
    from mrt5cli.models import build

    count = sum(weight.numel() for weight in build(recipe.model, device="meta").parameters())
    there = machine.memory()
    if there is not None and 4 * count > there:
        raise UserError(
            f"model.shape: the weights of this model alone take {byte_size(4 * count)}, and this machine has "
            f"{byte_size(there)} of memory",
            "make model.shape smaller",
        )
    with announced(f"building a model of {_count(count)} parameters ...", tell):
        yield


def strains(plan: Plan) -> list[str]:
    """What will probably be too much for this machine, a sentence each."""
    training, device = plan.recipe.training, plan.runtime.device
    found = []
    workers, cores = training.data_workers * plan.runtime.world_size, machine.usable_cpus()
    if workers > cores:
        found.append(
            f"training.data_workers makes {workers:,} processes on {counted(cores, 'core')}: more than cores "
            "prepare nothing faster, and each takes memory"
        )
    there = machine.memory(device)
    weights, forward = 4 * 4 * plan.parameters, _forward_size(plan)
    if there is not None and weights + forward > there:
        found.append(
            f"training takes {byte_size(weights)} for weights, gradients and Adam's moments, and more than "
            f"{byte_size(forward)} for a forward pass of {counted(training.device_batch_size, 'example')} of "
            f"full length; {device} has {byte_size(there)}"
        )
    return found


def _forward_size(plan: Plan) -> int:
    """Bytes of the hidden states that the encoder keeps for the backward pass: one a block is the least."""
    training, config, shortener = plan.recipe.training, plan.model.config, plan.recipe.model.shortener
    shortened = shortener.pools or not shortener.reads_source
    blocks = getattr(shortener, "layer", 0) if shortened else config.num_layers
    size = 2 if training.precision == "bf16" else 4
    return int(size * blocks * training.device_batch_size * plan.recipe.input_length * config.d_model)


def continue_command(run: RunDir) -> str:
    """The command that goes on with a run."""
    words = ["mrt5", run.command, str(run.recipe_path), "--out", str(run.path), "--resume"]
    return shlex.join([*words, *own_code.as_options()])


# --- words ------------------------------------------------------------------------------------------------


def _loss(recipe: Recipe) -> str:
    loss, controller, shortener = recipe.loss, recipe.controller, recipe.model.shortener
    if not shortener.steered:
        parts = ["cross-entropy" + (f" + {shortener.own_loss} loss" if shortener.own_loss else "")]
    elif controller.kind == "constant":
        parts = [f"cross-entropy + {controller.alpha:g} * {loss.gate_loss}"]
    else:
        parts = [
            f"cross-entropy + alpha * {loss.gate_loss}, alpha set by {controller.kind} towards "
            f"{100 * controller.target_deletion_rate:g} % deleted"
        ]
    if loss.score_coefficient:
        parts.append(f"+ {loss.score_coefficient:g} * score loss")
    if not shortener.steered:
        return " ".join(parts)
    if loss.entropy_coefficient_1 or loss.entropy_coefficient_2:
        parts.append("+ entropy terms")
    if loss.regularizer_delay:
        parts.append(f"from step {loss.regularizer_delay}")
    return " ".join(parts)


def _best(recipe: Recipe) -> str:
    training = recipe.training
    assert training.best_metric is not None
    metric = METRICS[training.best_metric]
    how = "hard deletion" if recipe.evaluation.hard_delete else "soft deletion"
    gates = f", {how}" if recipe.model.shortener.gates else ""
    patience = f"; stops after {training.patience} without a better one" if training.patience else ""
    which = "lowest" if metric.better == "lower" else "highest"
    return (
        f"{which} {metric.title} on validation data{gates}, measured every "
        f"{training.eval_steps} steps{patience}"
    )


def _count(number: int) -> str:
    return f"{number / 1e6:.3g} M" if number >= 1e5 else f"{number:,}"
