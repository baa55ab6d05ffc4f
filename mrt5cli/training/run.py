"""Executes a training plan and records the outcome in the run directory."""

from __future__ import annotations

import gc
import shutil
import traceback
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from transformers import TrainerCallback

from mrt5cli import manifest, text
from mrt5cli import recipe as recipes
from mrt5cli.errors import DataLost, RunFailed, of_the_system
from mrt5cli.evaluation.evaluate import Progress
from mrt5cli.models.checkpoint import quiet_transformers
from mrt5cli.models.weights import seal
from mrt5cli.output import losing_messages
from mrt5cli.recipe.shorteners import BoundaryPredictor
from mrt5cli.rundir import FINISHED, RunDir
from mrt5cli.stopping import Stopped, number_of
from mrt5cli.training import record
from mrt5cli.training.arguments import training_arguments
from mrt5cli.training.boundaries import with_labels
from mrt5cli.training.estimates import saved_bytes
from mrt5cli.training.health import Health
from mrt5cli.training.interruption import Interruption
from mrt5cli.training.plan import Prepared, TrainingPlan
from mrt5cli.training.progress import ProgressDisplay, compiling
from mrt5cli.training.trackers import Trackers
from mrt5cli.training.trainer import DeletionTrainer
from mrt5cli.training.validation import Validation
from mrt5cli.writing import whole_directory, write_text


def execute(plan: TrainingPlan) -> RunDir:
    """Execute a plan, reporting progress on stderr.

    Raises:
        UserError: the run cannot start.
        RunFailed: the run started and could not continue.
        Stopped: a signal interrupted the run; after the first signal a checkpoint has been saved.
    """
    say = text.say_on_stderr if plan.runtime.leads else text.say_nothing
    with losing_messages():
        say(plan.text)
        if plan.prepared is not None:
            with quiet_transformers(), _opened(plan, plan.prepared):
                _train_and_record(plan, plan.prepared, say)
    return plan.run


def _opened(plan: TrainingPlan, prepared: Prepared) -> AbstractContextManager[None]:
    """Hold the run directory open; the leading process does so for the whole group."""
    if not plan.runtime.leads:
        return nullcontext()
    found = None if plan.options.overwrite else plan.before
    meta = record.beginning(plan, prepared)
    return plan.run.opened(plan.recipe, meta, step=plan.resume_step or 0, found=found)


def _train_and_record(plan: TrainingPlan, prepared: Prepared, say: text.Tell) -> None:
    """Train in the opened run directory, and record how the training ended."""
    try:
        if plan.runtime.leads:
            record.keep_room(plan.run)
        ended = _train(plan, prepared, say)
    except BaseException as error:
        _record_failure(plan, error, say)
        traceback.clear_frames(error.__traceback__)  # they keep the trainer alive
        raise
    finally:
        leave_group()
    if isinstance(ended, Stopped):
        saved = plan.run.saved_steps()[-1]
        if plan.runtime.leads:
            record.end(plan.run, "interrupted", step=saved)  # may be later than the last logging step
        say(f"stopped and saved at step {saved}\n{_how_to_resume(plan)}")
        raise ended
    if plan.runtime.leads:
        record.end(plan.run, FINISHED, **ended)
        say(record.summary(plan.run))


def _record_failure(plan: TrainingPlan, error: BaseException, say: text.Tell) -> None:
    """Record and report why the training ended early, and how to resume it."""
    plan.run.check_held()
    interrupted = isinstance(error, KeyboardInterrupt)
    if plan.runtime.leads:
        why = {} if interrupted else {"error": f"{type(error).__name__}: {error}"}
        try:
            record.end(plan.run, "interrupted" if interrupted else "failed", **why)
        except OSError as refused:
            problem = of_the_system(refused)[0]
            say(f"note: {problem}; it still lists the run as running, but the run has ended")
    steps = plan.run.saved_steps()
    say(f"stopped; {f'the last checkpoint is step {steps[-1]}' if steps else 'there is no checkpoint yet'}")
    if isinstance(error, DataLost) and error.passes:
        error.hint = _how_to_resume(plan)
    elif interrupted or isinstance(error, OSError):
        say(_how_to_resume(plan))


