"""Does one job in a separate process.

Everything it prints goes to the job's log. The exit code is 0 if the job is done, 1 or 2 after an `error:`
line, or 128 + the number of the signal that stopped it; a training saves first.
"""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass, replace

from mrt5cli.errors import RunFailed, UserError
from mrt5cli.stopping import exit_code
from mrt5cli.suite.jobs import AnalyseJob, EvaluateJob, Job, SuitePlan, TrainJob
from mrt5cli.suite.states import MADE, made_of
from mrt5cli.text import say
from mrt5cli.writing import write_json


@dataclass(frozen=True)
class JobOrder:
    """A job and how to do it.

    Attributes:
        device: as for `--device`.
        overwrite: replace an existing run instead of resuming it.
        processes: number of processes that train together.
        resume: resume an existing run.
    """

    plan: SuitePlan
    job: Job
    device: str = "cpu"
    overwrite: bool = False
    processes: int = 1
    resume: bool = True


def carry_out(order: JobOrder) -> int:
    """Do a job, write any error to stderr, and return the exit code."""
    try:
        match order.job:
            case TrainJob() as job:
                _train(order, job)
            case EvaluateJob() as job:
                _evaluate(order, job)
            case AnalyseJob() as job:
                _analyse(order, job)
    except KeyboardInterrupt as error:
        return exit_code(error)
    except UserError as error:
        hint = f"\nhint: {error.hint}" if error.hint else ""
        _say(f"error: {error.message}{hint}")
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        _say(f"error: {type(error).__name__}: {' '.join(str(error).split())}")
        return 1
    return 0


def _train(order: JobOrder, job: TrainJob) -> None:
    from mrt5cli.training.choose import choose
    from mrt5cli.training.plan import RunOptions
    from mrt5cli.training.run import execute

    overwrite = order.overwrite and job.run.is_run
    options = RunOptions(job.run.path, resume=order.resume, overwrite=overwrite, device=order.device)
    execute(choose(job.recipe, options))


def _evaluate(order: JobOrder, job: EvaluateJob) -> None:
    from mrt5cli import runtime
    from mrt5cli.evaluation.compare import compare
    from mrt5cli.subject import find_subject

    subject, device = find_subject(str(job.train.run.path)), runtime.device(order.device)
    comparison = compare([subject], job.task, job.options, device=device, progress=_examples_done)
    [line] = comparison.save()
    if line != f"saved {job.output}":
        raise RunFailed(f"expected the results in {job.output}, but {line}")
    _say(line)


def _analyse(order: JobOrder, job: AnalyseJob) -> None:
    from mrt5cli import runtime
    from mrt5cli.analysis.across_runs import run_analysis

    before = made_of(job)
    runs = order.plan.experiment_runs(job.experiment)
    runs = replace(runs, device=runtime.device(order.device), progress=_examples_done)
    write_json(job.output, {**run_analysis(job.analysis, runs), MADE: before})
    _say(f"saved {job.output}")


def _examples_done(name: str, subset: str, done: int) -> None:
    _say(f"{name}, {subset}: {done} examples")


def _say(text: str) -> None:
    say(text, sys.stderr)
