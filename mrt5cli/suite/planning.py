"""What of a plan is done, what is left, and what of that is wanted.

A job is done when what it made is there, whole, made by the same recipe and the same code, and from the same
things as are there now. Nothing else is trusted: no list of what was done is kept.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mrt5cli import recipe as recipes
from mrt5cli.errors import UserError
from mrt5cli.fingerprint import code_version
from mrt5cli.json_files import read_object
from mrt5cli.metrics.results import Json, SavedEvaluation
from mrt5cli.recipe import Recipe
from mrt5cli.recipe.differences import decides_numbers, differences
from mrt5cli.recipe.loading import shipped
from mrt5cli.recipe.words import nearest
from mrt5cli.suite.graph import build_plan
from mrt5cli.suite.jobs import EvaluateJob, Experiment, Job, Status, SuitePlan, TrainJob
from mrt5cli.text import first_line

NOT_ASKED_FOR = "not asked for"
NOT_NEEDED = "only needed by what is done"
MADE = "made"
"""Key of an analysis' document: what it was made by and from."""

State = tuple[Status, str | None]


def make_plan(
    suite: str,
    experiments: Sequence[Experiment],
    root: Path,
    *,
    only: Sequence[str] = (),
    smoke: bool = False,
    keep_changed: bool = False,
    known: Mapping[str, Recipe] | None = None,
) -> SuitePlan:
    """The plan of a suite, every job with its status.

    Args:
        only: globs of experiment ids and recipe names; what these need comes along.
        keep_changed: let finished runs and results of other code, or of starts that changed, stand.
        known: recipes by name; by default the shipped ones.

    Raises:
        UserError: a glob matches nothing, or a recipe starts from what no recipe makes.
    """
    plan = build_plan(suite, experiments, shipped_recipes() if known is None else known, root, smoke=smoke)
    for job in plan.jobs:
        job.status, job.reason = state_of(plan, job, keep_changed=keep_changed)
    wanted = _wanted(plan, only)
    needed: set[str] = set()
    for job in reversed(plan.jobs):
        if (job.id in wanted or job.id in needed) and job.to_do:
            needed |= {job.id, *job.needs}
    _leave_out(plan, needed, NOT_ASKED_FOR if only else NOT_NEEDED)
    return plan


def shipped_recipes() -> dict[str, Recipe]:
    """Every recipe that comes with the toolkit, by its name."""
    return {name: recipes.load(path) for name, path in shipped().items()}


def _wanted(plan: SuitePlan, only: Sequence[str]) -> set[str]:
    """Ids of the jobs that are asked for by name, without what they need."""
    if not only:
        return {job.id for job in plan.jobs if job.experiments}
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
        job.id for job in plan.jobs for glob in only if fnmatch.filter([job.name, *job.experiments], glob)
    }


def _leave_out(plan: SuitePlan, chosen: set[str], reason: str) -> list[Job]:
    out = [job for job in plan.jobs if job.to_do and job.id not in chosen]
    for job in out:
        job.status, job.reason = "left out", reason
    return out


def keep_to_budget(plan: SuitePlan, hours: float) -> list[Job]:
    """Leave out what does not fit into so many hours, in the plan's order; returns what that is.

    What a job needs is counted with it. What is shown nowhere is done only for something that fits.
    """
    jobs = {job.id: job for job in plan.jobs}
    chosen: set[str] = set()
    for job in plan.jobs:
        if job.experiments and job.to_do:
            more = closure(jobs, job) - chosen
            cost = sum(jobs[id_].hours for id_ in more)
            if cost <= hours - sum(jobs[id_].hours for id_ in chosen):
                chosen |= more
    return _leave_out(plan, chosen, f"beyond the budget of {hours:g} {plan.machine.upper()} hours")


def closure(jobs: Mapping[str, Job], job: Job) -> set[str]:
    """Ids of a job and of everything still to be done for it."""
    return {job.id}.union(*(closure(jobs, jobs[id_]) for id_ in job.needs if jobs[id_].to_do))


def state_of(plan: SuitePlan, job: Job, *, keep_changed: bool = False) -> State:
    """What the disk shows of a job, those it needs having their statuses already."""
    needs = [plan.job(id_) for id_ in job.needs]
    match job:
        case TrainJob():
            return _run_state(job, needs, keep_changed)
        case EvaluateJob():
            return _evaluation_state(job, keep_changed)
        case _:
            return _analysis_state(job, needs, keep_changed)


