"""How far a plan is, on stderr: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from mrt5cli.json_files import parse
from mrt5cli.suite.jobs import Job, SuitePlan, TrainJob
from mrt5cli.text import columns, duration, one_line_if_wide, wrapped

LIVE_SECONDS = 0.5
PLAIN_SECONDS = 60.0
TAIL = 4096
"""Bytes at the end of metrics.jsonl in which its last line is."""


class PlainDisplay:
    """A line when a job starts and ends, and now and then one for each that runs.

    Args:
        plain_seconds: time between those.
    """

    def __init__(self, plan: SuitePlan, console: Console, plain_seconds: float = PLAIN_SECONDS) -> None:
        self.console = console
        self.total = sum(job.to_do for job in plan.jobs)
        self.ended_jobs = 0
        self.running: dict[str, Job] = {}
        self.plain_seconds = plain_seconds
        self.shown = time.monotonic()

    def started(self, job: Job, log: Path) -> None:
        self.running[job.id] = job
        self.say(f"started  {job.id}")

    def ended(self, job: Job, seconds: float, error: str | None) -> None:
        del self.running[job.id]
        self.ended_jobs += 1
        how = "done" if error is None else "stopped" if error == "interrupted" else "failed"
        why = f": {error}" if how == "failed" else f" in {duration(seconds)}"
        self.say(f"{how:<8} {job.id}{why}  [{self.ended_jobs}/{self.total}]")

    def tick(self) -> None:
        if time.monotonic() - self.shown < self.plain_seconds:
            return
        self.shown = time.monotonic()
        for job in self.running.values():
            self.say(f"running  {job.id}{progress_of(job)}")

    def say(self, text: str) -> None:
        fitted = wrapped(text, columns(self.console.file))
        self.console.print(fitted, highlight=False, markup=False, soft_wrap=True)


class LiveDisplay(PlainDisplay):
    """A bar for the whole and one for each training that runs; a line stays for each that has ended."""

    def __init__(self, plan: SuitePlan, console: Console) -> None:
        super().__init__(plan, console)
        self.bars = Progress(
            TextColumn("{task.description}", markup=False, table_column=one_line_if_wide(console)),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}", markup=False, table_column=one_line_if_wide(console)),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self.whole = self.bars.add_task("jobs", total=self.total, facts="")
        self.tasks: dict[str, TaskID] = {}

    def started(self, job: Job, log: Path) -> None:
        self.running[job.id] = job
        total = job.recipe.training.max_steps if isinstance(job, TrainJob) else None
        self.tasks[job.id] = self.bars.add_task(job.id, total=total, facts="")

    def ended(self, job: Job, seconds: float, error: str | None) -> None:
        self.bars.remove_task(self.tasks.pop(job.id))
        super().ended(job, seconds, error)
        self.bars.update(self.whole, completed=self.ended_jobs)

    def tick(self) -> None:
        if time.monotonic() - self.shown < LIVE_SECONDS:
            return
        self.shown = time.monotonic()
        for job in self.running.values():
            row = last_metrics(job)
            if row:
                self.bars.update(self.tasks[job.id], completed=row["step"], facts=_facts(row))


@contextmanager
def display(plan: SuitePlan) -> Iterator[PlainDisplay]:
    """The display that suits stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield PlainDisplay(plan, console)
        return
    live = LiveDisplay(plan, console)
    with live.bars:
        yield live


def progress_of(job: Job) -> str:
    """How far a training is, in words that follow its name; empty for what has no steps."""
    row = last_metrics(job)
    if not row or not isinstance(job, TrainJob):
        return ""
    return f"  step {row['step']}/{job.recipe.training.max_steps}  {_facts(row)}"


def last_metrics(job: Job) -> dict[str, Any]:
    """The newest whole line of a training's metrics; empty before there is one, and for other jobs."""
    if not isinstance(job, TrainJob) or not job.run.metrics_path.is_file():
        return {}
    with job.run.metrics_path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL))
        lines = file.read().split(b"\n")[:-1]
    try:
        return dict(parse(lines[-1])) if lines else {}
    except ValueError:  # the line is longer than what was read, or was cut short by a kill
        return {}


def _facts(row: dict[str, Any]) -> str:
    facts = [f"loss {row['loss']:.4g}"] if "loss" in row else []
    if row.get("deletion_rate"):
        facts.append(f"deleted {100 * row['deletion_rate']:.0f} %")
    return "  ".join(facts)
