"""What the disk shows of a job.

A job is done when what it made is there, whole, made by the same recipe and the same code, and from the same
things as are there now. Nothing else is trusted: no list of what was done is kept.
"""

from __future__ import annotations

import hashlib

from mrt5cli import own_code
from mrt5cli.errors import UserError
from mrt5cli.fingerprint import code_version
from mrt5cli.json_files import read_object
from mrt5cli.metrics.results import Json, SavedEvaluation
from mrt5cli.recipe.differences import decides_numbers, differences
from mrt5cli.suite.jobs import EvaluateJob, Job, Status, TrainJob
from mrt5cli.text import first_line

MADE = "made"
"""Key of an analysis' document: what it was made by and from."""

State = tuple[Status, str | None]
"""A job's status and, where it is not done, the reason in words."""


def state_of(job: Job, *, keep_changed: bool = False) -> State:
    """What the disk shows of a job, those it needs having their statuses already."""
    match job:
        case TrainJob():
            return _run_state(job, keep_changed)
        case EvaluateJob():
            return _evaluation_state(job, keep_changed)
        case _:
            return _analysis_state(job, keep_changed)


def identity(job: Job) -> str | None:
    """What distinguishes what a job made from what the same job makes later; None while there is nothing."""
    if isinstance(job, TrainJob):
        return job.run.meta().get("ended")
    return hashlib.sha256(job.output.read_bytes()).hexdigest()[:16] if job.output.is_file() else None


def made_of(job: Job) -> Json:
    """What an analysis says of how it was made."""
    return {"code": code_version("analyse"), "from": {need.id: identity(need) for need in job.needs}}


def was_continued(job: TrainJob) -> bool:
    """Whether a run was trained beyond its recipe, by --continue-for; not where that cannot be read."""
    try:
        return job.run.recipe().training.continues_from > 0
    except UserError:  # as `state_of` says
        return False


def _run_state(job: TrainJob, keep_changed: bool) -> State:
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
    if not (finished and keep_changed) and (stale := _stale(job, meta)):
        return "changed", stale
    if finished:
        return "done", None
    steps = run.saved_steps()
    where = f"saved at step {steps[-1]} of {job.recipe.training.max_steps}" if steps else "nothing saved"
    if meta.get("status") == "failed":
        return "failed", f"{meta.get('error', 'no reason given')}; {where}"
    return "half done", where


def _stale(job: TrainJob, meta: Json) -> str | None:
    """Why a run of this recipe is not what training it now would make, or None."""
    codes = {session.get("code") for session in meta.get("sessions", [{}])}
    now = code_version("train")
    if codes != {now}:
        of = ", ".join(sorted(code or "unknown" for code in codes - {now}))
        return f"trained by other code ({of}; now {now})"
    if not own_code.unchanged(meta):
        return "trained by other code of yours"
    for start in job.needs:
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


def _analysis_state(job: Job, keep_changed: bool) -> State:
    if not job.output.is_file():
        return "missing", "not analysed yet"
    for need in job.needs:
        if need.status != "done":
            return "changed", f"{need.id} is {need.status}"
    try:
        before = read_object(job.output).get(MADE)
    except UserError:
        before = None
    now = made_of(job)
    if not isinstance(before, dict) or before.get("from") != now["from"]:
        return "changed", "made from earlier runs or evaluations"
    if before.get("code") != now["code"] and not keep_changed:
        return "changed", f"made by other code ({before.get('code')}; now {now['code']})"
    return "done", None
