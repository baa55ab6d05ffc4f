"""Doing what a plan leaves to do: each job in its own process, as soon as what it needs is done.

A job that fails, or is killed, takes only those along that need it. Nothing is remembered between two calls
but what the jobs themselves leave behind, so that stopping at any moment and starting again loses nothing.
"""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path

from mrt5cli.suite.display import PlainDisplay
from mrt5cli.suite.jobs import Job, SuitePlan
from mrt5cli.suite.locking import LOGS
from mrt5cli.suite.planning import state_of
from mrt5cli.suite.processes import Fork, Forks
from mrt5cli.suite.work import JobOrder

POLL_SECONDS = 0.05


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
    running: Fork
    log: Path
    since: float
    log_from: int


class _Queue:
    """The jobs of a plan that can be started: those whose needs are done, in the plan's order."""

    def __init__(self, plan: SuitePlan) -> None:
        self.plan = plan
        self.sorter = TopologicalSorter({job.id: job.needs for job in plan.jobs})
        self.sorter.prepare()
        self.waiting: set[str] = set()
        self._add()

    def _add(self) -> None:
        while ready := self.sorter.get_ready():
            for job in map(self.plan.job, ready):
                if job.status == "done":
                    self.sorter.done(job.id)
                elif job.to_do:
                    self.waiting.add(job.id)

    def take(self) -> Job:
        """The first of them."""
        job = next(job for job in self.plan.jobs if job.id in self.waiting)
        self.waiting.remove(job.id)
        return job

    def done(self, job: Job) -> None:
        """What needs this one may be ready now."""
        self.sorter.done(job.id)
        self._add()


def execute(plan: SuitePlan, launcher: Forks, display: PlainDisplay, *, device: str) -> SuiteOutcome:
    """Do every job of a plan that is to be done; the statuses of its jobs follow.

    The first Ctrl-C (or termination signal) starts nothing more and lets trainings save; the second ends
    all at once.

    Args:
        device: as `--device`, for the jobs.
    """
    outcome = SuiteOutcome()
    begin = time.monotonic()
    queue = _Queue(plan)
    slots: dict[int, _Slot] = {}
    with _signals() as signals:
        heeded = 0
        while slots or (queue.waiting and not signals):
            if len(signals) > heeded:
                heeded = len(signals)
                if heeded == 1:
                    display.say("stopping: trainings save where they stand; Ctrl-C again ends them at once")
                for slot in slots.values():
                    slot.running.stop() if heeded == 1 else slot.running.kill()
            for place in range(launcher.slots):
                if place not in slots and queue.waiting and not signals:
                    job = queue.take()
                    slots[place] = _start(plan, job, launcher, place, device)
                    display.started(job, slots[place].log)
            for place, slot in list(slots.items()):
                code = slot.running.poll()
                if code is not None:
                    del slots[place]
                    error = _settle(plan, slot, code, outcome, stopping=bool(signals))
                    if error is None:
                        queue.done(slot.job)
                    display.ended(slot.job, time.monotonic() - slot.since, error)
            display.tick()
            time.sleep(POLL_SECONDS)
        outcome.interrupted = bool(signals)
    outcome.seconds = time.monotonic() - begin
    return outcome


def log_of(plan: SuitePlan, job: Job) -> Path:
    """Where a job's output goes."""
    return plan.root / LOGS / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', job.id)}.log"


def _start(plan: SuitePlan, job: Job, launcher: Forks, place: int, device: str) -> _Slot:
    log = log_of(plan, job)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"== {time.strftime('%Y-%m-%d %H:%M:%S')}  {job.id}\n")
    size = log.stat().st_size
    order = JobOrder(plan, job.id, device, overwrite=job.status == "changed")
    return _Slot(job, launcher.start(order, place, log), log, time.monotonic(), size)


def _settle(plan: SuitePlan, slot: _Slot, code: int, outcome: SuiteOutcome, *, stopping: bool) -> str | None:
    """Give a job that has ended its status, and those that need it; returns what went wrong."""
    job = slot.job
    if code == 0:
        # Seen with our own eyes; by other code than ours if files were edited meanwhile.
        job.status, job.reason = state_of(plan, job, keep_changed=True)
        if job.status == "done":
            outcome.done.append(job.id)
            return None
    elif stopping:
        job.status, job.reason = state_of(plan, job, keep_changed=True)
        return "interrupted"
    error = _error(slot, code) if code else f"it ended well, and is {job.status}: {job.reason}"
    job.status, job.reason = "failed", error
    outcome.failures.append(Failure(job.id, error, slot.log, tuple(_block(plan, job))))
    return error


def _block(plan: SuitePlan, failed: Job) -> list[str]:
    """Mark what cannot be done any more, and name it."""
    gone = {failed.id}
    for job in plan.jobs:
        if job.to_do and not gone.isdisjoint(job.needs):
            job.status, job.reason = "blocked", f"needs {failed.id}, which failed"
            gone.add(job.id)
    return [job.id for job in plan.jobs if job.id in gone - {failed.id}]


def _error(slot: _Slot, code: int) -> str:
    """What the log says last of why a job failed, or how it was ended."""
    with slot.log.open("rb") as file:
        file.seek(slot.log_from)
        lines = file.read().decode("utf-8", "replace").splitlines()
    said = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    if said and code > 0:
        return said[-1]
    if code < 0:
        name = signal.Signals(-code).name
        why = ", by hand or because memory ran out" if name == "SIGKILL" else ""
        return f"killed by {name}{why}"
    return f"ended with code {code}: {lines[-1] if lines else 'it said nothing'}"


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
