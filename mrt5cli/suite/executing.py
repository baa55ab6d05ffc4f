"""Executes a plan: runs each job in its own process as soon as its dependencies are done.

A failed or killed job skips only its dependents. The only state is what the jobs themselves leave on disk, so
stopping at any moment and starting again loses nothing.

Hosts that share the folder of runs share the jobs. The host that runs a job holds its lock; a host that finds
a lock held tries another job and checks again later. The lock of a host that died is released a minute after
its last heartbeat.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from mrt5cli import locks
from mrt5cli.errors import UserError
from mrt5cli.locks import Holder, Lock
from mrt5cli.stopping import how_it_ended, taken_by
from mrt5cli.suite.display import Display
from mrt5cli.suite.jobs import Job, SuitePlan
from mrt5cli.suite.processes import Forks, kill
from mrt5cli.suite.states import state_of
from mrt5cli.suite.work import JobOrder
from mrt5cli.writing import naming

POLL_SECONDS = 0.05
ELSEWHERE_SECONDS = 2.0
"""Seconds between two checks of a job that another host runs."""
LOGS = "logs"


@dataclass(frozen=True)
class Failure:
    """A failed job.

    Attributes:
        job: id of the job.
        error: the error in one line.
        log: the job's log file.
        blocked: ids of the jobs that depend on it.
    """

    job: str
    error: str
    log: Path
    blocked: tuple[str, ...] = ()


@dataclass
class SuiteOutcome:
    """The result of executing a plan.

    Attributes:
        done: ids of the jobs that are done.
        failures: the failed jobs.
        signal: number of the signal that stopped the execution, or 0.
        seconds: duration of the execution.
    """

    done: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    signal: int = 0
    seconds: float = 0.0


@contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Hold this host's lock on a folder of runs, so that only one `mrt5 reproduce` works there.

    A killed process releases its lock. Jobs that it left behind save and end on their own, and each training
    locks its run directory.

    Raises:
        UserError: another process holds the lock, or the folder is not writable.
    """
    path = root / LOGS / f"reproduce-{locks.HOST}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = locks.take(path)
    except OSError as error:
        raise UserError(
            f"cannot write to {root}: {error.strerror}",
            "choose another folder with --runs, or report on existing results with --report-only",
        ) from error
    if isinstance(lock, Holder):
        raise UserError(
            f"another `mrt5 reproduce` is working in {root}: {lock}",
            f"wait for it, {lock.how_to_stop}, or choose another folder with --runs",
        )
    try:
        yield
    finally:
        lock.release()


def execute(plan: SuitePlan, launcher: Forks, display: Display) -> SuiteOutcome:
    """Run every unfinished job of a plan, and update the jobs' statuses.

    After the first Ctrl-C or termination signal, no job starts, and trainings save; another Ctrl-C ends all
    jobs immediately.
    """
    begin, signals = time.monotonic(), list[int]()
    with taken_by(lambda number, frame: signals.append(number)):
        execution = _Execution(plan, launcher, display, signals)
        while True:
            execution.heed_signals()
            execution.fill_slots()
            if not execution.running and (signals or not execution.elsewhere):
                break
            execution.settle_ended()
            display.tick()
            time.sleep(POLL_SECONDS)
    execution.outcome.signal = signals[0] if signals else 0
    execution.outcome.seconds = time.monotonic() - begin
    return execution.outcome


def log_of(plan: SuitePlan, job: Job) -> Path:
    """The log file of a job."""
    return plan.root / LOGS / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', job.id)}.log"


class _Running(NamedTuple):
    """A job that runs on this host, since a time of the monotonic clock."""

    job: Job
    lock: Lock
    process: BaseProcess
    since: float


