"""What of a plan is done, what is left, and what of that is wanted."""

from __future__ import annotations

import fnmatch
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from mrt5cli.errors import UserError
from mrt5cli.recipe import Recipe
from mrt5cli.recipe.loading import shipped
from mrt5cli.recipe.words import nearest
from mrt5cli.suite.graph import build_plan
from mrt5cli.suite.jobs import AnalyseJob, Experiment, Job, SuitePlan, TrainJob
from mrt5cli.suite.states import state_of, was_continued

NOT_ASKED_FOR = "not asked for"
NOT_NEEDED = "only needed by what is done"


def make_plan(
    suite: str,
    experiments: Sequence[Experiment],
    root: Path,
    *,
    only: Sequence[str] = (),
    smoke: bool = False,
    keep_changed: bool = False,
    known: Mapping[str, Path | Recipe] | None = None,
) -> SuitePlan:
    """The plan of a suite, every job with its status.

    Args:
        only: globs of experiment ids and recipe names; what these need comes along.
        keep_changed: let finished runs and results of other code, or of starts that changed, stand. Analyses
            of other code never do: they take minutes, and a report reads their fields by name.
        known: recipes, or their files, by name; by default the shipped ones.

    Raises:
        UserError: a glob matches nothing, or a recipe starts from what no recipe makes.
    """
    plan = build_plan(suite, experiments, shipped() if known is None else known, root, smoke=smoke)
    for job in plan.jobs:
        keep = keep_changed and not isinstance(job, AnalyseJob)
        job.status, job.reason = state_of(job, keep_changed=keep)
    wanted = _wanted(plan, only)
    needed: set[Job] = set()
    for job in reversed(plan.jobs):
        if job.to_do and (job in wanted or job in needed):
            needed |= {job, *job.needs}
    _leave_out(plan, needed, NOT_ASKED_FOR if only else NOT_NEEDED)
    return plan


def check_nothing_continued(plan: SuitePlan) -> None:
    """Refuse to replace a run that somebody has trained on.

    Raises:
        UserError: the plan would.
    """
    for job in plan.jobs:
        if isinstance(job, TrainJob) and job.status == "changed" and was_continued(job):
            path = job.run.path
            there, kept = shlex.quote(str(path)), shlex.quote(f"{path.name}-continued")
            raise UserError(
                f"{path} was trained on with --continue-for, and would be replaced by a run of {job.name}",
                f"keep it under another name: mrt5 runs mv {there} {kept}",
            )


def _wanted(plan: SuitePlan, only: Sequence[str]) -> set[Job]:
    """The jobs that are named, without what they need."""
    names = {experiment.id for experiment in plan.experiments} | {job.name for job in plan.jobs}
    for glob in only:
        if not fnmatch.filter(names, glob):
            near = nearest(glob, names)
            raise UserError(
                f"--only {glob} matches no experiment and no recipe of suite {plan.suite}",
                f"did you mean {near}?"
                if near
                else f"experiments: {', '.join(e.id for e in plan.experiments)}",
            )
    return {
        job
        for job in plan.jobs
        if any(fnmatch.filter([job.name, *job.experiments], glob) for glob in only)
        or (job.experiments and not only)
    }


def _leave_out(plan: SuitePlan, chosen: set[Job], reason: str) -> list[Job]:
    out = [job for job in plan.jobs if job.to_do and job not in chosen]
    for job in out:
        job.status, job.reason = "left out", reason
    return out


def keep_to_budget(plan: SuitePlan, hours: float) -> list[Job]:
    """Leave out what does not fit into so many hours, in the plan's order; returns what that is.

    What a job needs is counted with it. What is shown nowhere is done only for something that fits.
    """
    chosen: set[Job] = set()
    for job in plan.jobs:
        if job.experiments and job.to_do:
            with_needs = chosen | closure(job)
            if sum(one.hours for one in with_needs) <= hours:
                chosen = with_needs
    return _leave_out(plan, chosen, f"beyond the budget of {hours:g} {plan.machine.upper()} hours")


def closure(job: Job) -> set[Job]:
    """A job and everything still to be done for it."""
    return {job}.union(*(closure(need) for need in job.needs if need.to_do))
