"""Doing what a plan leaves to do: each job in its own process, as soon as what it needs is done.

A job that fails, or is killed, takes only those along that need it. Nothing is remembered between two calls
but what the jobs themselves leave behind, so that stopping at any moment and starting again loses nothing.
"""

from __future__ import annotations

import fcntl
import re
import signal
import threading
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mrt5cli.errors import UserError
from mrt5cli.suite.display import Display
from mrt5cli.suite.jobs import Job, SuitePlan
from mrt5cli.suite.planning import state_of
from mrt5cli.suite.processes import Fork, Forks
from mrt5cli.suite.work import JobOrder

POLL_SECONDS = 0.05
LOGS = "logs"


@dataclass(frozen=True)
class Failure:
    """A job that could not be done.

    Attributes:
        error: the first line of what its log says.
        blocked: ids of the jobs that needed it.
    """

    job: str
    error: str
    log: Path
    blocked: tuple[str, ...] = ()


@dataclass
class SuiteOutcome:
    """What came of a plan."""

    done: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    interrupted: bool = False
    seconds: float = 0.0


@dataclass
class _Slot:
    job: Job
    fork: Fork
    since: float


@contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Be the only `mrt5 reproduce` in a folder of runs; the lock of one that was killed is free.

    Jobs that a killed one has left behind save and end by themselves, and a run is held by who trains it.

    Raises:
        UserError: another process holds the folder, or it cannot be written to.
    """
    path = root / LOGS / "reproduce.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise UserError(
            f"cannot write to {root}: {error.strerror}",
            "choose another folder with --runs, or --report-only for a report of what is there",
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another `mrt5 reproduce` works in {root}",
                "wait for it or stop it, or give this one another folder with --runs",
            ) from None
        yield


def execute(plan: SuitePlan, launcher: Forks, display: Display) -> SuiteOutcome:
    """Do every job of a plan that is to be done; the statuses of its jobs follow.

    The first Ctrl-C (or termination signal) starts nothing more and lets trainings save; the second ends
    all at once.
    """
    outcome = SuiteOutcome()
    begin = time.monotonic()
    slots: dict[int, _Slot] = {}
    started: set[str] = set()
    with _signals() as signals:
        heeded = 0
        while True:
            if len(signals) > heeded:
                heeded = len(signals)
                if heeded == 1:
                    display.say("stopping: trainings save where they stand; Ctrl-C again ends them at once")
                for slot in slots.values():
                    slot.fork.stop() if heeded == 1 else slot.fork.kill()
            for place in set(range(launcher.slots)) - slots.keys():
                job = None if signals else _ready(plan, started)
                if job is None:
                    break
                started.add(job.id)
                slots[place] = _Slot(job, _start(plan, job, launcher, place), time.monotonic())
                display.started(job)
            if not slots:
                break
            for place, slot in list(slots.items()):
                code = slot.fork.poll()
                if code is not None:
                    del slots[place]
                    error = _settle(plan, slot.job, code, outcome, stopping=bool(signals))
                    display.ended(slot.job, time.monotonic() - slot.since, error)
            display.tick()
            time.sleep(POLL_SECONDS)
        outcome.interrupted = bool(signals)
    outcome.seconds = time.monotonic() - begin
    return outcome


def log_of(plan: SuitePlan, job: Job) -> Path:
    """Where a job's output goes."""
    return plan.root / LOGS / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', job.id)}.log"


def _ready(plan: SuitePlan, started: Set[str]) -> Job | None:
    """The first job in the plan's order that can be started and was not."""
    done = {job.id for job in plan.jobs if job.status == "done"}
    return next(
        (job for job in plan.jobs if job.to_do and job.id not in started and done.issuperset(job.needs)), None
    )


def _start(plan: SuitePlan, job: Job, launcher: Forks, place: int) -> Fork:
    log = log_of(plan, job)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"== {time.strftime('%Y-%m-%d %H:%M:%S')}  {job.id}\n")
    return launcher.start(JobOrder(plan, job.id, overwrite=job.status == "changed"), place, log)


def _settle(plan: SuitePlan, job: Job, code: int, outcome: SuiteOutcome, *, stopping: bool) -> str | None:
    """Give a job that has ended its status, and those that need it; returns what went wrong."""
    if code == 0 or stopping:
        # What it left counts, though by other code than ours if files were edited meanwhile.
        job.status, job.reason = state_of(plan, job, keep_changed=True)
    if code == 0 and job.status == "done":
        outcome.done.append(job.id)
        return None
    if code and stopping:
        return "interrupted"
    log = log_of(plan, job)
    error = _error(log, code) if code else f"it ended well, and is {job.status}: {job.reason}"
    job.status, job.reason = "failed", error
    outcome.failures.append(Failure(job.id, error, log, tuple(_block(plan, job))))
    return error


def _block(plan: SuitePlan, failed: Job) -> list[str]:
    """Mark what cannot be done any more, and name it."""
    gone = {failed.id}
    for job in plan.jobs:
        if job.to_do and not gone.isdisjoint(job.needs):
            job.status, job.reason = "blocked", f"needs {failed.id}, which failed"
            gone.add(job.id)
    return [job.id for job in plan.jobs if job.id in gone - {failed.id}]


def _error(log: Path, code: int) -> str:
    """What the log says last of why a job failed, or how it was ended."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}{', by hand or because memory ran out' if name == 'SIGKILL' else ''}"
    _, *lines = log.read_text(encoding="utf-8", errors="replace").rpartition("== ")[2].splitlines()
    errors = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    return errors[-1] if errors else f"ended with code {code}: {lines[-1] if lines else 'it said nothing'}"


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Ctrl-C and termination signals as they come, instead of being ended by them."""
    seen: list[int] = []
    ours = threading.current_thread() is threading.main_thread()
    caught = (signal.SIGINT, signal.SIGTERM) if ours else ()
    before = {number: signal.signal(number, lambda number, frame: seen.append(number)) for number in caught}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
