"""How far an evaluation or a benchmark is, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def examples_done(expected: int) -> Iterator[Callable[[str, str, int], None]]:
    """A bar for each model and subset when stderr is a terminal, else one line for each.

    Args:
        expected: examples a subset may have at most.
    """
    if not sys.stderr.isatty():
        seen: set[tuple[str, str]] = set()

        def line_each(name: str, subset: str, done: int) -> None:
            if (name, subset) not in seen:
                seen.add((name, subset))
                print(f"evaluating {name}, {subset}", file=sys.stderr, flush=True)

        yield line_each
        return
    with bars() as bar:
        yield lambda name, subset, done: bar(f"{name} {subset}", done, expected)


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for each name that it is called with, the number done, and that of all or 0."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        known: dict[str, TaskID] = {}

        def bar(name: str, done: int, total: int) -> None:
            if name not in known:
                known[name] = shown.add_task(name, total=total or None)
            shown.update(known[name], completed=done)

        yield bar