def identity(job: Job) -> str | None:
    """What distinguishes what a job made from what the same job makes later; None while there is nothing."""
    if isinstance(job, TrainJob):
        return job.run.meta().get("ended")
    return hashlib.sha256(job.output.read_bytes()).hexdigest()[:16] if job.output.is_file() else None


def made_of(needs: Iterable[Job]) -> Json:
    """What an analysis says of how it was made."""
    return {"code": code_version("analyse"), "from": {job.id: identity(job) for job in needs}}


def _run_state(job: TrainJob, needs: list[Job], keep_changed: bool) -> State:
    run = job.run
    if not run.is_run:
        return "missing", "not trained yet"
    try:
        before, meta = run.recipe(), run.meta()
    except UserError as error:  # of another version of the toolkit, say
        return "changed", f"the run cannot be read: {first_line(error)}"
    changed = [
        f"{key}: {text}"
        for key, text in differences(before, job.recipe).items()
        if decides_numbers(key, job.recipe)
    ]
    if changed:
        more = f", and {len(changed) - 1} more" if len(changed) > 1 else ""
        return "changed", f"another recipe: {changed[0]}{more}"
    finished = meta.get("status") == "finished" and (run.model / "config.json").is_file()
    if not (finished and keep_changed):
        stale = _stale(meta, needs)
        if stale:
            return "changed", stale
    if finished:
        return "done", None
    steps = run.saved_steps()
    where = f"saved at step {steps[-1]} of {job.recipe.training.max_steps}" if steps else "nothing saved"
    if meta.get("status") == "failed":
        return "failed", f"{meta.get('error', 'no reason given')}; {where}"
    return "half done", where


def _stale(meta: Json, needs: list[Job]) -> str | None:
    """Why a run of this recipe is not what training it now would make, or None."""
    codes = {session.get("code") for session in meta.get("sessions", [{}])}
    now = code_version("train")
    if codes != {now}:
        of = ", ".join(sorted(code or "unknown" for code in codes - {now}))
        return f"trained by other code ({of}; now {now})"
    for start in needs:
        if start.status != "done":
            return f"what it starts from is {start.status}: {start.name}"
        if (identity(start) or "") > meta.get("started", ""):
            return f"what it starts from was trained anew: {start.name}"
    return None


def _evaluation_state(job: EvaluateJob, keep_changed: bool) -> State:
    if not job.output.is_file():
        return "missing", "not evaluated yet"
    if job.train.status != "done":
        return "changed", f"its run is {job.train.status}"
    try:
        found = SavedEvaluation.read(job.output)
        [model] = found.models
    except (UserError, ValueError):
        return "changed", "the results are not those of this version of the toolkit"
    if model.run_ended != identity(job.train):
        return "changed", "an earlier training of its run was evaluated"
    settings = {
        "task": (found.settings, job.task.model_dump(mode="json")),
        "examples": (found.limit, job.options.limit),
        "batch size": (found.batch_size, job.options.batch_size),
        "split": (found.split, job.options.split),
        "constrained": (found.constrained, job.options.constrained),
    }
    for what, (before, now) in settings.items():
        if before != now:
            return "changed", f"another {what}" + ("" if what == "task" else f": {before} then, {now} now")
    if job.options.runtime and any(row.ms_per_example is None for row in model.rows):
        return "changed", "not timed"
    code = code_version("evaluate")
    if found.code != code and not keep_changed:
        return "changed", f"evaluated by other code ({found.code}; now {code})"
    return "done", None


def _analysis_state(job: Job, needs: list[Job], keep_changed: bool) -> State:
    if not job.output.is_file():
        return "missing", "not analysed yet"
    for need in needs:
        if need.status != "done":
            return "changed", f"{need.id} is {need.status}"
    try:
        before = read_object(job.output).get(MADE)
    except UserError:
        before = None
    now = made_of(needs)
    if not isinstance(before, dict) or before.get("from") != now["from"]:
        return "changed", "made from earlier runs or evaluations"
    if before.get("code") != now["code"] and not keep_changed:
        return "changed", f"made by other code ({before.get('code')}; now {now['code']})"
    return "done", None
