"""One job, done in a process of its own: `python -m mrt5cli.suite.work SUITE RUNS JOB` does it by hand.

Everything it prints belongs to its log. It ends with 0 when the job is done, 1 or 2 with an `error:` line
when it failed, 130 when it was interrupted; a training saves before that.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from mrt5cli.errors import RunFailed, UserError
from mrt5cli.output import prepare
from mrt5cli.rundir import write_json
from mrt5cli.suite.jobs import Job, Plan

INTERRUPTED = 130
LOGS = "logs"
JOBS_LOCK = "jobs.lock"


@dataclass(frozen=True)
class Order:
    """A job to do, and how.

    Attributes:
        job: its id in the plan.
        device: as `--device`.
        overwrite: a run that is there is replaced, not gone on with.
    """

    plan: Plan
    job: str
    device: str
    overwrite: bool = False


def carry_out(order: Order) -> int:
    """Do a job; what goes wrong is told on stderr. Returns the exit code."""
    job = order.plan.job(order.job)
    try:
        with _at_work(order.plan.root):
            {"train": _train, "evaluate": _evaluate, "analyse": _analyse}[job.kind](order, job)
    except KeyboardInterrupt:
        return INTERRUPTED
    except UserError as error:
        hint = f"\nhint: {error.hint}" if error.hint else ""
        print(f"error: {error.message}{hint}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        print(f"error: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _train(order: Order, job: Job) -> None:
    from mrt5cli.training.plan import make_plan
    from mrt5cli.training.run import execute

    assert job.recipe is not None and job.run is not None, "training jobs have both"
    overwrite = order.overwrite and job.run.is_run
    plan = make_plan(job.recipe, job.run.path, resume=True, device=order.device, overwrite=overwrite)
    execute(plan, overwrite=overwrite)


def _evaluate(order: Order, job: Job) -> None:
    from mrt5cli import runtime
    from mrt5cli.evaluation.compare import compare
    from mrt5cli.evaluation.options import EvaluationOptions
    from mrt5cli.subject import find_subject
    from mrt5cli.suite.graph import evaluation_label

    assert job.recipe is not None and job.run is not None and job.evaluation is not None, "it has all"
    comparison = compare(
        [find_subject(str(job.run.path))],
        job.task,
        EvaluationOptions(
            batch_size=job.recipe.evaluation.batch_size,
            limit=job.limit,
            hard_delete=job.recipe.evaluation.hard_delete,
            constrained=job.evaluation.constrained,
            runtime=job.evaluation.runtime,
        ),
        device=runtime.device(order.device),
        progress=_examples_done,
    )
    [line] = replace(comparison, label=evaluation_label(job.evaluation)).save()
    if line != f"saved {job.output}":
        raise RunFailed(f"the results should be in {job.output}: {line}")
    _tell(line)


def _analyse(order: Order, job: Job) -> None:
    from mrt5cli import runtime
    from mrt5cli.analysis.across_runs import run_analysis
    from mrt5cli.suite.planning import MADE, made_of

    assert job.output is not None, "analyses have one"
    id_, _, name = job.name.partition(":")
    [experiment] = [one for one in order.plan.experiments if one.id == id_]
    before = made_of(order.plan.job(need) for need in job.needs)
    document: dict[str, Any] = run_analysis(
        name, experiment, order.plan, device=runtime.device(order.device), progress=_examples_done
    )
    write_json(job.output, {**document, MADE: before})
    _tell(f"saved {job.output}")


def _examples_done(name: str, subset: str, done: int) -> None:
    _tell(f"{name}, {subset}: {done} examples")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- the process --------------------------------------------------------------------------------------------


def begin(life: int, log: Path | None = None) -> None:
    """Make this process a job's: its own group, its log, and an end when whoever started it is gone.

    Args:
        life: a file descriptor that is at its end as soon as that process is.
        log: where stdout and stderr go; by default they stay.
    """
    if os.getpgrp() != os.getpid():
        os.setsid()  # Ctrl-C is for who started us, who passes it on, once
    if log is not None:
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for descriptor in (1, 2):
            os.dup2(target, descriptor)
        os.close(target)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    threading.Thread(target=_end_with, args=(life,), daemon=True).start()


def _end_with(life: int) -> None:
    """Wait for the end of a file, then ask this process to stop as a termination signal does."""
    while os.read(life, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _at_work(root: Path) -> Iterator[None]:
    """Show, by a shared lock, that a job is being done: nobody else may begin in this folder meanwhile."""
    with open_lock(root, JOBS_LOCK) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def open_lock(root: Path, name: str) -> BinaryIO:
    """A file to lock; the system lets go of the lock when the process ends, however it ends."""
    folder = root / LOGS
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / name).open("ab+")


def main(words: list[str] | None = None) -> int:
    """Plan the suite anew and do one job of it."""
    from mrt5cli.suite.planning import make_plan
    from mrt5cli.suite.suites import load_suite

    parser = argparse.ArgumentParser(prog="python -m mrt5cli.suite.work", description=__doc__)
    parser.add_argument("suite")
    parser.add_argument("runs", type=Path)
    parser.add_argument("job", help="its id, as `mrt5 reproduce --dry-run` prints it")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--overwrite", action="store_true", help="replace a run that is there")
    parser.add_argument("--life", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    prepare()
    if given.life is not None:
        begin(given.life)
    try:
        # Whoever wants this job has judged what it needs.
        plan = make_plan(
            given.suite, load_suite(given.suite), given.runs, smoke=given.smoke, keep_changed=True
        )
        if given.job not in {job.id for job in plan.jobs}:
            raise UserError(f"suite {given.suite} has no job {given.job!r}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return carry_out(Order(plan, given.job, given.device, given.overwrite))


if __name__ == "__main__":
    sys.exit(main())