class _Execution:
    """The state of an execution: the job in each slot, and the outcome of the others."""

    def __init__(self, plan: SuitePlan, launcher: Forks, display: Display, signals: Sequence[int]) -> None:
        self.plan, self.launcher, self.display, self.signals = plan, launcher, display, signals
        self.running: dict[int, _Running] = {}
        self.started: set[Job] = set()
        self.elsewhere: dict[Job, float] = {}  # jobs of other hosts, with the time of the next check
        self.heeded = 0
        self.outcome = SuiteOutcome()

    def heed_signals(self) -> None:
        new, self.heeded = self.signals[self.heeded :], len(self.signals)
        if not new:
            return
        first = len(new) == len(self.signals)
        if first:
            again = "Ctrl-C again" if signal.SIGINT in new else "Ctrl-C"
            self.display.say(f"stopping: trainings save a checkpoint; {again} ends them immediately")
        for running in self.running.values():
            if first:
                running.process.terminate()
            elif signal.SIGINT in new:
                kill(running.process)

    def fill_slots(self) -> None:
        """Start jobs whose dependencies are done, in the plan's order."""
        for slot in set(range(self.launcher.slots)) - self.running.keys():
            found = None if self.signals else next(self._ready(), None)
            if found is None:
                return
            job, lock = found
            self.started.add(job)
            log = log_of(self.plan, job)
            with naming(log), log.open("a", encoding="utf-8") as file:
                file.write(f"== {time.strftime('%Y-%m-%d %H:%M:%S')}  {job.id}\n")
            order = JobOrder(self.plan, job, overwrite=job.status == "changed")
            process = self.launcher.start(order, slot, log)
            self.running[slot] = _Running(job, lock, process, time.monotonic())
            self.display.started(job)

    def _ready(self) -> Iterator[tuple[Job, Lock]]:
        """Yield the jobs that can start, in the plan's order, each with the lock that this host has taken."""
        for job in self.plan.jobs:
            if not job.to_do or job in self.started or any(need.status != "done" for need in job.needs):
                continue
            if time.monotonic() < self.elsewhere.get(job, 0.0):
                continue
            path = log_of(self.plan, job).with_suffix(".lock")
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = locks.take(path)
            if isinstance(lock, Holder):
                if job not in self.elsewhere:
                    self.display.say(f"left to  {lock.host}: {job.id}")
                self.elsewhere[job] = time.monotonic() + ELSEWHERE_SECONDS
                continue
            self.elsewhere.pop(job, None)
            for folder in (job.output.parent.parent, job.output.parent):
                if folder.is_dir():
                    os.listdir(folder)  # makes NFS show files that other hosts have created
            job.status, job.reason = state_of(job)
            if job.status != "done":
                yield job, lock
                return
            lock.release()
            self.outcome.done.append(job.id)
            self.display.done_elsewhere(job)

    def settle_ended(self) -> None:
        for slot, (job, lock, process, since) in list(self.running.items()):
            if (code := process.exitcode) is not None:
                del self.running[slot]
                error = self._settle(job, code)
                lock.release()
                self.display.ended(job, time.monotonic() - since, error)

    def _settle(self, job: Job, code: int) -> str | None:
        """Set the status of an ended job and its dependents, and return the error, if any."""
        stopping = bool(self.signals)
        if code == 0 or stopping:
            # The job counts even if source files were edited while it ran.
            job.status, job.reason = state_of(job, keep_changed=True)
        if code == 0 and job.status == "done":
            self.outcome.done.append(job.id)
            return None
        if code and stopping:
            return "interrupted"
        log = log_of(self.plan, job)
        error = _error(log, code) if code else f"it exited with 0 but is {job.status}: {job.reason}"
        job.status, job.reason = "failed", error
        self.outcome.failures.append(Failure(job.id, error, log, tuple(_block(self.plan, job))))
        return error


def _block(plan: SuitePlan, failed: Job) -> list[str]:
    """Mark the jobs that depend on a failed one as blocked, and return their ids."""
    lost = [failed]
    for job in plan.jobs:
        if job.to_do and any(need in lost for need in job.needs):
            job.status, job.reason = "blocked", f"needs {failed.id}, which failed"
            lost.append(job)
    return [job.id for job in lost[1:]]


def _error(log: Path, code: int) -> str:
    """The last error in the log, or the signal that ended the job."""
    if code < 0:
        return how_it_ended(code)
    _, *lines = log.read_text(encoding="utf-8", errors="replace").rpartition("== ")[2].splitlines()
    errors = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    return errors[-1] if errors else f"ended with code {code}: {lines[-1] if lines else 'no output'}"
