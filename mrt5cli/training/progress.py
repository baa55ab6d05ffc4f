"""Training progress on stderr: a live line on a terminal, a plain line every few seconds elsewhere.

The displayed loss is the cross-entropy alone, in nats per target token. Every other nonzero term of the
minimized sum is shown next to it, coefficient included.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mrt5cli.metrics.catalog import METRICS
from mrt5cli.recipe import Recipe
from mrt5cli.runtime import memory_in_use
from mrt5cli.text import WIDE, announced, byte_size, columns, duration, wrapped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mrt5cli.models.fast.choice import Choice

LIVE_SECONDS = 0.25
PLAIN_SECONDS = 10.0
LONG = 2.0
"""Report the duration of the first step only if it exceeds this, in seconds."""
BETWEEN = "  "
ROUNDING = 1e-9
"""A remainder below this fraction of the loss is floating-point error."""


class ProgressDisplay(TrainerCallback):
    """Displays step, losses, deletion rate and target, speed, memory, time left, and validation results.

    Both a context manager and a callback.

    Args:
        score_coefficient: weight of the score loss.
        compiling: what the first step compiles; "" if nothing.
        console: where to write; by default stderr.
        plain_seconds: seconds between plain lines; the last line is always printed.
    """

    def __init__(
        self,
        score_coefficient: float = 0.0,
        compiling: str = "",
        console: Console | None = None,
        plain_seconds: float = PLAIN_SECONDS,
    ) -> None:
        self.score_coefficient, self.compiling = score_coefficient, compiling
        self.console = console or Console(stderr=True)
        self.plain_seconds = plain_seconds
        self.is_live = self.console.is_terminal and not self.console.is_dumb_terminal
        self.facts: list[str] = []
        self.under_way = self.validated = self.noted = ""
        self.first = ExitStack()
        self.first_step = self.step = self.steps = 0
        self.started = self.shown = self.timed_from = time.monotonic()
        self.live = Live(self, console=self.console, refresh_per_second=4)

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        self.first.close()
        if self.live.is_started:
            self.live.stop()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.first_step = self.step = state.global_step
        self.steps = state.max_steps
        self.started = self.shown = time.monotonic()
        if self.is_live:
            self.live.start(refresh=True)
        else:
            self.first.enter_context(announced(f"{self._first_step()} ...", self._say, LONG))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.step, now = state.global_step, time.monotonic()
        if self.step == self.first_step + 1:
            self.first.close()
            self.timed_from = now
            if (took := now - self.started) > LONG:
                compiled = f", {self.compiling} compiled" if self.compiling else ""
                self._say(f"the first step took {duration(took)}{compiled}")
                self.shown = now
        # With rare logging steps, report the position even without new metrics.
        if not self.is_live and now - self.shown >= 2 * self.plain_seconds > 0:
            self._show()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.step = state.global_step
        self.facts = facts_of(kwargs["logs"], self.score_coefficient, memory_in_use(args.device))
        over = self.step >= self.steps
        if not self.is_live and (over or time.monotonic() - self.shown >= self.plain_seconds):
            self._show()

    def note(self, text: str) -> None:
        """Add a line to the live display at its next refresh; safe inside a signal handler."""
        self.noted = text

    def validating(self, subset: str, done: int) -> None:
        """Show how many examples of a subset have been measured."""
        self.under_way = f"validating, {subset}: {done:,} examples"
        if not self.is_live and time.monotonic() - self.shown >= self.plain_seconds:
            self._show()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.under_way, self.validated = "", validation_of(kwargs["metrics"], state.global_step)
        if not self.is_live:
            self._say(self.validated)

    def _parts(self) -> list[str]:

        if self.step == self.first_step and self.step < self.steps:
            return [f"{self._first_step()}, {duration(time.monotonic() - self.started)}"]
        parts = [*(self.facts or ["no metrics yet"]), self._left(), self.under_way]
        return [part for part in [*parts, self.validated if self.is_live else ""] if part]

    def _first_step(self) -> str:
        return f"the first step{f' compiles {self.compiling}' if self.compiling else ' is running'}"

    def _left(self) -> str:
        """The time left, estimated without the first step, which may include compilation."""
        timed = self.step - self.first_step - 1
        if timed < 1 or self.step >= self.steps:
            return ""
        each = (time.monotonic() - self.timed_from) / timed
        return f"{duration(each * (self.steps - self.step))} left"

    def _show(self) -> None:
        self.shown = time.monotonic()
        self._say(BETWEEN.join([f"step {self.step}/{self.steps}", *self._parts()]))

    def _say(self, text: str) -> None:
        self.console.print(
            wrapped(text, columns(self.console.file)), highlight=False, markup=False, soft_wrap=True
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The live line, wrapped between parts if it is too long."""
        width = options.max_width
        bar = 0 if width < WIDE else width // 8
        parts = [f"step {self.step}/{self.steps}", *self._parts()]
        first, *more = broken(parts, width - (bar and bar + len(BETWEEN)), width)
        head = Table.grid(padding=(0, len(BETWEEN), 0, 0))
        shown: list[Text | ProgressBar] = [Text(first[0]), Text(BETWEEN.join(first[1:]))]
        if bar:
            shown.insert(1, ProgressBar(self.steps or None, self.step, width=bar))
        head.add_row(*shown)
        yield head
        for line in [*(BETWEEN.join(parts) for parts in more), *([self.noted] if self.noted else [])]:
            yield Text(line)


