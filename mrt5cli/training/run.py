"""One training, whole: plan, train, leave a run directory that says what happened."""

from __future__ import annotations

import gc
import shutil
import time
import traceback
from contextlib import ExitStack, suppress
from pathlib import Path

import torch.distributed as dist
from transformers import TrainerCallback
from transformers.utils import logging

from mrt5cli import recipe as recipes
from mrt5cli import text
from mrt5cli.errors import DataLost, UserError
from mrt5cli.recipe import Recipe
from mrt5cli.rundir import RunDir, whole_directory, write_text
from mrt5cli.training import record
from mrt5cli.training.arguments import training_arguments
from mrt5cli.training.best import Best, check_kept
from mrt5cli.training.boundaries import with_labels
from mrt5cli.training.choose import Prepared, TrainingPlan, choose
from mrt5cli.training.interruption import Interruption
from mrt5cli.training.outcome import summary
from mrt5cli.training.plan_text import text_of
from mrt5cli.training.progress import ProgressDisplay
from mrt5cli.training.trainer import DeletionTrainer
from mrt5cli.training.validation import Validation

# A step's batches take longer than this only where they come from a Hub that is slow or away.
LONG_WAIT_SECONDS = 1.0


def pretrain(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    device: str | None = None,
    overwrite: bool = False,
) -> RunDir:
    """Train a recipe into a run directory, telling stderr about it; arguments as `choose`'s.

    Raises:
        UserError: the run cannot start.
        RunFailed: it started, and could not go on.
        KeyboardInterrupt: it was interrupted, and after the first Ctrl-C it has saved where it stood.
    """
    plan = choose(recipe, out, resume=resume, device=device, overwrite=overwrite)
    return execute(plan, overwrite=overwrite)


def execute(plan: TrainingPlan, *, overwrite: bool = False) -> RunDir:
    """Do what a plan says; see `pretrain`."""
    say = text.say_on_stderr if plan.runtime.leads else text.say_nothing
    say(text_of(plan))
    if plan.prepared is not None:
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        with ExitStack() as held:
            if plan.runtime.leads:
                _open_directory(plan, overwrite, held)
                record.begin(plan, plan.prepared)
            _train_and_tell(plan, plan.prepared, say)
    return plan.run


def _open_directory(plan: TrainingPlan, overwrite: bool, held: ExitStack) -> None:
    """Make the run's directory ready, and hold it until the stack is closed."""
    run = plan.run
    held.enter_context(run.hold())
    if not overwrite and run.state() != plan.found:
        raise UserError(
            f"another process has trained in {run.path} since this one looked",
            "see what is there, and give the command again, or choose another directory with --out",
        )
    if overwrite and run.is_run:
        run.remove()
        held.enter_context(run.hold())  # another directory of that name
    RunDir.create(run.path)
    run.keep_metrics_until(plan.resume_step or 0)
    write_text(run.recipe_path, recipes.dump(plan.recipe))


def _train_and_tell(plan: TrainingPlan, prepared: Prepared, say: text.Tell) -> None:
    """Train in the run's directory, which is open, and leave it saying what happened."""
    training, run = plan.recipe.training, plan.run
    best = None if training.best_metric is None else Best(training.best_metric, training.patience)
    try:
        finished = _train(plan, prepared, best, say)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        with suppress(OSError):  # the disk that ended the training may refuse this as well
            if interrupted:
                record.end(plan, "interrupted")
            else:
                record.end(plan, "failed", error=f"{type(error).__name__}: {error}")
        steps = run.saved_steps()
        kept = f"the last checkpoint is step {steps[-1]}" if steps else "there is no checkpoint yet"
        if interrupted:
            say(f"stopped without saving; {kept}\n{_to_go_on(plan)}")
        elif isinstance(error, OSError):
            say(f"stopped; {kept}\n{_to_go_on(plan)}")
        elif isinstance(error, DataLost):
            say(f"stopped; {kept}")
            error.hint = _to_go_on(plan) if error.passes else error.hint
        traceback.clear_frames(error.__traceback__)  # they hold the trainer
        leave_group()
        raise
    leave_group()
    if not finished:
        record.end(plan, "interrupted")
        say(f"stopped and saved at step {run.saved_steps()[-1]}\n{_to_go_on(plan)}")
        raise KeyboardInterrupt
    record.end(plan, "finished", best=None if best is None else best.document())
    say(summary(run))


def _to_go_on(plan: TrainingPlan) -> str:
    number = plan.runtime.world_size
    launched = f", launched as {number} processes again" if number > 1 else ""
    return f"to go on{launched}: {plan.run.resume_command}"


def _train(plan: TrainingPlan, prepared: Prepared, best: Best | None, say: text.Tell) -> bool:
    """Train, and save the model unless interrupted; returns whether it came to its end."""
    recipe, run, runtime = plan.recipe, plan.run, plan.runtime
    # Joins the processes to a group, which labels are passed on in.
    arguments = training_arguments(recipe, runtime, prepared.micro_batches, run.checkpoints)
    stream = with_labels(
        prepared.task.train_stream(
            batch_size=recipe.training.device_batch_size,
            seed=recipe.seed,
            rank=runtime.rank,
            world_size=runtime.world_size,
        ),
        prepared.task,
        recipe.model.shortener,
        run,
        fresh=plan.resume_step is None,
        runtime=runtime,
        say=say,
    )
    with ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        callbacks: list[TrainerCallback] = [interruption]
        if runtime.leads:
            callbacks.append(stack.enter_context(ProgressDisplay()))
        trainer = DeletionTrainer(
            prepared.model,
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
        interruption.waiting = lambda: _waits_long(trainer)
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


def _waits_long(trainer: DeletionTrainer) -> bool:
    since = trainer.fetching_since
    return since is not None and time.monotonic() - since > LONG_WAIT_SECONDS


def _save_model(plan: TrainingPlan, trainer: DeletionTrainer, best: Best | None) -> None:
    """The run's model: the best weights where they are kept, else the last ones."""
    kept = None if best is None else check_kept(plan.run, best)
    leads = plan.runtime.leads
    with whole_directory(plan.run.model, leader=leads) as folder:
        if kept is None:
            trainer.save_model(str(folder))
        elif leads:
            shutil.copytree(kept, folder, dirs_exist_ok=True)
        if leads:
            write_text(folder / "recipe.yaml", recipes.dump(plan.recipe))
