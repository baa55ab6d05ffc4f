"""One job, done in a process of its own.

Everything it prints belongs to its log. It ends with 0 when the job is done, 1 or 2 with an `error:` line
when it failed, 130 when it was interrupted; a training saves before that.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

from mrt5cli.errors import RunFailed, UserError
from mrt5cli.rundir import write_json
from mrt5cli.suite.jobs import AnalyseJob, EvaluateJob, Job, SuitePlan, TrainJob
from mrt5cli.suite.locking import at_work

INTERRUPTED = 130


@dataclass(frozen=True)
class JobOrder:
    """A job to do, and how.

    Attributes:
        job: its id in the plan.
        device: as `--device`.
        overwrite: a run that is there is replaced, not gone on with.
        processes: that train together.
        resume: go on with a run that is there.
    """

    plan: SuitePlan
    job: str
    device: str
    overwrite: bool = False
    processes: int = 1
    resume: bool = True


def carry_out(order: JobOrder) -> int:
    """Do a job; what goes wrong is written to stderr. Returns the exit code."""
    job = order.plan.job(order.job)
    try:
        with at_work(order.plan.root):
            _do(order, job)
    except KeyboardInterrupt:
        return INTERRUPTED
    except UserError as error:
        hint = f"\nhint: {error.hint}" if error.hint else ""
        _say(f"error: {error.message}{hint}")
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        _say(f"error: {type(error).__name__}: {' '.join(str(error).split())}")
        return 1
    return 0


def _do(order: JobOrder, job: Job) -> None:
    match job:
        case TrainJob():
            _train(order, job)
        case EvaluateJob():
            _evaluate(order, job)
        case AnalyseJob():
            _analyse(order, job)


def _train(order: JobOrder, job: TrainJob) -> None:
    from mrt5cli.training.choose import choose
    from mrt5cli.training.run import execute

    overwrite = order.overwrite and job.run.is_run
    plan = choose(job.recipe, job.run.path, resume=order.resume, device=order.device, overwrite=overwrite)
    execute(plan, overwrite=overwrite)


def _evaluate(order: JobOrder, job: EvaluateJob) -> None:
    from mrt5cli import runtime
    from mrt5cli.evaluation.compare import compare
    from mrt5cli.subject import find_subject

    comparison = compare(
        [find_subject(str(job.train.run.path))],
        job.task,
        job.options,
        device=runtime.device(order.device),
        progress=_examples_done,
    )
    [line] = replace(comparison, label=job.label).save()
    if line != f"saved {job.output}":
        raise RunFailed(f"the results should be in {job.output}: {line}")
    _say(line)


def _analyse(order: JobOrder, job: AnalyseJob) -> None:
    from mrt5cli import runtime
    from mrt5cli.analysis.across_runs import run_analysis
    from mrt5cli.suite.planning import MADE, made_of

    before = made_of(order.plan.job(need) for need in job.needs)
    runs = replace(
        order.plan.experiment_runs(job.experiment),
        device=runtime.device(order.device),
        progress=_examples_done,
    )
    write_json(job.output, {**run_analysis(job.analysis, runs), MADE: before})
    _say(f"saved {job.output}")


def _examples_done(name: str, subset: str, done: int) -> None:
    _say(f"{name}, {subset}: {done} examples")


def _say(text: str) -> None:
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