def broken(parts: list[str], room: int, width: int) -> list[list[str]]:
    """Wrap parts into lines of `width` columns; the first line has `room` columns."""
    lines: list[list[str]] = [[]]
    for part in parts:
        if lines[-1] and len(BETWEEN.join([*lines[-1], part])) > (room if len(lines) == 1 else width):
            lines.append([])
        lines[-1].append(part)
    return lines


def facts_of(row: Mapping[str, Any], score_coefficient: float, memory: int | None = None) -> list[str]:
    """A line of metrics as text, each number with its name.

    Args:
        memory: bytes in use; None omits it.
    """
    facts = [f"loss {row['cross_entropy']:.4g}"]
    facts += [f"{name} {value:.3g}" for name, value in terms(row, score_coefficient).items() if value]
    if row["target"] is not None or row["deletion_rate"] > 0:
        target = "" if row["target"] is None else f" (target {100 * row['target']:.3g} %)"
        facts.append(f"deleted {100 * row['deletion_rate']:.1f} %{target}")
    if row["alpha"] or row["target"] is not None:
        facts.append(f"alpha {row['alpha']:.3g}")
    facts.append(f"{byte_size(row['bytes_per_second'])}/s")
    return [*facts, *([] if memory is None else [f"memory {byte_size(memory)}"])]


def terms(row: Mapping[str, Any], score_coefficient: float) -> dict[str, float]:
    """The terms of a metrics line's loss other than the cross-entropy, by name."""
    gate, score = row["gate_loss"], score_coefficient * row["score_loss"]
    rest = row["loss"] - row["cross_entropy"] - gate - score
    auxiliary = rest if abs(rest) > ROUNDING * (abs(row["loss"]) + abs(row["cross_entropy"])) else 0.0
    return {"gate term": gate, "score term": score, "auxiliary term": auxiliary}


def validation_of(line: Mapping[str, Any], step: int) -> str:
    """A validation line as text. Shows the last row, which is the total if there are several subsets."""
    *_, row = line["validation"].values()
    words = [] if row["loss"] is None else [f"loss {row['loss']:.4g}"]
    words += [f"deleted {100 * row['deletion_rate']:.1f} %"] if row["deletion_rate"] else []
    if (best := line.get("best")) and best["value"] is not None:
        metric = METRICS[best["metric"]]
        if metric.name != "loss":
            words.append(
                f"{metric.title} {metric.text(best['value'])}{' %' if metric.unit == 'share' else ''}"
            )
        words += ["the best so far"] if best["better"] else []
    return f"validation at step {step}: {', '.join(words)}"


def compiling(recipe: Recipe, attention: Choice) -> str:
    """What the first training step compiles, as text; "" if nothing."""
    blocks = "the blocks' feed-forward halves" if recipe.training.compile else ""
    kernels = "the Triton kernels" if attention.implementation == "triton" else ""
    return " and ".join(filter(None, (blocks, kernels)))
