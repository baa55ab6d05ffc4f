"""`mrt5 reproduce`: a whole suite of experiments, from nothing to a report."""

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
"""Of a job, in the JSON document."""


Suite = Annotated[str, argument("paper, miniature, or a file like theirs.", "SUITE")]
Only = Annotated[
    list[str] | None,
    option(
        "Only these experiments and recipes, and what they need. May be repeated.", "--only", metavar="GLOB"
    ),
]
Jobs = Annotated[
    int | None,
    amount("Jobs at a time. Default: one a GPU; with 1, a training takes all GPUs.", bounds.WORKERS),
]
Budget = Annotated[
    float | None,
    amount(
        "Leave out what does not fit into so many of the hours that the plan estimates.",
        1e9,
        0.0,
        metavar="HOURS",
    ),
]
Speed = Annotated[
    float | None,
    amount("Sustained speed of a GPU, for the estimates.", 1e9, 0.001, metavar="TFLOPS"),
]
KeepChanged = Annotated[
    bool, option("Let finished runs and results of changed code stand.", "--keep-changed")
]
Runs = Annotated[Path | None, path("Folder of the runs. Default: runs, or inside it.", metavar="DIR")]
Reports = Annotated[Path, path("Folder of the reports.", "--out", "-o", metavar="DIR")]
ReportOnly = Annotated[bool, option("Train nothing; report on the results that exist.", "--report-only")]


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
    """Train, evaluate and analyse all that a suite needs, and set the results beside the published ones.

    What is done is skipped, what is half done is resumed, and what fails stops only what needs it. Ctrl-C
    saves; the same command resumes. Every job has a log in the logs/ folder of the runs. Hosts that share
    that folder share the jobs: give each the same command.

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
        raise UserError("--dry-run prints the plan, and --report-only writes the report", "give one of them")
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
        say_on_stderr("to resume: the same command again; for a report on what there is: --report-only")
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
    """Do what is to be done, with words about it on stderr."""
    from mrt5cli.suite.display import Display
    from mrt5cli.suite.executing import SuiteOutcome, execute
    from mrt5cli.suite.processes import launcher_for

    to_do = [job for job in plan.jobs if job.to_do]
    if not to_do:
        say_on_stderr("nothing left to do")
        return SuiteOutcome()
    launcher = launcher_for(plan, device, jobs)
    say_on_stderr(f"{launcher}; runs and logs in {plan.root}")
    needed, free = 1e9 * sum(job.gigabytes for job in to_do), room(plan.root)
    if free < needed:
        sizes = f"{byte_size(needed)} will be needed in {plan.root}, {byte_size(free)} are free"
        say_on_stderr(f"note: {sizes}")
    display = Display(plan)
    with display.bars:
        return execute(plan, launcher, display)


def _failed(outcome: SuiteOutcome) -> RunFailed:
    """What failed, why, where to read on, and what that kept from being done."""
    lines = [f"{counted(len(outcome.failures), 'job')} failed"]
    for failure in outcome.failures:
        lines.append(f"  {failure.job}: {failure.error}\n    log: {failure.log}")
        if failure.blocked:
            lines.append(f"    blocks: {listed(failure.blocked, 3)}")
    return RunFailed("\n".join(lines), "the same command tries them again, and leaves what is done as it is")


def _print_plan(plan: SuitePlan, summary: str) -> None:
    """A table for each experiment, of the jobs that no earlier one shows, and the summary."""
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
    """The plan in three lines: how many jobs in which state, what is left to do, what that rests on."""
    left = [job for job in plan.jobs if job.to_do]
    states = [job.status for job in plan.jobs]
    counts = ", ".join(f"{states.count(status)} {status}" for status in dict.fromkeys(states))
    hours, space = sum(job.hours for job in left), sum(job.gigabytes for job in left)
    lines = [
        f"suite {plan.suite}{', smoke: the numbers will mean nothing' if plan.smoke else ''}: "
        f"{len(plan.jobs)} jobs, {counts}",
        f"to do: {len(left)} jobs, {_amount(hours, '0')} {plan.machine.upper()} hours, "
        f"{_amount(space, '0')} GB; {assumed}",
    ]
    replaced = sum(job.kind == "train" and job.status == "changed" for job in left)
    if replaced:
        lines.append(
            f"note: {counted(replaced, 'run')} will be replaced, because recipe, code or start changed; "
            "--keep-changed keeps finished ones of other code"
        )
    if beyond:
        trained = [shlex.quote(job.name) for job in beyond if job.kind == "train"]
        shown = listed(trained, 5) or "no training"
        lines.append(f"left out, beyond the budget: {len(beyond)} jobs ({shown})")
    return "\n".join(lines)


def _amount(value: float, nothing: str = "-") -> str:
    if value == 0:
        return nothing
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 0.05 else "<0.1"


def _document(plan: SuitePlan, outcome: SuiteOutcome | None, written: list[Path]) -> Json:
    """Plan and outcome for scripts."""
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