def _how_to_resume(plan: TrainingPlan) -> str:
    number = plan.runtime.world_size
    launched = f", with {number} processes or any other number" if number > 1 else ""
    return f"to resume{launched}: {plan.run.resume_command}"


def _train(plan: TrainingPlan, prepared: Prepared, say: text.Tell) -> dict[str, Any] | Stopped:
    """Train, and save the model unless interrupted.

    Returns:
        The entry on best weights for meta.json; or the interruption, after a checkpoint was saved.
    """
    recipe, run, runtime = plan.recipe, plan.run, plan.runtime
    # This also initializes the process group, which `with_labels` needs.
    arguments = training_arguments(recipe, runtime, prepared.at_once, prepared.micro_batches, run.checkpoints)
    stream = prepared.task.train_stream(
        batch_size=prepared.at_once, seed=recipe.seed, rank=runtime.rank, world_size=runtime.world_size
    )
    if recipe.model.shortener.labels is not None:
        shortener = cast(BoundaryPredictor, recipe.model.shortener)
        may_fit = runtime.leads and plan.resume_step is None
        stream = with_labels(stream, prepared.task, shortener, run.boundaries, may_fit, say)
    with ExitStack() as stack:
        interruption = stack.enter_context(Interruption(alone=runtime.world_size == 1))
        callbacks: list[TrainerCallback] = [interruption]
        if runtime.leads:
            callbacks.append(Health(recipe, run, say))
        if runtime.leads and recipe.training.report_to:
            # Entered before the display, because their start-up messages would break the live line.
            callbacks.append(stack.enter_context(Trackers(recipe, run, say)))
        seen: Progress = lambda subset, done: None
        if runtime.leads and not text.is_quiet():
            compiled = compiling(recipe, prepared.attention)
            display = stack.enter_context(ProgressDisplay(recipe.loss.score_coefficient, compiled))
            callbacks.append(display)
            seen = display.validating
            if display.is_live:  # writing to stderr would corrupt the live line
                interruption.notify = display.note
        trainer = DeletionTrainer(
            prepared.start.model, arguments, stream, recipe, run=run, callbacks=callbacks
        )
        if recipe.training.eval_steps:
            at = run if runtime.leads else None
            trainer.add_callback(Validation(prepared.task, recipe, at, trainer, seen))
        interruption.waiting = trainer.waits_long
        try:
            trainer.train_from(plan.checkpoint)
        except KeyboardInterrupt as error:
            if not trainer.stopped_between_steps:
                raise
            return Stopped(number_of(error))
        finally:
            for remark in stream.remarks():
                say(f"note: {remark}")
        if interruption.stopped:
            return Stopped(interruption.number)
        _save_model(plan, prepared, trainer)
    return {"best": None if trainer.best is None else trainer.best.document()}


def leave_group() -> None:
    """Destroy the process group, whose threads must not outlive the interpreter.

    The wrapped model refers to the group through reference cycles, so those are collected first.
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


def _save_model(plan: TrainingPlan, prepared: Prepared, trainer: DeletionTrainer) -> None:
    """Write the run's model: the best weights if they are tracked, otherwise the last ones."""
    plan.run.check_held()
    best, leads = trainer.best, plan.runtime.leads
    needs = saved_bytes(prepared.start.model, moments=False)
    with whole_directory(plan.run.model, leader=leads, needs=needs) as folder:
        if best is None or best.step is None:
            trainer.save_model(str(folder))
        elif leads:
            _copy_best(plan.run.best_weights(best.step), folder)
        if leads:
            write_text(folder / "recipe.yaml", recipes.dump(plan.recipe))
            step = trainer.state.global_step if best is None or best.step is None else best.step
            seal(folder, step=step, metrics=plan.run.metrics_content())
            if since := plan.recipe.training.continues_from:
                plan.run.keep_results(since)


def _copy_best(weights: Path, folder: Path) -> None:
    """Copy the best weights into the model's folder, and verify the copy."""
    shutil.copytree(weights, folder, dirs_exist_ok=True)
    if why := manifest.fault(folder):
        run = RunDir(weights.parents[1])
        raise RunFailed(
            f"the best weights, {weights}, are incomplete or damaged: {why}",
            f"use the last ones: mrt5 convert {run.checkpoint(run.saved_steps()[-1])} DEST --to mrt5",
        )
