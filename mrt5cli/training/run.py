"""Executes a plan: trains, and leaves a run directory that says what happened."""

from __future__ import annotations

import gc
import shutil
import traceback
from contextlib import ExitStack, suppress
from typing import cast

import torch.distributed as dist
from transformers import TrainerCallback
from transformers.utils import logging

from mrt5cli import recipe as recipes
from mrt5cli import text
from mrt5cli.errors import DataLost, UserError
from mrt5cli.recipe.shorteners import BoundaryPredictor
from mrt5cli.rundir import RunDir, remove_directory, whole_directory, write_text
from mrt5cli.training import record
from mrt5cli.training.arguments import training_arguments
from mrt5cli.training.best import Best
from mrt5cli.training.boundaries import with_labels
from mrt5cli.training.choose import Prepared, TrainingPlan
from mrt5cli.training.interruption import Interruption
from mrt5cli.training.progress import ProgressDisplay
from mrt5cli.training.trainer import DeletionTrainer
from mrt5cli.training.validation import Validation


def execute(plan: TrainingPlan, *, overwrite: bool = False) -> RunDir:
    """Do what a plan says, and say on stderr what is done.

    Raises:
        UserError: the run cannot start.
        RunFailed: it started, and could not continue.
        KeyboardInterrupt: it was interrupted, and after the first Ctrl-C it has saved where it stood.
    """
    say = text.say_on_stderr if plan.runtime.leads else text.say_nothing
    say(plan.text)
    if plan.prepared is not None:
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        with ExitStack() as held:
            if plan.runtime.leads:
                _open_directory(plan, overwrite, held)
                record.begin(plan, plan.prepared)
            _train_and_record(plan, plan.prepared, say)
    return plan.run


def _open_directory(plan: TrainingPlan, overwrite: bool, held: ExitStack) -> None:
    """Make the run's directory ready, and hold it until the stack is closed."""
    run = plan.run
    held.enter_context(run.hold())
    if not overwrite and run.state() != plan.found:
        raise UserError(
            f"another process has trained in {run.path} in the meantime",
            "give the command again, or choose another directory with --out",
        )
    if overwrite and run.is_run:
        remove_directory(run.path)
        held.enter_context(run.hold())  # another directory of that name
    RunDir.create(run.path)
    run.keep_metrics_until(plan.resume_step or 0)
    write_text(run.recipe_path, recipes.dump(plan.recipe))


def _train_and_record(plan: TrainingPlan, prepared: Prepared, say: text.Tell) -> None:
    """Train in the run's directory, which is open, and leave it saying what happened."""
    training, run = plan.recipe.training, plan.run
    best = None if training.best_metric is None else Best(training.best_metric, training.patience)
    try:
        finished = _train(plan, prepared, best, say)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        if plan.runtime.leads:
            with suppress(OSError):  # the disk that ended the training may refuse this as well
                why = {} if interrupted else {"error": f"{type(error).__name__}: {error}"}
                record.end(run, "interrupted" if interrupted else "failed", **why)
        steps = run.saved_steps()
        kept = f"the last checkpoint is step {steps[-1]}" if steps else "there is no checkpoint yet"
        say(f"stopped; {kept}")
        if isinstance(error, DataLost) and error.passes:
            error.hint = _how_to_resume(plan)
        elif interrupted or isinstance(error, OSError):
            say(_how_to_resume(plan))
        traceback.clear_frames(error.__traceback__)  # they hold the trainer
        leave_group()
        raise
    leave_group()
    if plan.runtime.leads:
        more = {"best": None if best is None else best.document()} if finished else {}
        record.end(run, "finished" if finished else "interrupted", **more)
    if not finished:
        say(f"stopped and saved at step {run.saved_steps()[-1]}\n{_how_to_resume(plan)}")
        raise KeyboardInterrupt
    say(record.summary(run))


def _how_to_resume(plan: TrainingPlan) -> str:
    number = plan.runtime.world_size
    launched = f", launched as {number} processes again" if number > 1 else ""
    return f"to go on{launched}: {plan.run.resume_command}"


def _train(plan: TrainingPlan, prepared: Prepared, best: Best | None, say: text.Tell) -> bool:
    """Train, and save the model unless interrupted; returns whether it came to its end."""
    recipe, run, runtime = plan.recipe, plan.run, plan.runtime
    # Joins the processes to a group, which labels are passed on in.
    arguments = training_arguments(recipe, runtime, prepared.micro_batches, run.checkpoints)
    stream = prepared.task.train_stream(
        batch_size=recipe.training.device_batch_size,
        seed=recipe.seed,
        rank=runtime.rank,
        world_size=runtime.world_size,
    )
    if recipe.model.shortener.labels is not None:
        shortener = cast(BoundaryPredictor, recipe.model.shortener)
        may_fit = runtime.leads and plan.resume_step is None
        stream = with_labels(stream, prepared.task, shortener, run.boundaries, may_fit, say)
    with ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        callbacks: list[TrainerCallback] = [interruption]
        if runtime.leads:
            callbacks.append(stack.enter_context(ProgressDisplay()))
        trainer = DeletionTrainer(
            prepared.start.model,
            arguments,
            stream,
            loss=recipe.loss,
            controller=recipe.controller,
            seed=recipe.seed,
            run=run,
            keep_checkpoints=recipe.training.keep_checkpoints,
            data_workers=recipe.training.data_workers,
            best=best,
            callbacks=callbacks,
        )
        if recipe.training.eval_steps:
            trainer.add_callback(Validation(prepared.task, recipe, run if runtime.leads else None, trainer))
        interruption.waiting = trainer.waits_long
        try:
            trainer.train_from(None if plan.resume_step is None else run.checkpoint(plan.resume_step))
        except KeyboardInterrupt:
            if not trainer.stopped_between_steps:
                raise
        finally:
            for remark in stream.remarks():
                say(f"note: {remark}")
        finished = not (interruption.stopped or trainer.stopped_between_steps)
        if finished:
            _save_model(plan, trainer, best)
    return finished


def leave_group() -> None:
    """End the threads of a group of processes, which must not outlive the interpreter.

    What the trainer wraps the model in refers to the group, in circles, and is freed first.
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


def _save_model(plan: TrainingPlan, trainer: DeletionTrainer, best: Best | None) -> None:
    """The run's model: the best weights where they are kept, else the last ones."""
    leads = plan.runtime.leads
    with whole_directory(plan.run.model, leader=leads) as folder:
        if best is None or best.step is None:
            trainer.save_model(str(folder))
        elif leads:
            shutil.copytree(plan.run.best_weights(best.step), folder, dirs_exist_ok=True)
        if leads:
            write_text(folder / "recipe.yaml", recipes.dump(plan.recipe))
