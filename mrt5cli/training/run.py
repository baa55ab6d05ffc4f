"""One training, whole: plan, train, leave a run directory that says what happened."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers.utils import logging

import mrt5cli
from mrt5cli import recipe as recipes
from mrt5cli import text
from mrt5cli.errors import DataLost, UserError
from mrt5cli.fingerprint import code_version
from mrt5cli.metrics.catalog import METRICS
from mrt5cli.models.compiling import compile_blocks
from mrt5cli.models.recomputation import recompute
from mrt5cli.recipe import Recipe
from mrt5cli.rundir import RunDir, whole_directory, write_json, write_text
from mrt5cli.training.arguments import training_arguments
from mrt5cli.training.best import Best, check_kept
from mrt5cli.training.boundaries import with_labels
from mrt5cli.training.interruption import Interruption
from mrt5cli.training.plan import Plan, continue_command, make_plan
from mrt5cli.training.progress import ProgressDisplay
from mrt5cli.training.trainer import DeletionTrainer
from mrt5cli.training.validation import Validation

# A step's batches take longer than this only where they come from a Hub that is slow or away.
LONG_WAIT_SECONDS = 1.0
ON_TARGET = 0.03
"""How far from its target a deletion rate may be at the end of a run without a word about it."""
LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "numpy", "safetensors")


def pretrain(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    device: str | None = None,
    overwrite: bool = False,
) -> RunDir:
    """Train a recipe into a run directory, telling stderr about it.

    Args:
        recipe: what to train.
        out: the run directory.
        resume: go on from its latest checkpoint; with none there, start; with a finished run, do nothing.
        device: cpu, cuda, cuda:1 or auto.
        overwrite: replace a run that is there, finished or not.

    Raises:
        UserError: the run cannot start.
        RunFailed: it started, and could not go on.
        KeyboardInterrupt: it was interrupted, and after the first Ctrl-C it has saved where it stood.
    """
    plan = make_plan(recipe, out, resume=resume, device=device, overwrite=overwrite)
    return execute(plan, overwrite=overwrite)


def execute(plan: Plan, *, overwrite: bool = False) -> RunDir:
    """Do what a plan says; see `pretrain`."""
    say = _Teller(plan.runtime.leads)
    say(plan.text())
    if plan.finished:
        return plan.run
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with ExitStack() as held:
        if plan.runtime.leads:
            _open_directory(plan, overwrite, held)
        return _execute(plan, say)


def _execute(plan: Plan, say: Callable[[str], None]) -> RunDir:
    """Train in the run's directory, which is open, and leave it saying what happened."""
    training = plan.recipe.training
    best = None if training.best_metric is None else Best(training.best_metric, training.patience)
    try:
        stopped = _train(plan, best, say)
    except KeyboardInterrupt:
        _close_meta(plan, "interrupted")
        say(f"stopped without saving; {_last_checkpoint(plan.run)}\n{_go_on(plan)}")
        raise
    except DataLost as error:
        _close_meta(plan, "failed", error=f"{type(error).__name__}: {error}")
        say(f"stopped; {_last_checkpoint(plan.run)}")
        if error.passes:
            error.hint = _go_on(plan)
        raise
    except BaseException as error:
        with suppress(OSError):  # the disk that ended the training may refuse this as well
            _close_meta(plan, "failed", error=f"{type(error).__name__}: {error}")
        if isinstance(error, OSError):
            say(f"stopped; {_last_checkpoint(plan.run)}\n{_go_on(plan)}")
        raise
    if stopped:
        _close_meta(plan, "interrupted")
        step = plan.run.saved_steps()[-1]
        say(f"stopped and saved at step {step}\n{_go_on(plan)}")
        raise KeyboardInterrupt
    _close_meta(plan, "finished", best=None if best is None else best.document())
    say(summary(plan.run))
    return plan.run


