"""Doing what a plan leaves to do: each job in its own process, as soon as what it needs is done.

A job that fails, or is killed, takes only those along that need it. Nothing is remembered between two calls
but what the jobs themselves leave behind, so that stopping at any moment and starting again loses nothing.
"""

from __future__ import annotations

import fcntl
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from mrt5cli.errors import UserError
from mrt5cli.stopping import how_it_ended, taken_by
from mrt5cli.suite.display import Display
from mrt5cli.suite.jobs import Job, SuitePlan
from mrt5cli.suite.processes import Forks, kill
from mrt5cli.suite.states import state_of
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
    """What came of a plan.

    Attributes:
        signal: that stopped it, or 0.
    """

    done: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    signal: int = 0
    seconds: float = 0.0


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
            "choose another folder with --runs, or --report-only for a report on the results that exist",
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

    The first Ctrl-C, or another signal to stop, starts nothing more and lets trainings save; a Ctrl-C after
    it ends all at once.
    """
    begin, signals = time.monotonic(), list[int]()
    with taken_by(lambda number, frame: signals.append(number)):
        execution = _Execution(plan, launcher, display, signals)
        while True:
            execution.heed_signals()
            execution.fill_slots()
            if not execution.running:
                break
            execution.settle_ended()
            display.tick()
            time.sleep(POLL_SECONDS)
    execution.outcome.signal = signals[0] if signals else 0
    execution.outcome.seconds = time.monotonic() - begin
    return execution.outcome


def log_of(plan: SuitePlan, job: Job) -> Path:
    """Where a job's output goes."""
    return plan.root / LOGS / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', job.id)}.log"


class _Running(NamedTuple):
    """A job in a process since some moment of the monotonic clock."""

    job: Job
    process: BaseProcess
    since: float


class _Execution:
    """A plan that is being executed: what runs in which slot, and what has come of the rest."""

    def __init__(self, plan: SuitePlan, launcher: Forks, display: Display, signals: Sequence[int]) -> None:
        self.plan, self.launcher, self.display, self.signals = plan, launcher, display, signals
        self.running: dict[int, _Running] = {}
        self.started: set[Job] = set()
        self.heeded = 0
        self.outcome = SuiteOutcome()

    def heed_signals(self) -> None:
        new, self.heeded = self.signals[self.heeded :], len(self.signals)
        if not new:
            return
        first = len(new) == len(self.signals)
        if first:
            self.display.say("stopping: trainings save where they stand; Ctrl-C again ends them at once")
        for running in self.running.values():
            if first:
                running.process.terminate()
            elif signal.SIGINT in new:
                kill(running.process)

    def fill_slots(self) -> None:
        """Start, in the plan's order, what has all that it needs."""
        for slot in set(range(self.launcher.slots)) - self.running.keys():
            job = None if self.signals else self._ready()
            if job is None:
                return
            self.started.add(job)
            log = log_of(self.plan, job)
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a", encoding="utf-8") as file:
                file.write(f"== {time.strftime('%Y-%m-%d %H:%M:%S')}  {job.id}\n")
            order = JobOrder(self.plan, job, overwrite=job.status == "changed")
            self.running[slot] = _Running(job, self.launcher.start(order, slot, log), time.monotonic())
            self.display.started(job)

    def _ready(self) -> Job | None:
        waiting = (job for job in self.plan.jobs if job.to_do and job not in self.started)
        return next((job for job in waiting if all(need.status == "done" for need in job.needs)), None)

    def settle_ended(self) -> None:
        for slot, (job, process, since) in list(self.running.items()):
            if (code := process.exitcode) is not None:
                del self.running[slot]
                self.display.ended(job, time.monotonic() - since, self._settle(job, code))

    def _settle(self, job: Job, code: int) -> str | None:
        """Give a job that has ended its status, and those that need it; returns what went wrong."""
        stopping = bool(self.signals)
        if code == 0 or stopping:
            # What it left counts, though by other code than ours if files were edited meanwhile.
            job.status, job.reason = state_of(job, keep_changed=True)
        if code == 0 and job.status == "done":
            self.outcome.done.append(job.id)
            return None
        if code and stopping:
            return "interrupted"
        log = log_of(self.plan, job)
        error = _error(log, code) if code else f"it ended well, and is {job.status}: {job.reason}"
        job.status, job.reason = "failed", error
        self.outcome.failures.append(Failure(job.id, error, log, tuple(_block(self.plan, job))))
        return error


def _block(plan: SuitePlan, failed: Job) -> list[str]:
    """Mark what cannot be done any more, and name it."""
    gone = [failed]
    for job in plan.jobs:
        if job.to_do and any(need in gone for need in job.needs):
            job.status, job.reason = "blocked", f"needs {failed.id}, which failed"
            gone.append(job)
    return [job.id for job in gone[1:]]


def _error(log: Path, code: int) -> str:
    """What the log says last of why a job failed, or how it was ended."""
    if code < 0:
        return how_it_ended(code)
    _, *lines = log.read_text(encoding="utf-8", errors="replace").rpartition("== ")[2].splitlines()
    errors = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    return errors[-1] if errors else f"ended with code {code}: {lines[-1] if lines else 'it said nothing'}"
