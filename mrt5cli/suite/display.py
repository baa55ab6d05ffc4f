"""Displays the progress of a plan on stderr: live on a terminal, as plain lines elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from mrt5cli.metrics.results import Json
from mrt5cli.rundir import metrics_row
from mrt5cli.suite.jobs import Job, SuitePlan, TrainJob
from mrt5cli.text import columns, duration, one_line_if_wide, wrapped

LIVE_SECONDS = 0.5
PLAIN_SECONDS = 60.0
TAIL = 4096
"""Bytes read from the end of metrics.jsonl to find its last line."""


class Display:
    """A line for each finished job; for running jobs, bars on a terminal or occasional lines elsewhere.

    Args:
        seconds: interval between updates of the running jobs.
    """

    def __init__(self, plan: SuitePlan, console: Console | None = None, seconds: float | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.live = self.console.is_terminal
        self.seconds = seconds if seconds is not None else LIVE_SECONDS if self.live else PLAIN_SECONDS
        self.bars = Progress(
            TextColumn("{task.description}", markup=False, table_column=one_line_if_wide(self.console)),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}", markup=False, table_column=one_line_if_wide(self.console)),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.live,
        )
        self.total, self.ended_jobs = sum(job.to_do for job in plan.jobs), 0
        self.whole = self.bars.add_task("jobs", total=self.total, facts="")
        self.running: dict[Job, TaskID] = {}
        self.shown = time.monotonic()

    def started(self, job: Job) -> None:
        total = job.recipe.training.max_steps if isinstance(job, TrainJob) else None
        self.running[job] = self.bars.add_task(job.id, total=total, facts="")
        if not self.live:
            self.say(f"started  {job.id}")

    def ended(self, job: Job, seconds: float, error: str | None) -> None:
        self.bars.remove_task(self.running.pop(job))
        self.ended_jobs += 1
        self.bars.update(self.whole, completed=self.ended_jobs)
        how = "done" if error is None else "stopped" if error == "interrupted" else "failed"
        why = f": {error}" if how == "failed" else f" in {duration(seconds)}"
        self.say(f"{how:<8} {job.id}{why}  [{self.ended_jobs}/{self.total}]")

    def done_elsewhere(self, job: Job) -> None:
        """Show that another host has done the job since the plan was made."""
        self.ended_jobs += 1
        self.bars.update(self.whole, completed=self.ended_jobs)
        self.say(f"{'done':<8} {job.id}, by another host  [{self.ended_jobs}/{self.total}]")

    def tick(self) -> None:
        """Update the running jobs, if the interval has passed."""
        if time.monotonic() - self.shown < self.seconds:
            return
        self.shown = time.monotonic()
        for job, bar in self.running.items():
            row = last_metrics(job)
            facts = [f"loss {row['cross_entropy']:.4g}"] if "cross_entropy" in row else []
            if row.get("deletion_rate"):
                facts.append(f"deleted {100 * row['deletion_rate']:.0f} %")
            if row and isinstance(job, TrainJob):
                self.bars.update(bar, completed=row["step"], facts="  ".join(facts))
                facts.insert(0, f"step {row['step']}/{job.recipe.training.max_steps}")
            if not self.live:
                self.say("  ".join([f"running  {job.id}", *facts]))

    def say(self, text: str) -> None:
        fitted = wrapped(text, columns(self.console.file))
        self.console.print(fitted, highlight=False, markup=False, soft_wrap=True)


def last_metrics(job: Job) -> Json:
    """The last complete line of a training's metrics; empty if there is none, and for other jobs."""
    if not isinstance(job, TrainJob) or not job.run.metrics_path.is_file():
        return {}
    with job.run.metrics_path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - TAIL))
        lines = file.read().split(b"\n")[:-1]
    # None if the line is longer than what was read, or was cut off by a kill.
    return (metrics_row(lines[-1]) if lines else None) or {}
