"""`mrt5 reproduce`: run a suite of experiments and report the results."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mrt5cli import bounds
from mrt5cli.commands import options
from mrt5cli.commands.options import amount, argument, option, path
from mrt5cli.errors import RunFailed, UserError
from mrt5cli.output import print_json
from mrt5cli.places import check_writable, room
from mrt5cli.runtime import installed_gpu
from mrt5cli.stopping import Stopped
from mrt5cli.text import announced, byte_size, counted, listed, say, say_on_stderr

if TYPE_CHECKING:
    from mrt5cli.metrics.results import Json
    from mrt5cli.suite.executing import SuiteOutcome
    from mrt5cli.suite.jobs import Job, SuitePlan

PAPER = "paper"
SMOKE = "smoke"
SHOWN = ("id", "kind", "status", "reason", "experiments", "gigabytes")
"""Attributes of a job in the JSON document."""


Suite = Annotated[str, argument("Suite: paper, miniature, or a YAML file in the same format.", "SUITE")]
Only = Annotated[
    list[str] | None,
    option(
        "Experiments and recipes to include, with everything they need. May be repeated.",
        "--only",
        metavar="GLOB",
        default="all",
    ),
]
Jobs = Annotated[
    int | None,
    amount(
        "Number of jobs to run at a time; with 1, each training uses all GPUs.",
        bounds.WORKERS,
        default="one per GPU",
    ),
]
Budget = Annotated[
    float | None,
    amount(
        "Total of estimated hours; jobs beyond it are left out.",
        1e9,
        0.0,
        metavar="HOURS",
        default="unlimited",
    ),
]
Speed = Annotated[
    float | None,
    amount(
        "Sustained speed of a GPU, for the estimates.",
        1e9,
        0.001,
        metavar="TFLOPS",
        default="by the GPU's name",
    ),
]
KeepChanged = Annotated[
    bool, option("Keep finished runs and results whose code has changed.", "--keep-changed")
]
Runs = Annotated[
    Path | None, path("Folder for the runs.", metavar="DIR", default="runs, or a folder in it by suite")
]
Reports = Annotated[Path, path("Folder for the reports.", "--out", "-o", metavar="DIR")]
ReportOnly = Annotated[bool, option("Train nothing; report on the existing results.", "--report-only")]


def reproduce(
    suite: Suite = PAPER,
    only: Only = None,
    smoke: options.Smoke = False,
    jobs: Jobs = None,
    dry_run: options.DryRun = False,
    budget: Budget = None,
    gpu_tflops: Speed = None,
    keep_changed: KeepChanged = False,
    runs: Runs = None,
    out: Reports = Path("reports"),
    device: options.Device = "auto",
    code: options.Code = None,
    report_only: ReportOnly = False,
    as_json: options.AsJson = False,
) -> None:
    """Run a suite of experiments, and report the results next to the published ones.

    Finished jobs are skipped, and interrupted jobs resume; a failed job skips only its dependents. Ctrl-C
    saves checkpoints, and the same command resumes. Each job writes a log to the logs/ folder of the runs.
    To share the jobs among several hosts, run the same command on each with a common --runs folder.

    Examples:

      mrt5 reproduce --dry-run

      mrt5 reproduce --only 'multilingual_v3' --only 'xnli_v3/mrt5*'

      mrt5 reproduce --smoke

      mrt5 reproduce miniature --runs runs/miniature
    """
    from mrt5cli.suite.estimates import assumption, estimate, machine_for
    from mrt5cli.suite.executing import only_one
    from mrt5cli.suite.planning import check_nothing_continued, keep_to_budget, make_plan
    from mrt5cli.suite.suites import load_suite

    name = Path(suite).stem
    root = runs or Path("runs", *([SMOKE] if smoke else []), *([name] if name != PAPER else []))
    experiments = load_suite(suite)

    if dry_run and report_only:
        raise UserError("--dry-run and --report-only exclude each other", "give one of them")
    works = not (dry_run or report_only)
    pages = out / (f"{name}-{SMOKE}" if smoke else name)
    for place in [pages] if report_only else [root, pages]:
        check_writable(place, "folder")
    with only_one(root) if works else nullcontext():
        plan = make_plan(name, experiments, root, only=only or [], smoke=smoke, keep_changed=keep_changed)
        gpu = installed_gpu()
        estimate(plan, gpu_tflops, machine_for(plan, device, gpu_tflops), gpu)
        beyond = [] if budget is None else keep_to_budget(plan, budget)
        if not report_only:
            check_nothing_continued(plan)
        summary = _summary(plan, beyond, assumption(plan.machine, gpu_tflops, gpu))
        if works and not as_json:
            say_on_stderr(summary)
        outcome = _execute(plan, device, jobs) if works else None
    if dry_run:
        print_json(_document(plan, None, [])) if as_json else _print_plan(plan, summary)
        return
    if outcome is not None and outcome.signal:
        say_on_stderr("run the same command to resume, or add --report-only to report on the results so far")
        raise Stopped(outcome.signal)
    from mrt5cli.report.page import write_report

    with announced("writing the report ...", say_on_stderr):
        written = write_report(plan, pages, say_on_stderr)
    if as_json:
        print_json(_document(plan, outcome, written))
    else:
        print(*written, sep="\n")
    if outcome is not None and outcome.failures:
        raise _failed(outcome)


def _execute(plan: SuitePlan, device: str, jobs: int | None) -> SuiteOutcome:
    """Run the remaining jobs, with progress on stderr."""
    from mrt5cli.suite.display import Display
    from mrt5cli.suite.executing import SuiteOutcome, execute
    from mrt5cli.suite.processes import launcher_for

    to_do = [job for job in plan.jobs if job.to_do]
    if not to_do:
        say_on_stderr("all jobs are done")
        return SuiteOutcome()
    launcher = launcher_for(plan, device, jobs)
    say_on_stderr(f"{launcher}; runs and logs in {plan.root}")
    needed, free = 1e9 * sum(job.gigabytes for job in to_do), room(plan.root)
    if free < needed:
        say_on_stderr(
            f"note: the jobs need {byte_size(needed)} in {plan.root}, which has {byte_size(free)} free"
        )
    display = Display(plan)
    with display.bars:
        return execute(plan, launcher, display)


def _failed(outcome: SuiteOutcome) -> RunFailed:
    """An error that lists each failed job, its error, its log and the jobs it blocks."""
    lines = [f"{counted(len(outcome.failures), 'job')} failed"]
    for failure in outcome.failures:
        lines.append(f"  {failure.job}: {failure.error}\n    log: {failure.log}")
        if failure.blocked:
            lines.append(f"    blocks: {listed(failure.blocked, 3)}")
    return RunFailed("\n".join(lines), "run the same command to retry them; finished jobs are kept")


def _print_plan(plan: SuitePlan, summary: str) -> None:
    """Print a table of jobs per experiment, each job once, and the summary."""
    from mrt5cli.commands.tables import print_table
    from mrt5cli.suite.planning import NOT_ASKED_FOR, NOT_NEEDED

    titles = {one.id: f"{one.id}: {one.title}" for one in plan.experiments} | {"": "needed by these"}
    for id_, title in titles.items():
        rows = [
            [
                *(job.id, _amount(job.hours), _amount(job.gigabytes), job.status),
                "" if job.status == "missing" else job.reason or "",
            ]
            for job in plan.jobs
            if (*job.experiments, "")[0] == id_ and job.reason not in (NOT_ASKED_FOR, NOT_NEEDED)
        ]
        if rows:
            say(title)
            columns = ["job", f"{plan.machine.upper()} h", "GB", "status", ""]
            print_table(columns, rows, text_columns=(0, 3, 4))
            say()
    say(summary)


def _summary(plan: SuitePlan, beyond: list[Job], assumed: str) -> str:
    """The plan in a few lines: jobs by status, remaining work, and the assumptions of the estimate."""
    left = [job for job in plan.jobs if job.to_do]
    states = [job.status for job in plan.jobs]
    counts = ", ".join(f"{states.count(status)} {status}" for status in dict.fromkeys(states))
    hours, space = sum(job.hours for job in left), sum(job.gigabytes for job in left)
    lines = [
        f"suite {plan.suite}{', smoke test with meaningless numbers' if plan.smoke else ''}: "
        f"{counted(len(plan.jobs), 'job')}, {counts}",
        f"to do: {counted(len(left), 'job')}, {_amount(hours, '0')} {plan.machine.upper()} hours, "
        f"{_amount(space, '0')} GB; {assumed}",
    ]
    replaced = sum(job.kind == "train" and job.status == "changed" for job in left)
    if replaced:
        lines.append(
            f"note: {counted(replaced, 'run')} will be replaced, because the recipe, code or starting model "
            "changed; --keep-changed keeps finished runs whose code has changed"
        )
    if beyond:
        trained = [shlex.quote(job.name) for job in beyond if job.kind == "train"]
        shown = listed(trained, 5) or "no training"
        lines.append(f"left out, beyond the budget: {counted(len(beyond), 'job')} ({shown})")
    return "\n".join(lines)


def _amount(value: float, nothing: str = "-") -> str:
    if value == 0:
        return nothing
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 0.05 else "<0.1"


def _document(plan: SuitePlan, outcome: SuiteOutcome | None, written: list[Path]) -> Json:
    """Plan and outcome as a JSON document."""
    return {
        "suite": plan.suite,
        "smoke": plan.smoke,
        "runs": str(plan.root),
        "jobs": [
            {
                **{name: getattr(job, name) for name in SHOWN},
                "needs": [need.id for need in job.needs],
                "output": str(job.output),
                f"{plan.machine}_hours": job.hours,
            }
            for job in plan.jobs
        ],
        "outcome": outcome
        and {
            "seconds": outcome.seconds,
            "done": outcome.done,
            "failed": [{**asdict(failure), "log": str(failure.log)} for failure in outcome.failures],
        },
        "report": [str(path) for path in written],
    }
