"""Progress of an evaluation, a benchmark or a generation, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mrt5cli.text import duration, is_quiet, say, visible

PLAIN_SECONDS = 30.0
"""Interval of progress lines if stderr is not a terminal."""
Bar = Callable[[str, int, int], None]


@contextmanager
def bars(doing: str, unit: str = "") -> Iterator[Bar]:
    """Yield a function of (name, number done, total or 0) that shows one progress bar per name.

    If stderr is not a terminal, it prints a line when a name starts and then one every `PLAIN_SECONDS`.

    Args:
        doing: the activity, one word, such as "evaluating".
        unit: what is counted, to show a rate per second; empty for no rate.
    """
    if is_quiet():
        yield lambda name, done, total: None
        return
    if not sys.stderr.isatty():
        yield _lines(doing, unit)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f} {unit}/s" if unit and task.speed else "")

    columns = (
        *(TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()),
        *(Speed(), TimeRemainingColumn()),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        known: dict[str, TaskID] = {}

        def bar(name: str, done: int, total: int) -> None:
            if name not in known:
                known[name] = shown.add_task(visible(name, lines=False), total=total or None)
            shown.update(known[name], completed=done, total=total or None)

        yield bar


def _lines(doing: str, unit: str) -> Bar:
    begun: dict[str, tuple[float, int]] = {}
    said = 0.0

    def line(name: str, done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if name not in begun:
            begun[name] = now, done
            text = f"{doing} {name}"
        elif now - said < PLAIN_SECONDS:
            return
        else:
            since, before = begun[name]
            each = (now - since) / max(done - before, 1)
            rate = f", {1 / each:,.0f} {unit}/s" if unit and each else ""
            left = f", about {duration(each * (total - done))} left" if total else ""
            text = f"{name}: {done}" + (f" of {total}" if total else "") + rate + left
        said = now
        say(text, sys.stderr)

    return line
