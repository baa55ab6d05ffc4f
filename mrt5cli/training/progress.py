"""How far a training is, on stderr: one live line on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mrt5cli.text import byte_size, columns, duration, one_line_if_wide, wrapped

DECIDES_NUMBERS = False  # words

LIVE_SECONDS = 0.25
PLAIN_SECONDS = 10.0


class ProgressDisplay(TrainerCallback):
    """A context manager and a callback: step, loss, deletion rate against target, alpha, speed, time left.

    Args:
        console: where to show it; by default stderr.
        plain_seconds: time between plain lines; the last one always comes.
    """

    def __init__(self, console: Console | None = None, plain_seconds: float = PLAIN_SECONDS) -> None:
        self.console = console or Console(stderr=True)
        self.plain_seconds = plain_seconds
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.first_step = 0
        self.started = self.shown = time.monotonic()
        self.facts = ""

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.first_step = state.global_step
        self.started = self.shown = time.monotonic()
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[facts]}", table_column=one_line_if_wide(self.console)),
                console=self.console,
                refresh_per_second=4,
            )
            self.task = self.bar.add_task(
                "", total=state.max_steps, completed=self.first_step, facts="starting"
            )
            self.bar.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.bar is None or self.task is None or time.monotonic() - self.shown < LIVE_SECONDS:
            return
        self.shown = time.monotonic()
        facts = (self.facts + self.time_left(state.global_step, state.max_steps)).strip()
        self.bar.update(self.task, completed=state.global_step, facts=facts)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Any = None,
        **_: Any,
    ) -> None:
        self.facts = facts_of(logs)
        last = state.global_step >= state.max_steps
        if self.bar is not None and self.task is not None:
            if last:
                self.bar.update(self.task, completed=state.global_step, facts=self.facts)
        elif last or time.monotonic() - self.shown >= self.plain_seconds:
            self.shown = time.monotonic()
            left = self.time_left(state.global_step, state.max_steps)
            line = f"step {state.global_step}/{state.max_steps}  {self.facts}{left}"
            fitted = wrapped(line, columns(self.console.file))
            self.console.print(fitted, highlight=False, soft_wrap=True)

    def time_left(self, step: int, steps: int) -> str:
        """ "  3 min left", from this session's mean time a step; empty where there is nothing left to do."""
        done = step - self.first_step
        if done <= 0 or step >= steps:
            return ""
        return f"  {duration((time.monotonic() - self.started) / done * (steps - step))} left"


def facts_of(row: dict[str, Any]) -> str:
    """A line of metrics in words."""
    facts = [f"loss {row['loss']:.4g}"]
    if row["target"] is not None or row["deletion_rate"] > 0:
        target = "" if row["target"] is None else f" of {100 * row['target']:.3g} %"
        facts.append(f"deleted {100 * row['deletion_rate']:.1f} %{target}")
    if row["alpha"] or row["target"] is not None:
        facts.append(f"alpha {row['alpha']:.3g}")
    facts.append(f"{byte_size(row['bytes_per_second'])}/s")
    return "  ".join(facts)
