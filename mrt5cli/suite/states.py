"""Determines the state of a job from the disk.

A job is done if its results exist, are complete, and were made with the same recipe and code from inputs that
have not changed since. Nothing else is recorded or trusted.
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
"""Key in an analysis document for the code and the inputs that it was made with."""

State = tuple[Status, str | None]
"""A job's status and, if it is not done, the reason as text."""


def state_of(job: Job, *, keep_changed: bool = False) -> State:
    """The state of a job on disk; its dependencies must already have their statuses."""
    match job:
        case TrainJob():
            return _run_state(job, keep_changed)
        case EvaluateJob():
            return _evaluation_state(job, keep_changed)
        case _:
            return _analysis_state(job, keep_changed)


def identity(job: Job) -> str | None:
    """Identifies a job's current results, and changes when the job runs again; None without results."""
    if isinstance(job, TrainJob):
        return job.run.meta().get("ended")
    return hashlib.sha256(job.output.read_bytes()).hexdigest()[:16] if job.output.is_file() else None


def made_of(job: Job) -> Json:
    """The code version and inputs of an analysis, to store in its document."""
    return {"code": code_version("analyse"), "from": {need.id: identity(need) for need in job.needs}}


def was_continued(job: TrainJob) -> bool:
    """Whether a run was trained further with --continue-for; False if its recipe cannot be read."""
    try:
        return job.run.recipe().training.continues_from > 0
    except UserError:  # `state_of` reports it
        return False


def _run_state(job: TrainJob, keep_changed: bool) -> State:
    run = job.run
    if not run.is_run:
        return "missing", "not trained yet"
    try:
        before, meta = run.recipe(), run.meta()
    except UserError as error:  # for example because another version of the toolkit wrote it
        return "changed", f"the run cannot be read: {first_line(error)}"
    changed = [
        f"{key}: {text}"
        for key, text in differences(before, job.recipe).items()
        if decides_numbers(key, job.recipe)
    ]
    if changed:
        more = f", and {len(changed) - 1} more" if len(changed) > 1 else ""
        return "changed", f"trained with another recipe: {changed[0]}{more}"
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
    """Why training the recipe now would give another run than the existing one, or None."""
    codes = {session.get("code") for session in meta.get("sessions", [{}])}
    now = code_version("train")
    if codes != {now}:
        of = ", ".join(sorted(code or "unknown" for code in codes - {now}))
        return f"trained with other code ({of}; now {now})"
    if not own_code.unchanged(meta):
        return "trained with another version of your own code"
    for start in job.needs:
        if start.status != "done":
            return f"its start is {start.status}: {start.name}"
        if (identity(start) or "") > meta.get("started", ""):
            return f"its start was trained again: {start.name}"
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
        return "changed", "another version of the toolkit wrote the results"
    if model.run_ended != identity(job.train):
        return "changed", "its run was trained again after the evaluation"
    settings = {
        "task": (found.settings, job.task.model_dump(mode="json")),
        "examples": (found.limit, job.options.limit),
        "batch size": (found.batch_size, job.options.batch_size),
        "split": (found.split, job.options.split),
        "constrained": (found.constrained, job.options.constrained),
    }
    for what, (before, now) in settings.items():
        if before != now:
            return "changed", f"{what} changed" + ("" if what == "task" else f": {before} before, {now} now")
    if job.options.runtime and any(row.ms_per_example is None for row in model.rows):
        return "changed", "not timed"
    code = code_version("evaluate")
    if found.code != code and not keep_changed:
        return "changed", f"evaluated with other code ({found.code}; now {code})"
    return "done", None


def _analysis_state(job: Job, keep_changed: bool) -> State:
    if not job.output.is_file():
        return "missing", "not analyzed yet"
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
        return "changed", f"made with other code ({before.get('code')}; now {now['code']})"
    return "done", None
