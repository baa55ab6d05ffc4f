"""How far a training is, on stderr: one live line on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mrt5cli.text import byte_size, columns, duration, one_line_if_wide, wrapped

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
        self.first_step = 0
        self.started = self.shown = time.monotonic()
        self.facts = "starting"
        self.bar = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[facts]}", table_column=one_line_if_wide(self.console)),
            console=self.console,
            refresh_per_second=4,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:  # elsewhere it would print an empty line
            self.bar.stop()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.first_step = state.global_step
        self.started = self.shown = time.monotonic()
        self.task = self.bar.add_task(
            "", total=state.max_steps, completed=state.global_step, facts=self.facts
        )
        self.bar.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if self.console.is_terminal and time.monotonic() - self.shown >= LIVE_SECONDS:
            self._show(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Any = None,
        **_: object,
    ) -> None:
        self.facts = facts_of(logs)
        plain = not self.console.is_terminal and time.monotonic() - self.shown >= self.plain_seconds
        if plain or state.global_step >= state.max_steps:
            self._show(state)

    def _show(self, state: TrainerState) -> None:
        self.shown = time.monotonic()
        step, steps = state.global_step, state.max_steps
        facts, done = self.facts, step - self.first_step
        if done > 0 and step < steps:
            facts += f"  {duration((self.shown - self.started) / done * (steps - step))} left"
        if self.console.is_terminal:
            self.bar.update(self.task, completed=step, facts=facts)
        else:
            line = wrapped(f"step {step}/{steps}  {facts}", columns(self.console.file))
            self.console.print(line, highlight=False, soft_wrap=True)


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
