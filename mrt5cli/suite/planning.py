"""Determines which jobs of a plan are done, which remain, and which of those are requested."""

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

NOT_ASKED_FOR = "not requested"
NOT_NEEDED = "needed only by jobs that are done"


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
        only: globs of experiment ids and recipe names; their dependencies are included.
        keep_changed: accept finished runs and results of other code or of changed starts. Analyses of other
            code are always repeated: they take minutes, and a report reads their fields by name.
        known: recipes, or their files, by name; by default the shipped ones.

    Raises:
        UserError: a glob matches nothing, or a recipe starts from a run that no recipe trains.
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
    """Refuse a plan that would replace a run trained further with --continue-for.

    Raises:
        UserError: there is such a run.
    """
    for job in plan.jobs:
        if isinstance(job, TrainJob) and job.status == "changed" and was_continued(job):
            path = job.run.path
            there, kept = shlex.quote(str(path)), shlex.quote(f"{path.name}-continued")
            raise UserError(
                f"{path} was trained further with --continue-for, but a run of {job.name} would replace it",
                f"keep it under another name: mrt5 runs mv {there} {kept}",
            )


def _wanted(plan: SuitePlan, only: Sequence[str]) -> set[Job]:
    """The requested jobs, without their dependencies."""
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
    """Leave out jobs that exceed a budget of hours, in the plan's order, and return them.

    A job counts together with its dependencies. Jobs that no experiment shows run only as dependencies.
    """
    chosen: set[Job] = set()
    for job in plan.jobs:
        if job.experiments and job.to_do:
            with_needs = chosen | closure(job)
            if sum(one.hours for one in with_needs) <= hours:
                chosen = with_needs
    return _leave_out(plan, chosen, f"beyond the budget of {hours:g} {plan.machine.upper()} hours")


def closure(job: Job) -> set[Job]:
    """A job and its unfinished dependencies, direct and indirect."""
    return {job}.union(*(closure(need) for need in job.needs if need.to_do))