def _train(plan: Plan, best: Best | None, say: Callable[[str], None]) -> bool:
    """Train, and save the model unless interrupted; returns whether it was."""
    recipe, run, runtime = plan.recipe, plan.run, plan.runtime
    recompute(plan.model, recipe.training.recompute)
    if recipe.training.compile:
        compile_blocks(plan.model)
    # Joins the processes to a group, which labels are passed on in.
    arguments = training_arguments(recipe, runtime, run.checkpoints)
    stream = with_labels(
        plan.task.train_stream(
            batch_size=recipe.training.device_batch_size,
            seed=recipe.seed,
            rank=runtime.rank,
            world_size=runtime.world_size,
        ),
        plan.task,
        recipe.model.shortener,
        run,
        fresh=plan.resume_step is None,
        runtime=runtime,
        say=say,
    )
    with ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        callbacks: list[Any] = [interruption]
        if runtime.leads:
            callbacks.append(stack.enter_context(ProgressDisplay()))
        trainer = DeletionTrainer(
            plan.model,
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
            trainer.add_callback(Validation(plan.task, recipe, run if runtime.leads else None, trainer))
        interruption.waiting = lambda: _waits_long(trainer)
        try:
            trainer.train_from(None if plan.resume_step is None else run.checkpoint(plan.resume_step))
        except KeyboardInterrupt:
            if not trainer.stopped_between_steps:
                raise
        finally:
            for remark in stream.remarks():
                say(f"note: {remark}")
        stopped = interruption.stopped or trainer.stopped_between_steps
        if not stopped:
            kept = None if best is None else check_kept(run, best)
            with whole_directory(run.model, leader=runtime.leads) as folder:
                if kept is None:
                    trainer.save_model(str(folder))
                elif runtime.leads:
                    shutil.copytree(kept, folder, dirs_exist_ok=True)
                if runtime.leads:
                    write_text(folder / "recipe.yaml", recipes.dump(recipe))
    if dist.is_initialized():
        dist.destroy_process_group()
    return stopped


def _waits_long(trainer: DeletionTrainer) -> bool:
    since = trainer.fetching_since
    return since is not None and time.monotonic() - since > LONG_WAIT_SECONDS


def _open_directory(plan: Plan, overwrite: bool, held: ExitStack) -> None:
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
    before = run.meta()
    commits = before.get("hub_commits", {})
    if plan.start is not None and plan.start.commit is not None:
        commits = {**commits, plan.recipe.model.start: plan.start.commit}
    session = {"started": _now(), "from_step": plan.resume_step or 0, "code": code_version("train")}
    sessions = [*before.get("sessions", []), session]
    write_json(
        run.meta_path,
        {
            "status": "running",
            "name": plan.recipe.name,
            "seed": plan.recipe.seed,
            "parameters": plan.parameters,
            "data": plan.task.commits(),
            "command": sys.argv,
            "started": before.get("started", sessions[-1]["started"]),
            "ended": None,
            **plan.runtime.describe(),
            "versions": versions(),
            "commit": commit(),
            "hub_commits": commits,
            "sessions": sessions,
        },
    )


def _close_meta(plan: Plan, status: str, **more: Any) -> None:
    if not plan.runtime.leads:
        return
    meta = plan.run.meta()
    rows = plan.run.metrics()
    sessions = meta["sessions"]
    sessions[-1] |= {"ended": _now(), "status": status}
    last = rows[-1] if rows else {}
    write_json(
        plan.run.meta_path,
        {
            **meta,
            "status": status,
            "ended": _now(),
            "step": last.get("step", 0),
            "sessions": sessions,
            **more,
        },
    )


def _last_checkpoint(run: RunDir) -> str:
    steps = run.saved_steps()
    return f"the last checkpoint is step {steps[-1]}" if steps else "there is no checkpoint yet"


def _go_on(plan: Plan) -> str:
    number = plan.runtime.world_size
    launched = f", launched as {number} processes again" if number > 1 else ""
    return f"to go on{launched}: {continue_command(plan.run)}"


def summary(run: RunDir) -> str:
    """What a finished training came to, a line each; the last says so if it ended off its target."""
    rows = training_rows(run)
    last, recipe = rows[-1], run.recipe()
    parts = [f"loss {last['loss']:.4f}", f"cross-entropy {last['cross_entropy']:.4f}"]
    rate, steps = rate_at_end(rows)
    if last["target"] is not None or rate > 0:
        target = "" if last["target"] is None else f" (target {100 * last['target']:g} %)"
        gates = "by soft gates " if recipe.model.shortener.gates else ""
        over = f"over the last {steps:,} steps" if steps > 1 else "in the last step"
        parts.append(f"deleted {100 * rate:.1f} %{target}, {gates}on training data {over}")
    best = run.meta().get("best")
    return (
        f"done: {last['step']:,} steps in {text.duration(last['seconds'])}\n"
        f"last logged: {', '.join(parts)}\n"
        f"{_best_in_words(best) if best else ''}"
        f"model: {run.model}\n"
        f"next: mrt5 evaluate {run.path}"
        f"{_off_target(rows)}"
    )


def rate_at_end(rows: Sequence[Mapping[str, Any]]) -> tuple[float, int]:
    """The deletion rate at the end of a run, and over how many steps it was taken.

    One line of metrics may cover a single step, and so few bytes that their rate says little; so as many
    lines count as it takes to cover the last tenth of the run.

    Args:
        rows: of a run's metrics, as `training_rows`.
    """
    spans = [after - before for before, after in pairwise([0, *(row["step"] for row in rows)])]
    deleted, steps = 0.0, 0
    for row, span in zip(reversed(rows), reversed(spans), strict=True):
        deleted, steps = deleted + row["deletion_rate"] * span, steps + span
        if 10 * steps >= rows[-1]["step"]:
            break
    return deleted / steps, steps


def _off_target(rows: Sequence[Mapping[str, Any]]) -> str:
    """The last line of a run that ended off its target, or nothing."""
    target, (rate, _) = rows[-1]["target"], rate_at_end(rows)
    if target is None or round(abs(rate - target), 6) <= ON_TARGET:
        return ""
    side = "above" if rate > target else "below"
    return (
        f"\noff target: {100 * rate:.1f} % deleted at the end, {100 * abs(rate - target):.1f} points {side} "
        f"the {100 * target:g} % that the controller aims at"
    )


def _best_in_words(best: dict[str, Any]) -> str:
    name = METRICS[best["metric"]].title
    if best["step"] is None:
        return f"no {name} could be measured on validation data: the model is that of the last step\n"
    early = "; stopped early, nothing better came" if best["stopped_early"] else ""
    return f"best: {name} {best['value']:.4f} on validation data at step {best['step']:,}{early}\n"


def training_rows(run: RunDir) -> list[dict[str, Any]]:
    """The metrics of logging steps, without those of validation."""
    return [row for row in run.metrics() if "loss" in row]


def outcome(run: RunDir) -> dict[str, Any]:
    """What a training came to, for scripts."""
    meta, rows = run.meta(), training_rows(run)
    return {
        "run": str(run.path),
        "status": meta["status"],
        "model": str(run.model),
        "metrics": rows[-1],
        "deletion_rate_at_end": rate_at_end(rows)[0],
        "best": meta.get("best"),
        **{
            key: meta[key]
            for key in ("name", "seed", "parameters", "device", "precision", "started", "ended")
        },
    }


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    found = {"mrt5cli": mrt5cli.__version__, "python": sys.version.split()[0]}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The git commit of this package's own checkout, "+" added when files are changed; None if installed."""
    folder = Path(mrt5cli.__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # An installed package may lie inside somebody else's repository.
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    head = git("rev-parse", "HEAD")
    return head and head + ("+" if git("status", "--porcelain", "--untracked-files=no", "--", ".") else "")


class _Teller:
    """Prints on stderr, from the leading process only."""

    def __init__(self, leads: bool) -> None:
        self.leads = leads

    def __call__(self, words: str) -> None:
        if self.leads:
            text.say(words, sys.stderr)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
