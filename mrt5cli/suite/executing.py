"""Doing what a plan leaves to do: each job in its own process, as soon as what it needs is done.

A job that fails, or is killed, takes only those along that need it. Nothing is remembered between two calls
but what the jobs themselves leave behind, so that stopping at any moment and starting again loses nothing.

Hosts that share the folder of the runs share the jobs: who does one holds its lock, and who finds a lock held
does another job and looks again later; that of a host that died is free a minute after its last beat.
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
"""Between two looks at a job that another host does."""
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
    """Be this host's only `mrt5 reproduce` in a folder of runs; the lock of one that was killed is free.

    Jobs that a killed one has left behind save and end by themselves, and a run is held by who trains it.

    Raises:
        UserError: another process holds the folder, or it cannot be written to.
    """
    path = root / LOGS / f"reproduce-{locks.HOST}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = locks.take(path)
    except OSError as error:
        raise UserError(
            f"cannot write to {root}: {error.strerror}",
            "choose another folder with --runs, or --report-only for a report on the results that exist",
        ) from error
    if isinstance(lock, Holder):
        raise UserError(
            f"another `mrt5 reproduce` works in {root}: {lock}",
            f"wait for it, {lock.how_to_stop}, or give this one another folder with --runs",
        )
    try:
        yield
    finally:
        lock.release()


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
            if not execution.running and (signals or not execution.elsewhere):
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
    """A job that this host has, in a process since some moment of the monotonic clock."""

    job: Job
    lock: Lock
    process: BaseProcess
    since: float


class _Execution:
    """A plan that is being executed: what runs in which slot, and what has come of the rest."""

    def __init__(self, plan: SuitePlan, launcher: Forks, display: Display, signals: Sequence[int]) -> None:
        self.plan, self.launcher, self.display, self.signals = plan, launcher, display, signals
        self.running: dict[int, _Running] = {}
        self.started: set[Job] = set()
        self.elsewhere: dict[Job, float] = {}  # what other hosts do, and when to look again
        self.heeded = 0
        self.outcome = SuiteOutcome()

    def heed_signals(self) -> None:
        new, self.heeded = self.signals[self.heeded :], len(self.signals)
        if not new:
            return
        first = len(new) == len(self.signals)
        if first:
            again = "Ctrl-C again" if signal.SIGINT in new else "Ctrl-C"
            self.display.say(f"stopping: trainings save where they stand; {again} ends them at once")
        for running in self.running.values():
            if first:
                running.process.terminate()
            elif signal.SIGINT in new:
                kill(running.process)

    def fill_slots(self) -> None:
        """Start, in the plan's order, what has all that it needs."""
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
        """The jobs that can be done, in the plan's order, each once it is this host's."""
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
                    os.listdir(folder)  # over NFS, what others have made there may show only then
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
